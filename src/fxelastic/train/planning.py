"""From sampled subnets to what learns in a step."""

from __future__ import annotations

from fxelastic.spec import Arch, SearchSpace
from fxelastic.train.new_branches import NewBranches
from fxelastic.train.objective import Plan
from fxelastic.train.sampling import Sampling, derived_seed

_DRAWS = 100


def sampled_plan(
    space: SearchSpace, new: NewBranches, sampling: Sampling, step: int, seed: int
) -> Plan:
    """Draw the subnets of a step; those without a branch that learns are drawn again.

    Args:
        space: What to draw from.
        new: What can learn.
        sampling: How to draw.
        step: The number of the step.
        seed: The run's seed.
    """
    archs: tuple[Arch, ...] = ()
    for attempt in range(_DRAWS):
        drawn = sampling.archs(space, step, derived_seed(seed, "attempt", attempt))
        archs = tuple(arch for arch in drawn if any(name in new.branches for name in arch))
        if archs:
            break
    else:
        # A space of which nearly every subnet has nothing to learn: one branch alone, in turn.
        names = tuple(new.branches)
        archs = (_around(space, names[step % len(names)]),)
    chosen = {name for arch in archs for name in arch}
    return Plan(tuple(name for name in new.branches if name in chosen), archs)


def _around(space: SearchSpace, branch: str) -> Arch:
    """The subnet of originals and one other branch."""
    spec = space.by_id[branch]
    ids = [s.id for s in space.branches if s.id in space.original.branches]
    before = [name for name in ids if space.by_id[name].stop <= spec.start]
    after = [name for name in ids if space.by_id[name].start >= spec.stop]
    return Arch((*before, branch, *after))
