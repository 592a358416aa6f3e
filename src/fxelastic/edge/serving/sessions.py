"""Sessions for serving: all of them share the process's threads."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionMaker:
    """Makes sessions that share one pool of threads.

    Pools of each session would fight for the cores: a chain of sessions is then several times
    slower. onnxruntime makes the shared pool once for a process, before the first session; where
    another library has made a session without one, each session here gets threads of its own that
    do not spin while they wait.

    Attributes:
        threads: Threads to compute with; 0 for one for each core.
    """

    threads: int = 0

    def __post_init__(self) -> None:
        """Ask for the shared pool, unless the process has made its choice already."""
        # Fails when there has been a session or a choice before; `_open` finds out which.
        with suppress(Exception):
            ort.set_global_thread_pool_sizes(self.threads, 1)

    def open_prepared(self, path: Path) -> ort.InferenceSession:
        """Make a session from a model that onnxruntime has optimised on this machine."""
        return self._open(path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)

    def open_branch(self, path: Path) -> ort.InferenceSession:
        """Make a session from a file of a bundle."""
        return self._open(path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)

    def _open(self, path: Path, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        options.graph_optimization_level = level
        options.log_severity_level = 3
        try:
            return _session(path, options)
        except RuntimeError as e:
            if "GlobalThreadPools" not in str(e):
                raise
        _log.warning("the process has no shared threads: make no session before serving")
        options.use_per_session_threads = True
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return _session(path, options)


def _session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
