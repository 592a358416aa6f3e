"""The original's own results, which replace the targets of data without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fxelastic.edge.executor import Array, Executor
from fxelastic.edge.searching.scores import Metric
from fxelastic.errors import BundleError, UsageError


class Answers:
    """The original's results for each sample, as a metric's targets.

    The original runs once on each sample, when the sample is first needed; its results stay in
    memory.
    """

    def __init__(self, runner: Executor, metric: Metric, n_samples: int) -> None:
        """Start without results.

        Args:
            runner: Runs branches.
            metric: Turns the original's results into targets.
            n_samples: Samples of the data.
        """
        self._runner = runner
        self._metric = metric
        self._kept: list[Array | None] = [None] * n_samples
        self._has_any = False

    def targets(
        self, inputs: Mapping[str, Array], numbers: Array, stop: Callable[[], bool]
    ) -> Array | None:
        """The targets of a batch.

        Args:
            inputs: The batch, whose samples have equal sizes.
            numbers: The samples' numbers, from 0.
            stop: Called before each branch; returns whether to end.

        Returns:
            The targets, or None if stopped.

        Raises:
            BundleError: The original can't be run, or returns NaN.
            UsageError: Its results do not hold one item for each sample.
        """
        known = [self._kept[i] for i in numbers]
        if any(answer is None for answer in known):
            found = self._run(inputs, len(numbers), stop)
            if found is None:
                return None
            if not self._has_any:
                self._has_any = True
                self._runner.make_room(found.nbytes // max(len(found), 1) * len(self._kept))
            # Copies: a view would keep the results of the whole batch in memory.
            known = [np.array(answer) for answer in found]
            for i, answer in zip(numbers, known, strict=True):
                self._kept[i] = answer
        return np.stack([answer for answer in known if answer is not None])

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
                "the original returns NaN, so its results can't replace targets",
                expected="finite outputs of the original",
                got="NaN",
                fix="leave out the samples that lead to NaN, or pass targets",
            )
        found = np.asarray(self._metric.answers(outputs))
        if found.ndim == 0 or len(found) != n_samples:
            raise UsageError(
                f"{self._metric.name} needs targets: results do not hold one item for each sample",
                expected=f"results whose first size is the number of samples, {n_samples}",
                got=str(found.shape),
                fix="choose another result, as in score='cosine:RESULT', or pass targets",
            )
        return found
