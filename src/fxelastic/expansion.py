"""The public function `expand`: a model as a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import nn
from tqdm import tqdm

from fxelastic.api import partition
from fxelastic.branches import DEFAULT_KINDS, BranchMaker, branch_maker
from fxelastic.branches.calibration import as_batches, calibrate
from fxelastic.branches.twins import without_twins
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Skip
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import ORIGINAL
from fxelastic.threads import computing_with


def expand(
    model: nn.Module,
    gamma: float = 0.1,
    *,
    example_inputs: Any = None,
    batched: str | Sequence[str] | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    spans: Sequence[int] = (1, 2),
    prune: Sequence[float] = (0.25, 0.5),
    fusion: str = "onnxruntime",
    importance: str = "weight",
    calibration: Any = None,
    seed: int = 0,
    threads: int | None = None,
) -> Supernet:
    """Capture a model, cut it into blocks, and give each interval of blocks its branches.

    Args:
        model: Any ``nn.Module``; it is not changed.
        gamma: Most parameters of a basic block, as a share of the model's, in (0, 1].
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs or a
            pair ``(tuple, dict)``. Inferred from the model where None.
        batched: As in `fxelastic.partition`.
        kinds: Kinds of branches to make beside the originals, which are always there. ``()``
            for the originals alone; another package's kinds are named here.
        spans: How many further blocks a merged branch replaces beside its first.
        prune: Shares of the interior channels that pruned branches remove, each in (0, 1).
        fusion: As in `fxelastic.partition`.
        importance: What decides which channels are pruned: ``weight``, ``bn`` or ``activation``,
            see `fxelastic.branches.pruned.Pruned`; the last one takes ``calibration``.
        calibration: A few unlabelled batches, each in a form of ``example_inputs``; a single
            tensor is one batch. New branches then begin with their last linear map fitted to
            the model's own values in closed form; see `fxelastic.branches.calibration`.
        seed: Seed of branches that start at random; the same seed gives the same weights. The last
            bits of calibrated branches depend on the number of threads.
        threads: Threads that torch computes with; one where None, since more hardly help but in
            calibration.

    Returns:
        The supernet, in eval mode. Its original path computes what the model computes. A branch
        that equals an earlier one of its interval bit for bit is left out; ``skips`` names both.

    Raises:
        UsageError: An argument has the wrong type or value, or a kind is not known.
        CaptureError: The model can't be captured, or its inputs can't be inferred.

    Source: AdaptiveNet, section 4.1.
    """
    if isinstance(kinds, str) or not all(isinstance(kind, str) for kind in kinds):
        raise UsageError(
            "kinds is no sequence of branch kinds",
            expected=f"names, like kinds={DEFAULT_KINDS!r}, or kinds=() for the originals alone",
            got=repr(kinds),
        )
    # Unknown kinds and options are refused before a capture that takes a minute.
    batches = () if calibration is None else as_batches(calibration)
    options: dict[str, dict[str, Any]] = {
        "merged": {"spans": _sequence("spans", spans, int, "integers of at least 1")},
        "pruned": {
            "ratios": _sequence("prune", prune, Real, "shares in (0, 1)"),
            "importance": importance,
            "calibration": batches,
        },
    }
    makers: list[BranchMaker] = [
        branch_maker(kind)(**options.get(kind, {})) for kind in dict.fromkeys((ORIGINAL, *kinds))
    ]
    with computing_with(1 if threads is None else threads):
        blocks = partition(model, gamma, example_inputs, batched=batched, fusion=fusion)
        branches: list[Branch] = []
        skips: list[Skip] = []
        # Shown on terminals only, and only where it takes long.
        with tqdm(desc="branches", unit="", delay=3, leave=False, disable=None) as progress:
            for maker in makers:
                for made in maker.make(blocks, seed):
                    if isinstance(made, Branch):
                        branches.append(made)
                    else:
                        skips.append(made)
                    progress.update()
        branches, twins = without_twins(branches)
        supernet = Supernet(blocks, branches, (*skips, *twins))
        if batches:
            calibrate(supernet, batches)
        return supernet


def _sequence(name: str, values: Any, kind: type, expected: str) -> tuple[Any, ...]:
    single = isinstance(values, (str, bytes)) or not isinstance(values, Sequence)
    if single or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise UsageError(
            f"{name} is no sequence of {expected}", expected=expected, got=repr(values)
        )
    return tuple(values)
