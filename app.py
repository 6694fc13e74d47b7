"""The web page: `python app.py`, then open http://127.0.0.1:7860. `--help` says what can be set."""

from __future__ import annotations

import sys

from sdsedit.web.serve import main

if __name__ == "__main__":
    sys.exit(main())
