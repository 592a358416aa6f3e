"""What holds for all tests."""

from __future__ import annotations

import os
import signal

# Workers side by side keep all cores busy; torch is to compute with one thread in each of them, and
# in the processes that they start. Threads that wait for each other took 8 % more time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts jobs in the background with Ctrl-C ignored, and their children inherit that. Tests
# that interrupt a process need it to be as in a terminal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
