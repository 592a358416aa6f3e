"""Time branches between other branches, in random subnets."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fxelastic.edge.executor import FIRST_RUNS, Array, Executor, State
from fxelastic.edge.stopwatch import Stopwatch, low_quartile, quartile_interval
from fxelastic.errors import BundleError
from fxelastic.spec import Arch, BranchSpec
from fxelastic.spec.branch_latency import BranchLatency


@dataclass
class BranchTiming:
    """Times every branch by running subnets branch by branch.

    A branch that runs repeatedly on its own finds its weights and inputs in the caches. In a
    subnet its weights are cold and its input is warm, so each branch is timed within passes over
    whole subnets. Each pass chooses the branches with the fewest samples, so that all branches get
    about the same number, spread over the whole time. If the machine is slow for a while, this
    affects some samples of each branch.

    Attributes:
        executor: Runs the branches.
        inputs: The model's inputs.
        seed: Seed of the random choice of subnets.
        finite: Whether the originals return finite values for the inputs, so that all branches
            must return finite values.
        watch: Times the branches.
        samples_ms: The measured times, by branch id.
        activation_bytes: The size of the values that each branch reads and writes, by branch id.
    """

    executor: Executor
    inputs: Mapping[str, Array]
    seed: int = 0
    finite: bool = True
    watch: Stopwatch = field(default_factory=Stopwatch)
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    activation_bytes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(f"branch timing {self.seed}")
        self._warm: set[str] = set()
        for spec in self.executor.bundle.space.branches:
            self.samples_ms.setdefault(spec.id, [])

    def run(
        self,
        n_samples: int,
        tolerance: float,
        until_s: float,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Time branches until the confidence intervals are narrow, or the time is over.

        Args:
            n_samples: The minimum number of samples of each branch.
            tolerance: Take up to four times as many samples of a branch while half the width of
                the 95 % confidence interval of its lower quartile exceeds this share of it.
            until_s: When to end, by the stopwatch; each branch gets at least three samples.
            progress: Called after each pass with the share that is done.

        Raises:
            BundleError: A branch can't run, or returns values that are not finite for finite
                inputs.
        """
        while True:
            wanting = [
                b for b, s in self.samples_ms.items() if self._wants(s, n_samples, tolerance)
            ]
            least = min(len(samples) for samples in self.samples_ms.values())
            if not wanting or (self.watch.wall_s() >= until_s and least >= 3):
                return
            self.time(self._through(min(wanting, key=lambda b: len(self.samples_ms[b]))))
            if progress is not None:
                done = sum(min(len(s), n_samples) for s in self.samples_ms.values())
                progress(done / (n_samples * len(self.samples_ms)))

    def time(self, arch: Arch) -> float:
        """Run a subnet once, and record the time of each branch; returns the total in ms."""
        executor = self.executor
        state = executor.start(self.inputs)
        total_ms = 0.0
        for branch in arch:
            if self._is_fresh(branch):
                for _ in range(FIRST_RUNS):
                    executor.advance(branch, state)
            begin = self.watch.begin()
            after = executor.advance(branch, state)
            ms = self.watch.ms_since(begin)
            total_ms += ms
            self.samples_ms[branch].append(ms)
            if branch not in self.activation_bytes:
                segment = executor.bundle.segment(branch)
                self._check(branch, after, state)
                read = sum(_bytes(state[name]) for name in segment.inputs)
                given = sum(_bytes(after[name]) for name in segment.outputs if name in after)
                self.activation_bytes[branch] = read + given
            state = after
        return total_ms

    def time_cold(self, branch: str, flush: Callable[[], object]) -> float:
        """The time of a branch in a subnet after the caches were flushed, in ms; not recorded."""
        executor = self.executor
        state = executor.start(self.inputs)
        for other in self._through(branch):
            if self._is_fresh(other):
                for _ in range(FIRST_RUNS):
                    executor.advance(other, state)
            if other != branch:
                state = executor.advance(other, state)
                continue
            flush()
            begin = self.watch.begin()
            executor.advance(branch, state)
            return self.watch.ms_since(begin)
        return 0.0  # every tiling through the branch holds it

    def row(self, branch: str) -> BranchLatency:
        """The measurements of a branch."""
        samples = self.samples_ms[branch]
        median, high = np.percentile(samples, (50, 75))
        return BranchLatency(
            low_quartile(samples)[0],
            float(median),
            float(high),
            len(samples),
            self.executor.bundle.segment(branch).weight_bytes,
            self.activation_bytes.get(branch, 0),
        )

    def _is_fresh(self, branch: str) -> bool:
        """Whether a branch's session has not run yet; creates the session if needed."""
        before = self.executor.n_loaded
        self.executor.session(branch)
        if self.executor.n_loaded == before and branch in self._warm:
            return False
        self._warm.add(branch)
        return True

    def _wants(self, samples: list[float], n_samples: int, tolerance: float) -> bool:
        if len(samples) < n_samples:
            return True
        if len(samples) >= 4 * n_samples:
            return False
        low, quartile, high = quartile_interval(samples)
        return high - low > 2 * tolerance * quartile

    def _through(self, branch: str) -> Arch:
        """A subnet with this branch, and elsewhere the branches with the fewest samples."""
        space = self.executor.bundle.space
        spec = space.by_id[branch]
        before = self._walk(0, spec.start)
        return Arch((*before, branch, *self._walk(spec.stop, space.n_blocks)))

    def _walk(self, start: int, stop: int) -> list[str]:
        chosen: list[str] = []
        while start < stop:
            options = [s for s in self.executor.bundle.space.starting_at[start] if s.stop <= stop]
            # Every block has its original, so there is always an option.
            spec = min(options, key=self._urgency)
            chosen.append(spec.id)
            start = spec.stop
        return chosen

    def _urgency(self, spec: BranchSpec) -> tuple[int, float]:
        return len(self.samples_ms[spec.id]), self._random.random()

    def _check(self, branch: str, after: State, before: State) -> None:
        segment = self.executor.bundle.segment(branch)
        if self.finite and _finite(before, segment.inputs) and not _finite(after, segment.outputs):
            raise BundleError(
                f"branch {branch!r} ({segment.file}) returns values that are not finite",
                expected="finite values for finite inputs",
                got="NaN or infinity",
                fix="train or calibrate the supernet again, and export it",
            )


def _bytes(value: object) -> int:
    array = value.numpy()  # type: ignore[attr-defined]
    return int(array.nbytes)


def _finite(state: State, names: tuple[str, ...]) -> bool:
    arrays = (state[name].numpy() for name in names if name in state)
    return all(a.dtype.kind not in "fc" or bool(np.isfinite(a).all()) for a in arrays)
