"""Time whole subnets in turns, so that a slow machine slows all of them alike."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fxelastic.edge.assembling import assemble
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import FIRST_RUNS, Array, Executor
from fxelastic.edge.latency_model import Measured
from fxelastic.edge.memory import GrowthLimit, give_back, resident_bytes
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.stopwatch import Stopwatch, low_quartile
from fxelastic.spec import Arch
from fxelastic.spec.cascade import Cascade, Servable

#: A call that runs a subnet once.
Run = Callable[[], object]

_MOST = 8  # subnets in a group, besides the original
_GROUP_BYTES = 2**30
# While a subnet is assembled, its weights are in memory up to six times; while it is opened, about
# three times.
_ASSEMBLING = 6
_ASSEMBLING_BYTES = 2**24
# The least number of rounds, if time is short; and the most, as a multiple of the wanted number, if
# the standard error of a time is above the tolerance.
_LEAST_ROUNDS, _MOST_ROUNDS, _TOLERANCE = 5, 4, 0.02
# For each input of a subnet, the least and the largest number of rounds, and the time that they
# should take, in s; and for each of several inputs, over whose sizes the noise averages out.
_ONE_INPUT, _SEVERAL_INPUTS = (12, 60, 0.25), (8, 40, 0.15)

logger = logging.getLogger(__name__)


def time_by_turns(runs: Sequence[Run], rounds: int, rest_s: float = 0.0) -> list[float]:
    """The lower quartile of each call's time, in ms.

    Args:
        runs: The calls.
        rounds: The timed runs of each, after one to warm up.
        rest_s: Rest after each round, in seconds.
    """
    samples = sample_by_turns(runs, rounds, Stopwatch(), rest_s=rest_s)
    return [low_quartile(times)[0] for times in samples]


def sample_by_turns(
    runs: Sequence[Run],
    rounds: int,
    watch: Stopwatch,
    *,
    rest_s: float = 0.0,
    until_s: float = math.inf,
    most: int = _MOST_ROUNDS,
) -> list[list[float]]:
    """The times of calls, in ms, sampled in turns; see `sample_groups`."""
    return sample_groups([runs], [rounds], watch, rest_s=rest_s, until_s=until_s, most=most)[0]


def sample_groups(
    groups: Sequence[Sequence[Run]],
    rounds: Sequence[int],
    watch: Stopwatch,
    *,
    rest_s: float = 0.0,
    until_s: float = math.inf,
    most: int = _MOST_ROUNDS,
) -> list[list[list[float]]]:
    """The times of groups of calls, in ms, sampled in turns.

    The calls of a group are sampled equally often: a call that comes more often finds its weights
    in the caches. The rounds of all groups are spread evenly over the same time, so that a machine
    that slows down for a while slows all groups alike. If the samples show disturbances, more
    rounds follow.

    Args:
        groups: The groups of calls.
        rounds: The timed runs of each call in a group, after one to warm up.
        watch: Times them.
        rest_s: Rest after each round, in seconds.
        until_s: When to end, by the stopwatch, after at least five runs of each call, or its
            ``rounds`` if that is less.
        most: The most rounds, as a multiple of ``rounds``.
    """
    samples: list[list[list[float]]] = [[[] for _ in runs] for runs in groups]
    order = np.random.default_rng(0)
    n_rounds = max(rounds, default=0)

    def n_turns(i: int) -> list[int]:
        """The runs of each call after round ``i``."""
        return [i * own // n_rounds for own in rounds]

    for i in range(most * n_rounds + 1):
        done = n_turns(i - 1) if i else [-1] * len(groups)
        enough = all(n >= min(own, _LEAST_ROUNDS) for n, own in zip(done, rounds, strict=True))
        steady = i > n_rounds and all(
            low_quartile(times)[1] <= _TOLERANCE for found in samples for times in found
        )
        if steady or (enough and watch.wall_s() >= until_s):
            break
        for runs, found, before, after in zip(groups, samples, done, n_turns(i), strict=True):
            if after == before:
                continue
            for j in order.permutation(len(runs)):
                begin = watch.begin()
                runs[j]()
                if i:
                    found[j].append(watch.ms_since(begin))
        if rest_s:
            time.sleep(rest_s)
    return samples


class SubnetTimer:
    """Times subnets of a bundle in one mode.

    Subnets are timed in groups that fit into memory. The original is in each group, and the result
    is the share of its time, so that a machine that slows down in between does not matter.
    """

    def __init__(
        self,
        executor: Executor,
        inputs: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        limit: GrowthLimit | None = None,
        watch: Stopwatch | None = None,
    ) -> None:
        """Prepare.

        Args:
            executor: Runs subnets branch after branch.
            inputs: The model's inputs; or several, of different sizes, for `time_at_sizes`.
            limit: Limit on the growth of the process; if None, a group has at most 1 GiB of
                weights.
            watch: Times the subnets.
        """
        self._executor = executor
        self._bundle: Bundle = executor.bundle
        self._inputs: Sequence[Mapping[str, Array]] = (
            (inputs,) if isinstance(inputs, Mapping) else inputs
        )
        self._limit = limit
        self._watch = watch or Stopwatch()
        self._adding_s = 0.0  # the longest time of loading a subnet in the present mode

    def time(
        self,
        archs: Sequence[Arch],
        mode: str,
        maker: SessionMaker,
        rounds: int | None = None,
        progress: Callable[[int], None] | None = None,
        until_s: float = math.inf,
    ) -> dict[Arch, Measured]:
        """The latencies of subnets; logs a warning about those that do not fit into memory.

        Args:
            archs: The subnets; the original is added.
            mode: ``assembled`` or ``paged``.
            maker: Makes sessions of assembled subnets.
            rounds: The least number of timed runs of each; None for the number that fits in a
                quarter of a second, 12 at least and 60 at most.
            progress: Called after each group with the number of subnets that are done.
            until_s: When to end, by the stopwatch. Subnets that would take longer are left out; the
                original is always loaded.

        Returns:
            The latencies, the original's first; empty if no other subnet was timed.
        """
        return self.time_at_sizes(archs, mode, maker, rounds, progress, until_s)[0]

    def time_at_sizes(
        self,
        archs: Sequence[Arch],
        mode: str,
        maker: SessionMaker,
        rounds: int | None = None,
        progress: Callable[[int], None] | None = None,
        until_s: float = math.inf,
    ) -> list[dict[Arch, Measured]]:
        """The latencies of subnets on all inputs.

        Within a group, subnets are timed in turns on all inputs, and compared with the original on
        the same input. All run equally often, on inputs that nobody asks for as well: one that
        came more often would find its weights in the caches.

        Args:
            archs: See `time`.
            mode: See `time`.
            maker: See `time`.
            rounds: See `time`.
            progress: See `time`.
            until_s: See `time`.

        Returns:
            The latencies on each of the inputs.
        """
        n_inputs = len(self._inputs)
        shares: list[dict[Arch, Measured]] = [{} for _ in range(n_inputs)]
        originals: list[list[float]] = [[] for _ in range(n_inputs)]
        too_large: list[Arch] = []
        self._adding_s = 0.0
        left = list(archs)
        n_done = 0
        while left and self._watch.wall_s() + 2 * self._adding_s < until_s:
            with self._group(mode, maker) as group:
                runs, run_s, late = self._filled(group, left, until_s)
                if len(runs) < 2:
                    if late:
                        break
                    too_large.append(left.pop(0))
                    continue
                timed = left[: len(runs) - 1]
                least, many, seconds = _SEVERAL_INPUTS if n_inputs > 1 else _ONE_INPUT
                samples = sample_groups(
                    list(zip(*runs, strict=True)),
                    [
                        rounds or int(min(many, max(least, seconds / max(1e-6, own_s))))
                        for own_s in run_s
                    ],
                    self._watch,
                    until_s=until_s,
                    most=_MOST_ROUNDS if n_inputs == 1 else 2,
                )
                for k, times in enumerate(samples):
                    (original_ms, noise), *others = map(low_quartile, times)
                    originals[k].append(original_ms)
                    for arch, (ms, its) in zip(timed, others, strict=True):
                        share = Measured(arch, ms / original_ms, math.hypot(noise, its))
                        shares[k][arch] = share
            n_done += len(timed)
            del left[: len(timed)]
            if progress is not None:
                progress(n_done)
        if too_large:
            logger.warning(
                "%d of %d %s subnets were not measured: memory_bytes is too small for them and the "
                "original",
                *(len(too_large), len(archs), mode),
            )
        return [self._latencies(*found) for found in zip(shares, originals, strict=True)]

    def in_loop(
        self, served: Sequence[Servable], index: int, maker: SessionMaker
    ) -> list[float] | None:
        """The latencies of some subnets and cascades, assembled, where nothing else runs, in ms.

        Their weights and code stay in the caches, as they do not while many subnets take turns. A
        small model takes half as long.

        Args:
            served: The subnets and cascades.
            index: Which of the inputs.
            maker: Makes their sessions.

        Returns:
            The lower quartile of each; None if there is no room for the sessions.
        """
        with self._assembled(maker) as group:
            runs: list[Run] = []
            for own in served:
                added = group.add(own, [self._inputs[index]])
                if not added:
                    return None
                runs += added
            samples = sample_by_turns(runs, _ONE_INPUT[1], self._watch)
        return [low_quartile(times)[0] for times in samples]

    def _latencies(
        self, shares: Mapping[Arch, Measured], originals: Sequence[float]
    ) -> dict[Arch, Measured]:
        """The latencies from the shares of the original's, and the original's in each group."""
        if not shares:
            return {}
        original = Measured(self._bundle.space.original, float(np.median(originals)))
        return {original.arch: original} | {
            arch: Measured(arch, m.ms * original.ms, m.noise) for arch, m in shares.items()
        }

    def _filled(
        self,
        group: _Group,
        archs: Sequence[Arch],
        until_s: float,
    ) -> tuple[list[list[Run]], Sequence[float], bool]:
        """Calls of the original and of as many subnets as the group has room and time for.

        Returns:
            The calls of each for all inputs, the times of the original in s, and whether time ended
            the group.
        """
        runs: list[list[Run]] = []
        n_bytes = 0
        run_s: list[float] = []
        wall_s = self._watch.wall_s
        for arch in (self._bundle.space.original, *archs[:_MOST]):
            n_bytes += _weight_bytes(self._bundle, arch)
            # Without a limit, a group has at least two subnets, however large.
            if self._limit is None and len(runs) > 1 and n_bytes > _GROUP_BYTES:
                break
            begin_s = wall_s()
            rounds_s = (_LEAST_ROUNDS + 1) * (len(runs) + 1) * sum(run_s)
            if runs and begin_s + self._adding_s + rounds_s > until_s:
                return runs, run_s, True
            added = group.add(arch, self._inputs)
            self._adding_s = max(self._adding_s, wall_s() - begin_s)
            if added is None:
                break
            if not runs:
                for run in added:
                    begin_s = wall_s()
                    run()
                    run_s.append(wall_s() - begin_s)
            runs.append(added)
        return runs, run_s, False

    @contextmanager
    def _group(self, mode: str, maker: SessionMaker) -> Iterator[_Group]:
        if mode != "paged":
            with self._assembled(maker) as group:
                yield group
            return
        if self._limit is not None:
            self._executor.close()
        yield _Paged(self._executor)

    @contextmanager
    def _assembled(self, maker: SessionMaker) -> Iterator[_Assembled]:
        if self._limit is not None:
            # Open sessions of branches need room that the subnets need.
            self._executor.close()
        with tempfile.TemporaryDirectory(prefix="fxelastic-") as folder:
            yield _Assembled(self._bundle, maker, Path(folder), self._limit)


class _Group(Protocol):
    """Subnets that are in memory together."""

    def add(self, arch: Arch, inputs: Sequence[Mapping[str, Array]]) -> list[Run] | None:
        """Load one, and run it on each of the inputs until it stops to allocate.

        Returns:
            The calls for each of the inputs; None if there is no room.
        """


@dataclass
class _Paged:
    executor: Executor

    def add(self, arch: Arch, inputs: Sequence[Mapping[str, Array]]) -> list[Run] | None:
        n_dropped = self.executor.n_dropped
        own = [_own_inputs(self.executor.bundle, arch, given) for given in inputs]
        runs: list[Run] = [partial(self.executor.run, arch, given) for given in own]
        _warm_up(runs)
        # Dropped sessions belong to the group, since no others were open.
        return runs if self.executor.n_dropped == n_dropped else None


@dataclass
class _Assembled:
    bundle: Bundle
    maker: SessionMaker
    folder: Path
    limit: GrowthLimit | None
    n_added: int = 0
    run_bytes: int = 0  # the memory of the first run of a subnet

    def add(self, arch: Servable, inputs: Sequence[Mapping[str, Array]]) -> list[Run] | None:
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
        own = [_own_inputs(self.bundle, arch, given) for given in inputs]
        feeds = [assembled_feeds(session, self.bundle, given) for given in own]
        runs: list[Run] = [partial(session.run, None, given) for given in feeds]
        before_bytes = resident_bytes()
        _warm_up(runs)
        self.run_bytes = max(self.run_bytes, resident_bytes() - before_bytes)
        return None if self.limit is not None and not self.limit.has_room() else runs


def _warm_up(runs: Sequence[Run]) -> None:
    for run in runs:
        for _ in range(FIRST_RUNS):
            run()


def _own_inputs(bundle: Bundle, arch: Servable, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs of a subnet, with its part of each cache, from those of the model."""
    parts = () if isinstance(arch, Cascade) else bundle.space.cache_of(arch)
    kept = {part.past: part for part in parts}
    return {k: kept[k].cut(v) if k in kept else v for k, v in inputs.items()}


def _weight_bytes(bundle: Bundle, arch: Servable) -> int:
    return sum(bundle.segment(branch).weight_bytes for branch in arch.branches)


def assembled_feeds(session: Any, bundle: Bundle, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs that an assembled model has: onnxruntime drops those that no node reads."""
    names = {info.name for info in session.get_inputs()}
    return {info.name: inputs[info.name] for info in bundle.inputs if info.name in names}
