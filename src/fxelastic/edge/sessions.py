"""Sessions of onnxruntime, and their threads."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

import onnxruntime as ort
import psutil

from fxelastic.edge import run_limit
from fxelastic.edge.monitoring.system_files import SystemFiles
from fxelastic.edge.run_limit import BoundedSession, RunLimit
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.errors import UsageError

Model: TypeAlias = "VerifiedModel | Path"

# The folder of external data, for models that are bytes.
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


@cache
def usable_threads(root: Path = Path("/")) -> int:
    """The number of threads for one on each core that this process may use.

    onnxruntime itself counts the machine's cores. In a container with a quota of processor time,
    more threads than the quota are stopped for a part of each tenth of a second.

    Args:
        root: The root of the file system; another one for a recorded tree.

    Returns:
        The number; 0 to leave it to onnxruntime, because the process may use all cores.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = SystemFiles(root).quota_cores()
    if quota is not None:
        allowed = min(allowed, max(1, math.ceil(quota)))
    return allowed if allowed < cores else 0


@dataclass
class SessionMaker:
    """Makes sessions whose threads sleep while they wait.

    By default the threads of a session spin for some time after they have worked. They then compete
    with other sessions' threads and with other processes for the cores: a chain of sessions is ten
    times slower, and a model beside another process far slower than its share.

    A process-wide pool of onnxruntime would solve this for sessions, but not for other processes.
    Once it exists, onnxruntime rejects every session that does not use it, also sessions of other
    libraries. So it is used only if another library has made it.

    Attributes:
        threads: Threads to compute with; 0 for one for each core that this process may use.
        providers: Onnxruntime's execution providers, the preferred one first.
        shared_arena: Whether sessions compute in memory of one arena of the process. Otherwise
            each has its own and keeps the memory of its largest batch: 120 MiB instead of 7 for 87
            sessions of a small residual network, and 1,287 MiB instead of 53 for 58 sessions of a
            larger one at batch size 20.
        sizes_vary: Whether runs have inputs of many sizes. onnxruntime then keeps no plan of the
            memory for each combination of them; runs take as long without plans.
        run_s: How long a run of a session may take, in seconds; None for `RUN_S`.
    """

    threads: int = 0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    shared_arena: bool = False
    sizes_vary: bool = False
    run_s: float | None = None
    _process_wide: bool = field(init=False, repr=False, default=False)
    _limit: RunLimit = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the limit that the sessions share."""
        self._limit = RunLimit(run_limit.RUN_S if self.run_s is None else self.run_s)

    def open_prepared(self, model: Model) -> ort.InferenceSession:
        """Make a session from a model that onnxruntime has optimised on this machine.

        Args:
            model: The model, or the path of a file that no other process can replace.
        """
        return self._open(model, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)

    def open_branch(self, model: Model) -> ort.InferenceSession:
        """Make a session from a model of a bundle.

        Args:
            model: The model, or the path of a file that no other process can replace.
        """
        return self._open(model, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)

    def _open(self, model: Model, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
        if not self._process_wide:
            try:
                return self._session(model, level)
            except RuntimeError as e:
                # onnxruntime has no function to check for it beforehand.
                if "global thread pool" not in str(e):
                    raise
            self._process_wide = True
        return self._session(model, level)

    def _session(self, model: Model, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        # Errors are raised, too; on stderr they would look like failures even if a run is retried.
        options.log_severity_level = 4
        options.enable_mem_pattern = not self.sizes_vary
        if self._process_wide:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self.threads or usable_threads()
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.shared_arena:
            _register_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        session = BoundedSession(source(model, options), options, providers=list(self.providers))
        session.limit = self._limit
        return session


def check_providers(providers: Sequence[str]) -> None:
    """Check that the installed onnxruntime has execution providers; it would use others instead.

    Raises:
        UsageError: One is not available, or there are none.
    """
    available = ort.get_available_providers()
    if not providers or not set(available).issuperset(providers):
        raise UsageError(
            "an execution provider is not available",
            expected="some of " + ", ".join(available),
            got=", ".join(providers) or "none",
        )


def source(model: Model, options: ort.SessionOptions) -> str | bytes:
    """What onnxruntime makes a session from.

    Args:
        model: The model.
        options: The session's options; the place of the model's external data is added.
    """
    if not isinstance(model, VerifiedModel):
        return os.fspath(model)
    if model.place is not None:
        options.add_session_config_entry(_DATA_FOLDER, os.fspath(model.place))
    return model.data


@cache
def _register_arena() -> None:
    """Make the arena of the process; sessions that do not use it are not affected."""
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    ort.create_and_register_allocator(memory, None)
