"""Choose branches so that a supernet is not larger than a multiple of its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fxelastic.ir.branch import Branch, Refusal
from fxelastic.spec import ORIGINAL


def within_size(
    branches: Sequence[Branch], n_params: int, max_size: float
) -> tuple[list[Branch], list[Refusal]]:
    """Leave out branches until the supernet has at most a multiple of the model's parameters.

    The kinds take turns: the next branch is of the kind that has added the fewest parameters so
    far; of that kind it is the one that saves the most operations per parameter. A second branch of
    the kind over a block counts half, a third a third, and so on, so that all blocks get some.
    Weights that branches share count once, and branches without weights of their own always stay.

    Args:
        branches: All branches; the originals, which stay, among them.
        n_params: The model's number of parameters.
        max_size: The multiple, at least 1.

    Returns:
        The remaining branches in order, and a refusal for each of the others.
    """
    choice = _Choice(branches, max_size * n_params - n_params)
    kept = {branch for branch in branches if branch.kind == ORIGINAL}
    left = [branch for branch in branches if branch not in kept]
    while True:
        affordable = [branch for branch in left if choice.added(branch) <= choice.n_left]
        if not affordable:
            break
        kind = min((branch.kind for branch in affordable), key=choice.n_params.__getitem__)
        own = (branch for branch in affordable if branch.kind == kind)
        best = max(own, key=choice.value)  # the first of equal ones
        choice.take(best)
        kept.add(best)
        left.remove(best)
    reason = (
        f"the supernet would have more than {max_size:g} times the model's parameters, and other "
        "branches save more operations for theirs; see max_size"
    )
    refusals = [Refusal(f"{b.id}: {reason}", b.kind, b.start, b.stop) for b in left]
    return [branch for branch in branches if branch in kept], refusals


class _Choice:
    """What is chosen, and what else can be.

    Attributes:
        n_left: The number of parameters that further branches may have.
        n_params: The number of parameters that each kind has added.
    """

    def __init__(self, branches: Iterable[Branch], n_left: float) -> None:
        originals = {b.start: b for b in branches if b.kind == ORIGINAL}
        self.n_left = n_left
        self.n_params: Counter[str] = Counter()
        self._flops = [originals[i].flops for i in sorted(originals)]
        # Modules list a parameter once, however often they use it.
        self._sizes = {b: {p: p.numel() for p in b.module.parameters()} for b in branches}
        self._taken = {p for b in originals.values() for p in self._sizes[b]}
        self._n_covering: Counter[tuple[str, int]] = Counter()

    def added(self, branch: Branch) -> int:
        """The number of parameters that a branch adds to the chosen ones."""
        return sum(n for p, n in self._sizes[branch].items() if p not in self._taken)

    def value(self, branch: Branch) -> float:
        """The operations saved for each parameter, less where others of the kind save some."""
        blocks = range(branch.start, branch.stop)
        shares = [1 / (1 + self._n_covering[branch.kind, i]) for i in blocks]
        saved = sum(self._flops[i] for i in blocks) - branch.flops
        return saved * sum(shares) / len(blocks) / max(1, self.added(branch))

    def take(self, branch: Branch) -> None:
        """Choose a branch."""
        added = self.added(branch)
        self.n_left -= added
        self.n_params[branch.kind] += added
        self._taken.update(self._sizes[branch])
        for i in range(branch.start, branch.stop):
            self._n_covering[branch.kind, i] += 1
