#!/bin/sh
# The project itself, into the environment that packages.sh made: the library, the commands, the built-in model, the page.
set -eu
cd "$(dirname "$0")/.."
python="$SDSEDIT_HOME/venv/bin/python"
"$python" -m pip install -q --no-deps -c constraints.txt .
install -m 644 app.py "$SDSEDIT_HOME/app.py"
# Not from here, where the folder sdsedit/ would be found first.
cd /
"$python" -c 'from sdsedit.prior.load import builtin_path; assert (builtin_path() / "model_index.json").is_file()'
