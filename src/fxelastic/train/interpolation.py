"""Interpolate between the weights before and after tuning, so that branches stay good alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.processes import Processes
from fxelastic.threads import ThreadChoice, computing_with, thread_counts
from fxelastic.train.batches import Batch, BatchReader, Split, device_of, first_batches
from fxelastic.train.held_out import N_BATCHES, HeldOut
from fxelastic.train.learners import BranchRunner, Learners
from fxelastic.train.objectives import BranchLoss, TeacherForced
from fxelastic.train.sampling import Plan

#: The shares of the way from the weights before tuning to those after it that are tried.
SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Interpolation:
    """What `interpolate` chose.

    Each key is a branch's id; branches that share weights have one, the first one's.

    Attributes:
        shares: The share of the way from the earlier weights to the tuned ones, from 0 to 1.
        errors: The errors on the held-out batches with the chosen weights.
    """

    shares: Mapping[str, float]
    errors: Mapping[str, float]


@computing_with()
def interpolate(
    supernet: Supernet,
    earlier: str | os.PathLike[str],
    held_out: Iterable[Any],
    at_most: Mapping[str, float],
    *,
    loss: BranchLoss | None = None,
    split: Split | None = None,
) -> Interpolation:
    """Move the weights of each branch back, as far as its error alone requires.

    Tuning makes whole subnets better, and some branches alone worse. Between the weights before and
    after it, most branches have weights that keep the gain of the one and the error of the other.
    This takes for each branch the weights nearest to the tuned ones whose error alone, fed by the
    original's features, is at most a bound. Weights and statistics are interpolated linearly.

    Args:
        supernet: The tuned supernet, which is changed in place.
        earlier: The file that `Supernet.save` wrote before tuning.
        held_out: Batches, of which the first 8 serve to measure errors; best the same as in
            `distill`.
        at_most: The largest error of each branch, such as ``before`` or ``best`` in the
            ``held_out`` report of `distill`. Branches that it lacks keep their tuned weights, and
            those that exceed it in any case get the earlier ones.
        loss: Compares outputs with the original's, as in `distill`.
        split: Takes a batch apart; see `BatchReader`.

    Returns:
        The chosen shares, and the errors.

    Raises:
        UsageError: The file or a batch does not belong to the supernet, or a bound is not a number
            of at least 0. The supernet is unchanged then.

    Source: Wortsman and others, Robust fine-tuning of zero-shot models (2022), for one share of
    the whole network.
    """
    for name, bound in at_most.items():
        if name not in supernet.branches or supernet.branches[name].frozen or not bound >= 0:
            raise UsageError(
                "at_most must have errors of branches",
                expected="ids of new branches, each with a number of at least 0",
                got=f"{name!r}: {bound!r}",
                fix="pass history.held_out.before, from the history of fxelastic.distill",
            )
    learners = Learners(supernet)
    processes = Processes.of(False, device_of(supernet))
    reader = BatchReader(supernet, split)
    batches = first_batches(held_out, "held_out", reader, N_BATCHES, 0, processes)
    runner = BranchRunner(supernet)
    objective = TeacherForced(loss)
    plan = Plan(tuple(learners.branches))

    def losses(batch: Batch, plan: Plan) -> dict[str, Tensor]:
        values = reader.bind(batch)
        with torch.no_grad():
            return objective.backward(runner, values, batch.target, plan, lambda loss: None)

    threads = ThreadChoice(thread_counts(torch.get_num_threads(), fixed=True))
    known = HeldOut(learners, losses, batches, plan, processes, threads, independent=True)
    supernet.eval()
    tuned = {name: value.clone() for name, value in learners.state().items()}
    supernet.load(earlier)
    start = {name: value.clone() for name, value in learners.state().items()}
    try:
        known.begin()
        shares = dict.fromkeys(known.before, 0.0)
        for share in SHARES:
            _set(learners, start, tuned, share)
            errors = known.measure()
            means = known.means(errors)
            kept = [
                unit
                for unit in known.units
                if unit not in at_most or means.get(unit, 0.0) <= at_most[unit]
            ]
            known.keep(kept, errors)
            shares.update(dict.fromkeys(kept, share))
        known.end()
    except BaseException:
        _set(learners, start, tuned, 1.0)
        raise
    return Interpolation(shares, known.means(known.best))


def _set(
    learners: Learners, start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> None:
    """Set the weights and statistics to a point between two states; counts to those of the end."""
    for name, value in learners.state().items():
        a, b = start[name], end[name]
        value.copy_(torch.lerp(a, b, share) if value.is_floating_point() and share < 1 else b)
