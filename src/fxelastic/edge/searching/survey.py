"""Scores a few subnets on as many samples as there is time for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fxelastic.edge.searching.evaluation import Batch, Evaluator
from fxelastic.edge.searching.tally import BatchScore, Tally
from fxelastic.spec import Arch


class Survey:
    """Evaluates subnets batch by batch, all on the same samples, and tells how many these are.

    The evaluator's scores are on these samples from then on. Small batches come first, so that each
    subnet soon has a score; later calls of `go_on` add subnets, and samples where time is left.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        """Start without samples.

        Args:
            evaluator: Evaluates; it knows no scores yet.
        """
        self._evaluator = evaluator
        self._data = evaluator.data
        self._batches = list(evaluator.batches())
        self._margins = evaluator.margins
        self._tallies: dict[Arch, Tally] = {}
        self._n_done = 0  # batches that all subnets were evaluated on

    def go_on(
        self,
        archs: Sequence[Arch],
        until_s: float,
        stop: Callable[[], bool],
        n_enough: float = math.inf,
    ) -> None:
        """Evaluate subnets, on more samples than before where there is time.

        One subnet is evaluated on the first batch whatever the time, so that the pace is known.

        Args:
            archs: The subnets, the most important first.
            until_s: When to begin no further batch, by the evaluator's clock.
            stop: Asked before each branch whether to end.
            n_enough: Samples after which to begin no further batch.

        Raises:
            BundleError: A branch can't be run, or a subnet gives NaN.
        """
        evaluator = self._evaluator

        def go_through() -> bool:
            stop()  # it may report progress, and end the search by an exception
            return False

        for arch in archs:
            tally = self._tallies.setdefault(arch, Tally())
            while len(tally.batches) < max(1, self._n_done):
                batch = self._batches[len(tally.batches)]
                ending = stop if self._n_done else go_through
                found = self._run([arch], batch, ending)
                if not found:
                    break
                tally.add(found[arch])
                self._n_done = max(1, self._n_done)
        level = [arch for arch in archs if len(self._tallies[arch].batches) >= self._n_done > 0]
        while level and self._n_done < len(self._batches):
            batch = self._batches[self._n_done]
            if self._tallies[level[0]].n_samples >= n_enough:
                break
            expected_s = evaluator.expected_s(len(level), len(batch[1]))
            # The pace on the first batch is that of opening sessions, too.
            if evaluator.clock() + (expected_s if self._n_done > 1 else 0.0) > until_s:
                break
            more = self._run(level, batch, lambda: stop() or evaluator.clock() >= until_s)
            if len(more) < len(level):
                break
            for arch, part in more.items():
                self._tallies[arch].add(part)
            self._n_done += 1
        if level:
            n_samples = self._tallies[level[0]].n_samples
            evaluator.adopt(
                self._data.head(n_samples), {arch: self._tallies[arch] for arch in level}
            )

    def _run(
        self, archs: Sequence[Arch], batch: Batch, stop: Callable[[], bool]
    ) -> dict[Arch, BatchScore]:
        keep = self._margins.wanted(self._tallies[archs[0]].n_samples)
        return self._evaluator.run_batch(archs, batch, stop, keep_margins=keep)
