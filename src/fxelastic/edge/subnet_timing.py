"""Time whole subnets, by turns, so that what slows the machine slows all alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fxelastic.edge.assembly import assemble
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.execution import Array, Executor
from fxelastic.edge.sessions import SessionMaker
from fxelastic.spec import Arch

#: A call that runs a subnet once.
Run = Callable[[], object]


def time_by_turns(runs: Sequence[Run], rounds: int, rest_s: float = 0.0) -> list[float]:
    """The lower quartile of each call's time, in ms.

    Args:
        runs: The calls.
        rounds: How often each is timed, besides once to warm up.
        rest_s: Rest after each round, in seconds.
    """
    samples: list[list[float]] = [[] for _ in runs]
    order = np.random.default_rng(0)
    for i in range(rounds + 1):
        for j in order.permutation(len(runs)):
            begin_s = time.perf_counter()
            runs[j]()
            if i:
                samples[j].append(1e3 * (time.perf_counter() - begin_s))
        if rest_s:
            time.sleep(rest_s)
    return [float(np.percentile(times, 25)) for times in samples]


class SubnetTimer:
    """Times subnets of a bundle in one of the ways of running them.

    Subnets are timed in groups that fit into memory. The original is in each group: by what it
    takes there the group's times are brought to those of the first group, so that a machine that
    becomes slower in between does no harm.
    """

    def __init__(
        self, executor: Executor, inputs: Mapping[str, Array], group_bytes: int = 2**30
    ) -> None:
        """Prepare.

        Args:
            executor: Runs subnets branch after branch.
            inputs: The model's inputs.
            group_bytes: Weights of the subnets in memory at once.
        """
        self._executor = executor
        self._bundle: Bundle = executor.bundle
        self._inputs = inputs
        self._group_bytes = group_bytes
        self._reference_ms: dict[str, float] = {}

    def time(
        self,
        archs: Sequence[Arch],
        mode: str,
        maker: SessionMaker,
        rounds: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[float]:
        """The latencies of subnets, in ms.

        Args:
            archs: The subnets.
            mode: ``assembled`` or ``paged``.
            rounds: How often each is timed; None for as often as fits in a quarter of a second,
                12 times at least and 60 at most.
            maker: Makes sessions of assembled subnets.
            progress: Told after each group how many are done.
        """
        found: list[float] = []
        for group in self._groups(archs):
            with self._runs((self._bundle.space.original, *group), mode, maker) as runs:
                reference_ms, *times = time_by_turns(runs, rounds or self._rounds(runs[0]))
            first_ms = self._reference_ms.setdefault(mode, reference_ms)
            found += [ms * first_ms / reference_ms for ms in times]
            if progress is not None:
                progress(len(found))
        return found

    @staticmethod
    def _rounds(run: Run) -> int:
        run()
        begin_s = time.perf_counter()
        run()
        return int(min(60, max(12, 0.25 / max(1e-6, time.perf_counter() - begin_s))))

    def _groups(self, archs: Sequence[Arch]) -> Iterator[list[Arch]]:
        group: list[Arch] = []
        n_bytes = 0
        for arch in archs:
            own = sum(self._bundle.segment(branch).weight_bytes for branch in arch)
            if group and (n_bytes + own > self._group_bytes or len(group) == 8):
                yield group
                group, n_bytes = [], 0
            group.append(arch)
            n_bytes += own
        if group:
            yield group

    @contextmanager
    def _runs(self, archs: Sequence[Arch], mode: str, maker: SessionMaker) -> Iterator[list[Run]]:
        if mode == "paged":
            yield [partial(self._executor.run, arch, self._inputs) for arch in archs]
            return
        with tempfile.TemporaryDirectory(prefix="fxelastic-") as folder:
            sessions = []
            for i, arch in enumerate(archs):
                path = Path(folder) / str(i) / "subnet.onnx"
                path.parent.mkdir()
                assemble(self._bundle, arch, path)
                sessions.append(maker.open_branch(path))
            feeds = assembled_feeds(sessions[0], self._bundle, self._inputs)
            yield [partial(session.run, None, feeds) for session in sessions]


def assembled_feeds(session: Any, bundle: Bundle, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs that an assembled model reads; it has none that nothing reads."""
    names = {info.name for info in session.get_inputs()}
    return {info.name: inputs[info.name] for info in bundle.inputs if info.name in names}
