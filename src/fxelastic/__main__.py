"""``python -m fxelastic``: the same as the command ``fxelastic``."""

import sys

from fxelastic.cli import main

sys.exit(main())
