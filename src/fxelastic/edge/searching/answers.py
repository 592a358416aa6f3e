"""The original's own results as the targets of data that has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from fxelastic.edge.execution import Array, State
from fxelastic.edge.searching.scores import Metric
from fxelastic.errors import BundleError, UsageError


class Runner(Protocol):
    """Runs branches, as an `Executor` does."""

    @property
    def bundle(self) -> Any:
        """The bundle whose branches it runs."""

    def start(self, inputs: Mapping[str, Array]) -> State:
        """The values before the first block."""

    def advance(self, branch: str, state: State) -> State:
        """The values after a branch."""

    def results(self, state: State) -> list[Array]:
        """The flat results."""

    def make_room(self, n_bytes: int) -> None:
        """Free memory until the process may grow by so many bytes."""


class Answers:
    """The original's results for each sample, as a metric's targets.

    The original runs once on each sample, when the sample is first needed; its results stay in
    memory.
    """

    def __init__(self, runner: Runner, metric: Metric, n_samples: int) -> None:
        """Start without results.

        Args:
            runner: Runs branches.
            metric: Turns the original's results into targets.
            n_samples: Samples of the data.
        """
        self._runner = runner
        self._metric = metric
        self._known = np.zeros(n_samples, bool)
        self._kept: Array | None = None

    def targets(
        self, inputs: Mapping[str, Array], numbers: Array, stop: Callable[[], bool]
    ) -> Array | None:
        """The targets of a batch.

        Args:
            inputs: The batch.
            numbers: The samples' numbers, from 0.
            stop: Asked before each branch whether to end.

        Returns:
            The targets, or None where it was stopped.

        Raises:
            BundleError: The original can't be run, or gives NaN.
            UsageError: Its results are not sample by sample.
        """
        if self._kept is None or not self._known[numbers].all():
            found = self._run(inputs, len(numbers), stop)
            if found is None:
                return None
            if self._kept is None:
                shape = (len(self._known), *found.shape[1:])
                self._runner.make_room(found.nbytes // max(len(found), 1) * len(self._known))
                self._kept = np.empty(shape, found.dtype)
            self._kept[numbers] = found
            self._known[numbers] = True
        return np.asarray(self._kept[numbers])

    def _run(
        self, inputs: Mapping[str, Array], n_samples: int, stop: Callable[[], bool]
    ) -> Array | None:
        state = self._runner.start(inputs)
        for branch in self._runner.bundle.space.original:
            if stop():
                return None
            state = self._runner.advance(branch, state)
        outputs = self._runner.results(state)
        if any(array.dtype.kind in "fc" and np.isnan(array).any() for array in outputs):
            raise BundleError(
                "the original gives NaN, so its results can't stand for targets",
                expected="numbers in its outputs",
                got="NaN",
                fix="leave out the samples that it gives NaN for, or pass targets",
            )
        found = np.asarray(self._metric.answers(outputs))
        if found.ndim == 0 or len(found) != n_samples:
            raise UsageError(
                f"{self._metric.name} needs targets for results that are not sample by sample",
                expected=f"results whose first size is the number of samples, {n_samples}",
                got=str(found.shape),
                fix="choose another result, as in score='cosine:RESULT', or pass targets",
            )
        return found
