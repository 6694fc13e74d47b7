#!/bin/sh
# packages.sh EXTRA...: a virtual environment in $SDSEDIT_HOME with what the project asks for, in the versions that
# constraints.txt pins. Run in a folder that has pyproject.toml and constraints.txt.
#
# TORCH_INDEX: an index with other builds of PyTorch; its CPU builds are a tenth of the size of the usual ones.
# What Python finds already (PYTHONPATH) is not installed again.
set -eu
cd "$(dirname "$0")/.."
python3 -m venv "$SDSEDIT_HOME/venv"
pip="$SDSEDIT_HOME/venv/bin/pip"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# PyTorch pins its own Triton, another one for each build of it; the pin in constraints.txt is for the tests on a CPU.
grep -v '^triton==' constraints.txt > "$work/constraints.txt"

# With both indexes in view pip takes 2.13.0+cpu, which is higher than 2.13.0.
if [ -n "${TORCH_INDEX:-}" ]; then
  "$pip" install -q -c "$work/constraints.txt" --extra-index-url "$TORCH_INDEX" torch
fi
"$SDSEDIT_HOME/venv/bin/python" docker/requirements.py "$@" > "$work/requirements.txt"
"$pip" install -q -c "$work/constraints.txt" -r "$work/requirements.txt"
