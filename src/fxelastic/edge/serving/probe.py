"""Measuring branches one at a time, beside the requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.made_up_inputs import made_up
from fxelastic.errors import UsageError
from fxelastic.spec import Arch


@dataclass(frozen=True)
class BranchTimer:
    """Runs each branch of a subnet by itself, a few times, with rests in between.

    One branch is in memory at a time. The lowest latency of several counts: whatever else runs
    makes a branch slower, never quicker. Random values of the right shape stand for its inputs;
    integers are 0, which is a valid index of everything.

    Attributes:
        bundle: The bundle.
        open_session: Makes a session from the path of a branch's ONNX file.
        batch_size: Batch size of the inputs.
        repeats: How often each branch is run, besides once to warm up.
        rest_s: Rest after each run, so that requests are hardly disturbed, in seconds.
    """

    bundle: Bundle
    open_session: Callable[[Path], Any]
    batch_size: int = 1
    repeats: int = 5
    rest_s: float = 0.02

    def measure(self, arch: Arch, stop: threading.Event) -> Mapping[str, float]:
        """Latencies of a subnet's branches.

        Args:
            arch: The subnet.
            stop: Set to end early.

        Returns:
            In ms by branch id; fewer when stopped. Branches whose inputs' sizes are not known
            from the batch size are left out.
        """
        rng = np.random.default_rng(0)
        latencies: dict[str, float] = {}
        for branch in arch:
            inputs = self._inputs(branch, rng)
            if inputs is None:
                continue
            session = self.open_session(self.bundle.model_path(branch))
            best_s = float("inf")
            for i in range(self.repeats + 1):
                begin_s = time.perf_counter()
                session.run(None, inputs)
                seconds = time.perf_counter() - begin_s
                if i:
                    best_s = min(best_s, seconds)
                if stop.wait(self.rest_s):
                    return latencies
            latencies[branch] = 1e3 * best_s
            del session
        return latencies

    def _inputs(self, branch: str, rng: np.random.Generator) -> dict[str, Any] | None:
        inputs: dict[str, Any] = {}
        for name in self.bundle.segment(branch).inputs:
            info = self.bundle.values[name]
            try:
                shape = info.shape_at(self.batch_size)
            except UsageError:
                return None
            inputs[name] = made_up(info.dtype, shape, rng, whole=int(info.dtype == "bool"))
        return inputs
