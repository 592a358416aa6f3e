"""Divides the time of a search among its limits, so that each has a good answer early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fxelastic.edge.searching.additive import additive_best, quality_costs
from fxelastic.edge.searching.data import Stretch
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.study import (
    SearchAbortedError,
    SearchEndedError,
    Strategy,
    Study,
)
from fxelastic.edge.searching.tally import BatchScore, Tally
from fxelastic.spec import Arch

# Shares of the time that is left when each begins.
_FIRST = 0.3  # the additive bests before anything is measured
_MEASURING = 0.5  # the errors of branches on one sample; on more samples, a tenth
_ENOUGH = 0.1
_FEW = 31  # samples that show which additive bests are hopeless
_RELEARNT_SHARE = 0.7  # the additive bests by these errors
_HELD_OUT = 0.2
_NEAR = 0.9  # of the additive best's cost


class Schedule:
    """Runs the searches of several limits that share an evaluator.

    First the additive best of all limits is evaluated: the subnet within the limits that costs the
    least quality, if what branches cost adds up. In limited time, the errors of branches are
    measured on a few samples next, and the additive bests by these errors are evaluated on as many
    samples as there is time for. Then the remaining time is divided among the limits, for the
    strategy.
    """

    def __init__(self, studies: Sequence[Study], end_s: float = math.inf, n_held_out: int = 0):
        """Prepare.

        Args:
            studies: A search for each of the limits, with one evaluator and one clock.
            end_s: When to end, by that clock.
            n_held_out: Samples that the best subnets are scored on afterwards.
        """
        self._studies = list(studies)
        self._end_s = end_s
        self._n_held_out = n_held_out
        self._evaluator = self._studies[0].evaluator
        self._clock: Callable[[], float] = self._studies[0].clock
        self._is_limited = not math.isinf(end_s)
        self._n_samples = len(self._evaluator.data)
        self._surveyed: list[Arch] = []

    def run(self, strategy: Strategy) -> None:
        """Search.

        Raises:
            SearchAbortedError: Nobody waits for the result any more.
            UsageError: The strategy does not suit the search.
            BundleError: A branch is missing or damaged, can't be run, or returns NaN.
        """
        check = getattr(strategy, "check", None)
        for study in self._studies:
            if check is not None:
                check(study)
            study.begin(self._end_s - self._clock() if self._is_limited else None)
        try:
            self._evaluate_bests()
            self._run_each(strategy)
        finally:
            # Subnets that were evaluated for other limits may keep these, too.
            for study in self._studies:
                self._take_in(study)

    def _run_each(self, strategy: Strategy) -> None:
        reserve_s = 0.0
        if self._is_limited:
            held_out_s = self._evaluator.expected_s(len(self._studies) + 1, self._n_held_out)
            if held_out_s <= _HELD_OUT * self._left_s:
                reserve_s = held_out_s
        for i, study in enumerate(self._studies):
            self._take_in(study)
            if self._is_limited:
                time_s = (self._left_s - reserve_s) / (len(self._studies) - i)
                study.until_s = self._clock() + time_s
                if self._evaluator.affordable(time_s) < 1:
                    continue
            try:
                strategy.run(study)
            except SearchAbortedError:
                raise
            except SearchEndedError:
                pass

    @property
    def needed_s(self) -> float:
        """An estimate of the time to evaluate every additive best on all samples, in s."""
        n_subnets = len(dict.fromkeys(self._surveyed)) + 1
        work_s = self._evaluator.expected_s(n_subnets, self._n_samples)
        study = self._studies[0]
        return max(study.seconds, self._end_s - study.clock() + study.seconds) + 2.5 * work_s

    @property
    def _left_s(self) -> float:
        return max(0.0, self._end_s - self._clock())

    def _evaluate_bests(self) -> None:
        evaluator, over = self._evaluator, self._studies[0].is_over
        space = self._studies[0].space
        bests = self._solve(quality_costs(space, evaluator.measured_distortion))
        if not self._is_limited:
            evaluator.scores(bests, stop=over)
            self._note_bests()
            return
        survey = None if evaluator.known else Survey(evaluator)
        self._evaluate(bests, survey, _FIRST, _FEW)
        first = [study.additive_best for study in self._studies]
        now_s, left_s = self._clock(), self._left_s
        distortion = evaluator.distortion(
            lambda: over() or self._clock() >= now_s + _MEASURING * left_s,
            lambda: self._clock() >= now_s + _ENOUGH * left_s,
        )
        again = self._solve(quality_costs(space, distortion))
        self._evaluate([*again, *bests], survey, _RELEARNT_SHARE, _FEW)
        going = {
            arch
            for study, arch in zip(self._studies, first, strict=True)
            if arch is not None and not _is_beaten(arch, study)
        }
        self._evaluate(
            [*again, *(arch for arch in bests if arch in going)], survey, _RELEARNT_SHARE
        )

    def _solve(self, costs: dict[str, float]) -> list[Arch]:
        """Find the additive best of all limits; limits far from each other come first."""
        for study in self._studies:
            study.additive_best = additive_best(study, costs)
        ordered = sorted(self._studies, key=lambda study: -study.high)
        found = [ordered[i].additive_best for i in spread(len(ordered))]
        return list(dict.fromkeys(arch for arch in found if arch is not None))

    def _evaluate(
        self, archs: list[Arch], survey: Survey | None, share: float, n_enough: float = math.inf
    ) -> None:
        over, until_s = self._studies[0].is_over, self._clock() + share * self._left_s
        self._surveyed = list(dict.fromkeys(archs))
        if survey is not None:
            survey.go_on(self._surveyed, until_s, over, n_enough)
        else:
            for arch in archs:
                self._evaluator.scores([arch], stop=lambda: over() or self._clock() >= until_s)
        self._note_bests()

    def _note_bests(self) -> None:
        known = self._evaluator.known
        for study in self._studies:
            # The scores may be on more samples than before.
            study.scores = {arch: known[arch] for arch in study.scores if arch in known}
            best = study.additive_best
            if best is None or best not in known:
                continue
            study.incumbent = best
            try:
                study.score([best])
            except SearchAbortedError:
                raise
            except SearchEndedError:
                pass

    def _take_in(self, study: Study) -> None:
        """Give a study the scores of all subnets that keep its limits."""
        known = self._evaluator.known
        study.scores = {arch: score for arch, score in known.items() if study.fits(arch)}


def _is_beaten(arch: Arch, study: Study) -> bool:
    """Whether the study's additive best is better than an earlier one."""
    best, evaluator = study.additive_best, study.evaluator
    if best is None or best not in evaluator.known or arch not in evaluator.known:
        return False
    return evaluator.is_better(best, arch)


