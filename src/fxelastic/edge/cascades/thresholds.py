"""Thresholds of a cascade's exits: proposed on some samples, and tested on others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError
from fxelastic.spec.options import is_number

#: No sample leaves at an exit with this threshold, as confidences are finite.
NEVER = np.inf

# Prices of a wrong answer, in multiples of the last subnet's cost, that proposals are made for.
_PRICES = np.geomspace(0.05, 1e4, 60)
_ROUNDS = 4  # of improving one threshold after the other


@dataclass(frozen=True)
class Leaving:
    """What happens to samples at each exit of a cascade, and at its end.

    Attributes:
        confidences: ``(exits, N)``.
        harm: ``(exits + 1, N)``: whether leaving there is wrong where the original is right, or
            without targets, where it differs from the original.
        costs: ``(exits + 1,)``: the cost of a sample that leaves there, without ``heads``.
        heads: ``(exits,)``: what each exit in use costs a sample that gets there, whether it
            leaves or not; None for nothing.
    """

    confidences: Array
    harm: Array
    costs: Array
    heads: Array | None = None

    def __len__(self) -> int:
        return int(self.harm.shape[1])

    def take(self, index: Array) -> Leaving:
        """The same for some of the samples."""
        return Leaving(self.confidences[:, index], self.harm[:, index], self.costs, self.heads)

    def head(self, i: int) -> float:
        """What an exit costs a sample that gets there."""
        return 0.0 if self.heads is None else float(self.heads[i])

    def costs_with(self, thresholds: Sequence[float]) -> Array:
        """The cost of a sample that leaves at each exit, or at the end, with the exits in use."""
        if self.heads is None:
            return self.costs
        before = np.cumsum(np.where(np.asarray(thresholds, float) < NEVER, self.heads, 0.0))
        return np.asarray(self.costs + np.append(before, before[-1:]))

    def leaves_at(self, thresholds: Sequence[float]) -> Array:
        """The exit at which each sample leaves, ``(N,)``; the number of exits for the end."""
        above = self.confidences >= np.asarray(thresholds, float).reshape(-1, 1)
        n_exits = len(self.confidences)
        return np.where(above.any(0), above.argmax(0), n_exits) if n_exits else np.zeros(len(self))

    def outcome(self, thresholds: Sequence[float]) -> tuple[int, float]:
        """How many samples are harmed, and the mean cost of a sample."""
        at = self.leaves_at(thresholds).astype(int)
        n_harmed = int(self.harm[at, np.arange(len(self))].sum())
        return n_harmed, float(self.costs_with(thresholds)[at].mean())


@dataclass(frozen=True)
class ChosenThresholds:
    """Thresholds that hold a bound.

    Attributes:
        thresholds: One for each exit; `NEVER` for exits that are not used.
        n_harmed: Samples that were harmed, of those that tested the thresholds.
        n_tested: The number of these samples.
        bound: The upper bound on the share of samples that are harmed.
    """

    thresholds: tuple[float, ...]
    n_harmed: int
    n_tested: int
    bound: float


def choose(
    proposed: Leaving | Sequence[tuple[float, ...]],
    testing: Leaving,
    max_loss: float,
    delta: float,
) -> ChosenThresholds:
    """The cheapest thresholds that harm at most a share of samples, with high probability.

    Thresholds are proposed on some samples, for many prices of a wrong answer. Other samples test
    the proposals, the most careful first, until one can't be shown to keep the limit. Testing in an
    order that was fixed before needs no correction for the number of tests.

    Args:
        proposed: Samples to propose on, such as those of a search; or what `proposals` made of
            them, to choose for several limits.
        testing: Samples that chose nothing else.
        max_loss: The largest share of harmed samples.
        delta: The probability that the share of all samples is larger in spite of the test.

    Returns:
        The last proposal that passed; no exit is used if none did.

    Raises:
        UsageError: There are too few samples to show anything.

    Source: Angelopoulos et al., Learn then Test (2021), fixed sequence testing.
    """
    check_enough(len(testing), max_loss, delta)
    ordered = proposals(proposed) if isinstance(proposed, Leaving) else proposed
    found = None
    for thresholds in ordered:
        n_harmed, _ = testing.outcome(thresholds)
        bound = upper_bound(n_harmed, len(testing), delta)
        if bound > max_loss:
            break
        found = ChosenThresholds(thresholds, n_harmed, len(testing), bound)
    if found is not None:
        return found
    never = (NEVER,) * len(testing.confidences)
    n_harmed, _ = testing.outcome(never)
    return ChosenThresholds(
        never, n_harmed, len(testing), upper_bound(n_harmed, len(testing), delta)
    )


def proposals(samples: Leaving) -> list[tuple[float, ...]]:
    """Thresholds from the most careful to the boldest; each costs less than the one before.

    Args:
        samples: Samples to propose on.
    """
    whole = max(float(samples.costs[-1]), 1e-12)
    made = {_priced(samples, price * whole) for price in _PRICES}
    ranked = sorted((*samples.outcome(thresholds), thresholds) for thresholds in made)
    kept: list[tuple[float, ...]] = []
    least = np.inf
    for _, cost, thresholds in ranked:
        if cost < least:
            kept.append(thresholds)
            least = cost
    return kept


def _priced(samples: Leaving, price: float) -> tuple[float, ...]:
    """Thresholds with a low sum of the cost and the price of harm, one improved after the other."""
    n_exits, n = samples.confidences.shape
    thresholds = [NEVER] * n_exits
    for _ in range(_ROUNDS):
        before = list(thresholds)
        for i in reversed(range(n_exits)):
            others = [NEVER if k == i else t for k, t in enumerate(thresholds)]
            at = samples.leaves_at(others).astype(int)
            here = at > i  # gets there, and would go on
            values = samples.costs_with(others)[:, None] + price * samples.harm
            gain = (values[at, np.arange(n)] - values[i])[here]
            head = int(here.sum()) * samples.head(i)
            thresholds[i] = _best_cut(samples.confidences[i][here], gain, head)
        if thresholds == before:
            break
    return tuple(map(float, thresholds))


def _best_cut(confidences: Array, gains: Array, least: float) -> float:
    """The threshold above which the sum of gains is largest; `NEVER` if it is at most ``least``."""
    order = np.argsort(-confidences, kind="stable")
    ordered = confidences[order]
    sums = np.cumsum(gains[order])
    # Samples of equal confidence leave together.
    last = np.append(ordered[1:] < ordered[:-1], True) if len(ordered) else np.zeros(0, bool)
    sums = np.where(last, sums, -np.inf)
    if not len(sums) or sums.max() <= least:
        return NEVER
    return float(ordered[int(np.argmax(sums))])


def checked_losses(max_loss: float | Sequence[float], delta: float) -> tuple[float, ...]:
    """The limits in ascending order, each once.

    Raises:
        UsageError: One of them or delta is not a share.
    """
    given = (max_loss,) if not isinstance(max_loss, Iterable) else tuple(max_loss)
    for name, shares in (("max_loss", given), ("delta", (delta,))):
        if not shares or not all(is_number(share) and 0 < share < 1 for share in shares):
            raise UsageError(
                f"{name} must be a share",
                expected="a number above 0 and below 1",
                got=repr(delta if name == "delta" else max_loss),
            )
    return tuple(sorted(set(given)))


def upper_bound(n_found: int, n: int, delta: float) -> float:
    """The largest probability at which so few of n samples are found at least delta of the time.

    If the true probability is higher than the bound, which happens with probability ``delta`` at
    most, so few are found with a probability below ``delta``.

    Args:
        n_found: How many samples of n have the property.
        n: The number of independent samples.
        delta: The probability that the bound does not hold.

    Source: Clopper and Pearson, Biometrika 26 (1934), one-sided.
    """
    if n_found >= n:
        return 1.0
    low, high = n_found / n, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(n_found, n, middle) > delta else (low, middle)
    return high


def samples_needed(max_loss: float, delta: float) -> int:
    """The least number of samples whose bound can be as low as ``max_loss``: if none is found."""
    return math.ceil(math.log(delta) / math.log1p(-max_loss))


def check_enough(n_samples: int, max_loss: float, delta: float) -> None:
    """Check that held-out samples can show that a loss is kept.

    Raises:
        UsageError: They are too few.
    """
    needed = samples_needed(max_loss, delta)
    if n_samples < needed:
        raise UsageError(
            f"{n_samples} samples are too few to bound a loss of {max_loss:g}",
            expected=f"at least {needed} held-out samples for max_loss={max_loss:g} and "
            f"delta={delta:g}",
            got=str(n_samples),
            fix="pass more samples, hold out a larger share of them, or raise max_loss",
        )


def _at_most(k: int, n: int, p: float) -> float:
    """The probability that at most k of n samples are found, each with probability p."""
    if p <= 0 or p >= 1:
        return float(p <= 0)
    i = np.arange(k + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - i[:-1]) / (i[:-1] + 1)))])
    logs = logs + i * math.log(p) + (n - i) * math.log1p(-p)
    largest = logs.max()
    return float(np.exp(largest) * np.exp(logs - largest).sum())
