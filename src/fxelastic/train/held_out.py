"""Errors on held-out batches, and the best state of every branch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxelastic.processes import Processes
from fxelastic.threads import ThreadChoice
from fxelastic.train.batches import Batch
from fxelastic.train.learners import Learners
from fxelastic.train.reports import HeldOutReport
from fxelastic.train.sampling import Plan

#: Batches to measure on.
N_BATCHES = 8

#: The name of the one error of branches that learn together.
TOGETHER = "subnets"

#: A branch that learns alone is better if its mean error is lower by this many standard errors. One
#: choice for all needs no such margin, which would discard a tuning that helps a little.
_STANDARD_ERRORS = 1.0
#: Further training pays off while an epoch reduces the error by this share.
_WORTH = 0.01

_BEST = "best:"

#: For each unit the error on each batch; NaN for a batch that sends it no rows.
Errors = dict[str, list[float]]


class HeldOut:
    """Measures errors on held-out batches, and keeps the best state of each unit.

    A branch that learns alone is a unit: it has an error, and keeps the state with the lowest one.
    Branches that share weights are one unit. All branches are one where sampled subnets learn;
    the error is the mean loss of some subnets then. Everything runs in inference mode.

    Attributes:
        batches: The held-out batches.
        before: The mean error of each unit before training.
    """

    def __init__(
        self,
        learners: Learners,
        losses: Callable[[Batch, Plan], Mapping[str, Tensor]],
        batches: Sequence[Batch],
        plan: Plan,
        processes: Processes,
        threads: ThreadChoice,
        *,
        independent: bool,
    ) -> None:
        """Prepare; `begin` or `load` comes next.

        Args:
            learners: What learns.
            losses: Computes the losses of a batch, which are the errors, without gradients.
            batches: The held-out batches; as many in each process. Without any, nothing is
                measured.
            plan: The branches and subnets to measure.
            processes: Those that hold the other shares of the batches.
            threads: Chooses how many threads compute.
            independent: Whether branches learn alone.
        """
        self._learners = learners
        self._losses = losses
        self.batches = batches
        self._plan = plan
        self._processes = processes
        self._threads = threads
        self._standard_errors = _STANDARD_ERRORS if independent else 0.0
        self._units = _units(learners) if independent else {TOGETHER: tuple(learners.branches)}
        self.before: dict[str, float] = {}
        self._best: Errors = {}
        self._state: dict[str, Tensor] = {}
        self._curve: list[tuple[int, float]] = []

    def begin(self) -> None:
        """Measure the state before training, which is the best one so far."""
        if not self.batches:
            return
        self._best = self.measure()
        self.before = self.means(self._best)
        self._state = {name: value.clone() for name, value in self._learners.state().items()}
        self._curve = [(0, self._mean())]

    def observe(self, step: int) -> HeldOutReport | None:
        """Measure the present state, and keep it for the units whose error it reduces.

        Args:
            step: Steps made.

        Returns:
            The errors; None without held-out batches.
        """
        if not self.batches:
            return None
        now = self.measure()
        self.keep(self.better(now, self._best), now)
        self._curve.append((step, self._mean()))
        names = tuple(self.before)
        present, best = self.means(now), self.means(self._best)
        return HeldOutReport(
            before=dict(self.before),
            now={name: present[name] for name in names if name in present},
            best={name: best[name] for name in names if name in best},
            steps_left=_steps_left(self._curve),
        )

    def end(self) -> None:
        """Give each unit its best state."""
        self.restore(self.before)

    def measure(self) -> Errors:
        """The errors of the present state."""
        errors: Errors = {name: [] for name in self._units}
        for batch in self.batches:
            with self._threads.step():
                found = self._losses(batch, self._plan)
            losses = [loss.double().reshape(()) for loss in found.values()]
            known = torch.stack(losses).tolist() if losses else []
            table = dict(zip(found, known, strict=True))
            for name, branches in self._units.items():
                own = [table[branch] for branch in branches if branch in table]
                errors[name].append(sum(own) / len(own) if own else math.nan)
        return errors

    def means(self, errors: Errors) -> dict[str, float]:
        """The mean error over the batches of all processes, of units that have one."""
        sums = {name: [x for x in values if not math.isnan(x)] for name, values in errors.items()}
        totals = self._total([[sum(x), len(x)] for x in sums.values()])
        return {name: s / n for name, (s, n) in zip(errors, totals, strict=True) if n}

    def better(self, new: Errors, old: Errors) -> list[str]:
        """The units whose new errors are lower than the old ones, batch by batch."""
        rows = []
        for name in self._units:
            pairs = list(zip(new[name], old[name], strict=True))
            gains = [b - a for a, b in pairs if not math.isnan(a) and not math.isnan(b)]
            # A finite error is better than an infinite one.
            gains = [min(gain, 1e30) if gain > -math.inf else -1e30 for gain in gains]
            rows.append([sum(gains), sum(gain * gain for gain in gains), len(gains)])
        found = []
        for name, (total, squares, n) in zip(self._units, self._total(rows), strict=True):
            if not n:
                continue
            mean = total / n
            variance = max(0.0, squares / n - mean * mean) / (n - 1) if n > 1 else 0.0
            if mean > self._standard_errors * math.sqrt(variance):
                found.append(name)
        return found

    def keep(self, units: Iterable[str], errors: Errors) -> None:
        """Keep the present state of units, with its errors, as their best."""
        for unit in units:
            self._best[unit] = errors[unit]
            for name, value in self._learners.state_of(self._units[unit]).items():
                self._state[name].copy_(value)

    def restore(self, units: Iterable[str]) -> None:
        """Give units their best state."""
        with torch.no_grad():
            for unit in units:
                for name, value in self._learners.state_of(self._units[unit]).items():
                    value.copy_(self._state[name])

    @property
    def best(self) -> Errors:
        """The errors of the best states."""
        return self._best

    @property
    def units(self) -> Mapping[str, tuple[str, ...]]:
        """The branches of each unit."""
        return self._units

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state for a checkpoint: plain data, and tensors."""
        data = {"before": self.before, "best": self._best, "curve": self._curve}
        return data, {f"{_BEST}{name}": value for name, value in self._state.items()}

    def load(self, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It is something else.
        """
        self.before = {name: float(mean) for name, mean in data["before"].items()}
        self._best = {name: list(map(float, x)) for name, x in data["best"].items()}
        self._curve = [(int(step), float(mean)) for step, mean in data["curve"]]
        current = self._learners.state() if self.batches else {}
        found = {k.removeprefix(_BEST): v for k, v in tensors.items() if k.startswith(_BEST)}
        self._state = {name: value.to(current[name].device) for name, value in found.items()}
        units = self._units if self.batches else {}
        whole = all(
            name in found and (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            for name, value in current.items()
        )
        lengths = {name: len(values) for name, values in self._best.items()}
        if not whole or lengths != dict.fromkeys(units, len(self.batches)):
            raise ValueError("the best states are of other branches or batches")
        if not self.before.keys() <= units.keys():
            raise ValueError("errors are of other branches")

    def _mean(self) -> float:
        found = [x for x in self.means(self._best).values() if math.isfinite(x)]
        return sum(found) / len(found) if found else math.nan

    def _total(self, rows: list[list[float]]) -> list[list[float]]:
        """Rows of numbers, summed over the processes."""
        if self._processes.world_size == 1:
            return rows
        table = torch.tensor(rows, dtype=torch.float64, device=self._processes.device)
        self._processes.average([table])
        found: list[list[float]] = (table * self._processes.world_size).tolist()
        return found


def _units(learners: Learners) -> dict[str, tuple[str, ...]]:
    """Branches that share weights form one unit, others one each; by the first branch's id."""
    owner: dict[int, str] = {}
    units: dict[str, tuple[str, ...]] = {}
    for branch in learners.branches:
        parameters = [id(parameter) for parameter in learners.of(branch)]
        joined = dict.fromkeys(owner[p] for p in parameters if p in owner)
        members = [*(name for unit in joined for name in units.pop(unit)), branch]
        first = members[0]
        units[first] = tuple(members)
        owner |= {id(p): first for name in members for p in learners.of(name)}
    return units


def _steps_left(curve: Sequence[tuple[int, float]]) -> int | None:
    """The number of further steps that pay off, if gains shrink as they did so far.

    A step pays off while an epoch reduces the error by a hundredth. None before the second
    epoch, and where the error is not above 0, so that nothing is a hundredth of it.
    """
    if len(curve) < 3:
        return None
    (a, first), (b, second), (c, third) = curve[-3:]
    if not (a < b < c) or not all(map(math.isfinite, (first, second, third))) or third <= 0:
        return None
    earlier, later = (first - second) / (b - a), (second - third) / (c - b)
    least = _WORTH * third / (c - b)
    if later <= least:
        return 0
    ratio = min(0.95, later / earlier) if earlier > 0 else 0.95
    return math.ceil(math.log(least / later) / math.log(max(ratio, 0.05)) * (c - b))
