"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell starts jobs in the background with Ctrl-C ignored, and their children inherit that. Tests
# that interrupt a process need it to be as in a terminal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
