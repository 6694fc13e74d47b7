#!/bin/sh
# The user that the page runs as, and the folders that are its own: $HF_HOME for models, $XDG_DATA_HOME for the rest.
# Their permissions are those that a new, empty volume takes over.
set -eu
if [ "$(id -u)" = 0 ]; then
  if ! getent passwd 1000 > /dev/null; then
    groupadd --gid 1000 sdsedit
    useradd --uid 1000 --gid 1000 --home-dir "$XDG_DATA_HOME" --no-create-home --shell /usr/sbin/nologin sdsedit
  fi
  install -d -o 1000 -g 1000 -m 750 "$HF_HOME" "$XDG_DATA_HOME"
else
  install -d -m 750 "$HF_HOME" "$XDG_DATA_HOME"
fi
