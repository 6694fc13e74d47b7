#!/bin/sh
# system.sh PACKAGE...: packages of the distribution, and nothing left lying about.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "$@"
rm -rf /var/lib/apt/lists/*
