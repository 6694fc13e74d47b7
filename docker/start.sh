#!/bin/sh
# What the image runs: the page, for everybody who reaches the container. What is given after the image's name goes to
# app.py (`--help` lists it). `sdsedit ...` and `hf ...` run those instead.
set -eu
case "${1:-}" in
  sdsedit | hf) exec "$@" ;;
esac
# A secret that is mounted as a file is not seen by who may look at the container's settings.
if [ -n "${SDSEDIT_LOGIN_FILE:-}" ]; then
  SDSEDIT_LOGIN=$(cat "$SDSEDIT_LOGIN_FILE")
  export SDSEDIT_LOGIN
fi
# exec: the signal that ends the container must reach the page itself, which lets a running edit finish.
exec python "$SDSEDIT_HOME/app.py" --host 0.0.0.0 --port "$PORT" "$@"
