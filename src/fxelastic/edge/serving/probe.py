"""Measuring branches one at a time, beside the requests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.synthetic_inputs import CHOICES, synthetic
from fxelastic.errors import UsageError
from fxelastic.spec import Arch


@dataclass(frozen=True)
class BranchTimer:
    """Runs each branch of a subnet by itself, a few times, with rests in between.

    One branch is in memory at a time. The lowest latency of several counts: whatever else runs
    makes a branch slower, never quicker. Random values of the right shape stand for its inputs,
    see `synthetic`; where the branch fails on integers that were drawn, the lowest do.

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
        latencies: dict[str, float] = {}
        for branch in arch:
            candidates = self._inputs(branch)
            if not candidates:
                continue
            session = self.open_session(self.bundle.model_path(branch))
            inputs = _running(session, candidates)
            best_s = float("inf")
            for _ in range(self.repeats):
                if stop.wait(self.rest_s):
                    return latencies
                begin_s = time.perf_counter()
                session.run(None, inputs)
                best_s = min(best_s, time.perf_counter() - begin_s)
            latencies[branch] = 1e3 * best_s
            del session
        return latencies

    def _inputs(self, branch: str) -> list[dict[str, Any]]:
        """Inputs for each choice of integers; empty where their sizes are not known."""
        infos = [self.bundle.values[name] for name in self.bundle.segment(branch).inputs]
        try:
            shapes = [info.shape_at(self.batch_size) for info in infos]
        except UsageError:
            return []
        found = []
        for choice in CHOICES:
            rng = np.random.default_rng(0)
            arrays = [synthetic(i, s, rng, choice) for i, s in zip(infos, shapes, strict=True)]
            found.append({info.name: array for info, array in zip(infos, arrays, strict=True)})
        return found


def _running(session: Any, candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first inputs on which a session runs; also warms it up."""
    for inputs in candidates[:-1]:
        with contextlib.suppress(Exception):  # onnxruntime's derive from Exception one by one
            session.run(None, inputs)
            return inputs
    session.run(None, candidates[-1])
    return candidates[-1]
