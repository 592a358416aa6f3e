"""The public function `expand`: a model as a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxelastic.api import partition
from fxelastic.branches import DEFAULT_KINDS, branch_maker
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import ORIGINAL


def expand(
    model: nn.Module,
    gamma: float = 0.1,
    *,
    example_inputs: Any = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    fusion: str = "onnxruntime",
    seed: int = 0,
) -> Supernet:
    """Capture a model, cut it into blocks, and give each interval of blocks its branches.

    Args:
        model: Any ``nn.Module``; it is not changed.
        gamma: Most parameters of a basic block, as a share of the model's, in (0, 1].
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs or a
            pair ``(tuple, dict)``. Inferred from the model where None.
        kinds: Kinds of branches to make beside the originals, which are always there. This
            release has no others of its own; another package's are named here.
        fusion: As in `fxelastic.partition`.
        seed: For what branches start at random; the same seed gives the same weights.

    Returns:
        The supernet, in eval mode. Its original path computes what the model computes.

    Raises:
        UsageError: An argument has the wrong type or value, or a kind is not known.
        CaptureError: The model can't be captured, or its inputs can't be inferred.

    Source: AdaptiveNet, section 4.1.
    """
    if isinstance(kinds, str) or not all(isinstance(kind, str) for kind in kinds):
        raise UsageError(
            "kinds is no sequence of branch kinds",
            expected="names, like kinds=() for the originals alone",
            got=repr(kinds),
        )
    # Unknown kinds are refused before a capture that takes a minute.
    makers = [branch_maker(kind)() for kind in dict.fromkeys((ORIGINAL, *kinds))]
    blocks = partition(model, gamma, example_inputs, fusion=fusion)
    branches, skips = [], []
    for maker in makers:
        for made in maker.make(blocks, seed):
            if isinstance(made, Branch):
                branches.append(made)
            else:
                skips.append(made)
    return Supernet(blocks, branches, skips)
