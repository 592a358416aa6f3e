"""Whether tests take every model, also where a few show the same; see CONTRIBUTING.md."""

from __future__ import annotations

import os

EXHAUSTIVE = bool(os.environ.get("FXELASTIC_EXHAUSTIVE"))
