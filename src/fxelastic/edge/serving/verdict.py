"""Whether the budget can be kept, without saying the opposite a moment later."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Verdict:
    """Turns what each decision expects into something to tell.

    That the budget can't be kept holds at once; that it can, when decisions have said so for a
    while. A load at which the quickest subnet is just about quick enough is one thing to tell, not
    two a second: it was seen to change 19 times in 15 s.

    Attributes:
        kept_s: For how long decisions must have expected the budget to be kept, in seconds.
        met: What holds now.
    """

    kept_s: float = 1.0
    met: bool = field(init=False, default=True)
    _since_s: float | None = field(init=False, repr=False, default=None)
    _budget_ms: float | None = field(init=False, repr=False, default=None)

    @property
    def again_s(self) -> float | None:
        """When to ask for another decision, in seconds from now; None where nothing waits."""
        return None if self._since_s is None else self.kept_s

    def hear(self, met: bool, budget_ms: float, now_s: float) -> bool:
        """Take one decision's expectation.

        Args:
            met: The decision's target is expected to keep the budget.
            budget_ms: The budget, in ms; with another one than before, nothing needs a while.
            now_s: The time, on the runtime's clock.

        Returns:
            Whether what holds has changed.
        """
        known, self._budget_ms = self._budget_ms, budget_ms
        if met == self.met:
            self._since_s = None
            return False
        if met and budget_ms == known and not self._for_long(now_s):
            return False
        self.met = met
        self._since_s = None
        return True

    def _for_long(self, now_s: float) -> bool:
        # A clock that was set back begins anew.
        if self._since_s is None or now_s < self._since_s:
            self._since_s = now_s
        return now_s - self._since_s >= self.kept_s
