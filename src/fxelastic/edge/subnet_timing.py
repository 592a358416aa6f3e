"""Time whole subnets, by turns, so that what slows the machine slows all alike."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fxelastic.edge.assembly import assemble
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.execution import FIRST_RUNS, Array, Executor
from fxelastic.edge.memory import GrowthLimit, give_back, resident_bytes
from fxelastic.edge.sessions import SessionMaker
from fxelastic.spec import Arch

#: A call that runs a subnet once.
Run = Callable[[], object]

_MOST = 8  # subnets in a group, besides the original
_GROUP_BYTES = 2**30
# While a subnet is assembled, its weights are in memory up to so many times; while it is opened,
# some three times.
_ASSEMBLING = 6
_ASSEMBLING_BYTES = 2**24

logger = logging.getLogger(__name__)


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
        self, executor: Executor, inputs: Mapping[str, Array], limit: GrowthLimit | None = None
    ) -> None:
        """Prepare.

        Args:
            executor: Runs subnets branch after branch.
            inputs: The model's inputs.
            limit: What the process may grow by; where None, a group's weights take 1 GiB at most.
        """
        self._executor = executor
        self._bundle: Bundle = executor.bundle
        self._inputs = inputs
        self._limit = limit
        self._reference_ms: dict[str, float] = {}

    def time(
        self,
        archs: Sequence[Arch],
        mode: str,
        maker: SessionMaker,
        rounds: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[Arch, float]:
        """The latencies of subnets, in ms; a warning tells of those that do not fit into memory.

        Args:
            archs: The subnets.
            mode: ``assembled`` or ``paged``.
            rounds: How often each is timed; None for as often as fits in a quarter of a second,
                12 times at least and 60 at most.
            maker: Makes sessions of assembled subnets.
            progress: Told after each group how many are done.
        """
        found: dict[Arch, float] = {}
        too_large: list[Arch] = []
        left = list(archs)
        while left:
            with self._group(mode, maker) as group:
                runs = self._filled(group, left)
                if len(runs) < 2:
                    too_large.append(left.pop(0))
                    continue
                reference_ms, *times = time_by_turns(runs, rounds or self._rounds(runs[0]))
            first_ms = self._reference_ms.setdefault(mode, reference_ms)
            group_archs, left = left[: len(times)], left[len(times) :]
            found |= {
                arch: ms * first_ms / reference_ms
                for arch, ms in zip(group_archs, times, strict=True)
            }
            if progress is not None:
                progress(len(found))
        if too_large:
            logger.warning(
                "%d of %d %s subnets were not measured, because memory_bytes is too small for "
                "them beside the original",
                *(len(too_large), len(archs), mode),
            )
        return found

    @staticmethod
    def _rounds(run: Run) -> int:
        run()
        begin_s = time.perf_counter()
        run()
        return int(min(60, max(12, 0.25 / max(1e-6, time.perf_counter() - begin_s))))

    def _filled(self, group: _Group, archs: Sequence[Arch]) -> list[Run]:
        """Calls of the original and as many subnets as the group has room for."""
        runs: list[Run] = []
        n_bytes = 0
        for arch in (self._bundle.space.original, *archs[:_MOST]):
            n_bytes += _weight_bytes(self._bundle, arch)
            # Without a limit, what two large subnets take is taken.
            if self._limit is None and len(runs) > 1 and n_bytes > _GROUP_BYTES:
                break
            run = group.add(arch)
            if run is None:
                break
            runs.append(run)
        return runs

    @contextmanager
    def _group(self, mode: str, maker: SessionMaker) -> Iterator[_Group]:
        if self._limit is not None:
            # What is there of branches takes room from those that are to come.
            self._executor.close()
        if mode == "paged":
            yield _Paged(self._executor, self._inputs)
            return
        with tempfile.TemporaryDirectory(prefix="fxelastic-") as folder:
            yield _Assembled(self._bundle, self._inputs, maker, Path(folder), self._limit)


class _Group(Protocol):
    """Subnets that are in memory together."""

    def add(self, arch: Arch) -> Run | None:
        """Load one, and run it until it takes no more memory; None where there is no room."""


@dataclass
class _Paged:
    executor: Executor
    inputs: Mapping[str, Array]

    def add(self, arch: Arch) -> Run | None:
        n_dropped = self.executor.n_dropped
        run = partial(self.executor.run, arch, self.inputs)
        for _ in range(FIRST_RUNS):
            run()
        # Those dropped are the group's, for nothing else was there.
        return run if self.executor.n_dropped == n_dropped else None


@dataclass
class _Assembled:
    bundle: Bundle
    inputs: Mapping[str, Array]
    maker: SessionMaker
    folder: Path
    limit: GrowthLimit | None
    n_added: int = 0
    run_bytes: int = 0  # what the first run of a subnet took

    def add(self, arch: Arch) -> Run | None:
        needed_bytes = _ASSEMBLING * _weight_bytes(self.bundle, arch)
        needed_bytes += max(_ASSEMBLING_BYTES, self.run_bytes)
        if self.limit is not None and not self.limit.has_room(needed_bytes):
            return None
        path = self.folder / str(self.n_added) / "subnet.onnx"
        self.n_added += 1
        path.parent.mkdir()
        assemble(self.bundle, arch, path)
        if self.limit is not None:
            give_back()
        session = self.maker.open_branch(path)
        run = partial(session.run, None, assembled_feeds(session, self.bundle, self.inputs))
        before_bytes = resident_bytes()
        for _ in range(FIRST_RUNS):
            run()
        self.run_bytes = max(self.run_bytes, resident_bytes() - before_bytes)
        return None if self.limit is not None and not self.limit.has_room() else run


def _weight_bytes(bundle: Bundle, arch: Arch) -> int:
    return sum(bundle.segment(branch).weight_bytes for branch in arch)


def assembled_feeds(session: Any, bundle: Bundle, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs that an assembled model reads; it has none that nothing reads."""
    names = {info.name for info in session.get_inputs()}
    return {info.name: inputs[info.name] for info in bundle.inputs if info.name in names}