def spread(n: int) -> list[int]:
    """The numbers below n, each as far as possible from those before it: 0, n - 1, the middle."""
    found = list(range(min(n, 1)))
    while len(found) < n:
        rest = [i for i in range(n) if i not in found]
        found.append(max(rest, key=lambda i: (min(abs(i - j) for j in found), i)))
    return found


def answer(study: Study) -> Arch | None:
    """The subnet that a search returns for its limits.

    The subnet with the highest score, if any near the limit was evaluated; otherwise the additive
    best, which has no score. On a part of the samples, another subnet takes the place of the
    additive best only where it is better by more than chance.

    Args:
        study: The search, after it has ended.

    Returns:
        The subnet; None where no subnet within the limits is known.
    """
    evaluator, wanted = study.evaluator, study.additive_best
    incumbent = study.incumbent
    if incumbent is not None and incumbent in study.scores:
        if not evaluator.is_shortened:
            return study.best
        better = [arch for arch in study.scores if evaluator.is_better(arch, incumbent)]
        return max(better, key=lambda a: (study.scores[a], -study.cost(a)), default=incumbent)
    if wanted is None:
        return study.best
    near = any(study.cost(arch) >= _NEAR * study.cost(wanted) for arch in study.scores)
    return study.best if near and not evaluator.is_shortened else wanted


class Survey:
    """Evaluates subnets batch by batch, all on the same samples.

    The evaluator's scores are on these samples from then on. Small batches come first, so that each
    subnet soon has a score; later calls of `go_on` add subnets, and samples where time is left.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        """Start without samples.

        Args:
            evaluator: Evaluates subnets; it has no scores yet.
        """
        self._evaluator = evaluator
        self._data = evaluator.data
        self._batches = list(evaluator.stretches())
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
            until_s: The time after which no batch begins, by the evaluator's clock.
            stop: Called before each branch; returns whether to end.
            n_enough: The number of samples after which no batch begins.

        Raises:
            BundleError: A branch can't be run, or a subnet returns NaN.
        """
        evaluator = self._evaluator

        def go_through() -> bool:
            stop()  # it may report progress, which may raise an exception
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
            expected_s = evaluator.expected_s(len(level), len(batch))
            # The first batch also opens sessions, so its pace is too slow.
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
        self, archs: Sequence[Arch], batch: Stretch, stop: Callable[[], bool]
    ) -> dict[Arch, BatchScore]:
        keep = self._margins.wanted(self._tallies[archs[0]].n_samples)
        return self._evaluator.run_batch(archs, batch, stop, keep_margins=keep)
