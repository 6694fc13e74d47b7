"""For HEALTHCHECK: whether the page answers here. The image has no curl."""

from __future__ import annotations

import os
import sys
import urllib.request

try:
    # No proxy of the environment is asked about this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(f"http://127.0.0.1:{os.environ.get('PORT', '7860')}/healthz", timeout=4).close()
except OSError as error:
    sys.exit(f"The page does not answer: {error}")
