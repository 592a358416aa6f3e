"""The public function `expand`: a model as a supernet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from tqdm import tqdm

from fxelastic.api import partition
from fxelastic.branches import (
    DEFAULT_KINDS,
    DEFAULT_MAX_SIZE,
    Kind,
    all_kinds,
    branch_kind,
    is_kind,
)
from fxelastic.branches.calibration import calibrate
from fxelastic.branches.operators.moments import forget
from fxelastic.branches.options import Arguments, as_batches, counts, inputs_of, shares
from fxelastic.branches.size_limit import within_size
from fxelastic.branches.twins import without_twins
from fxelastic.errors import UsageError
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import ORIGINAL
from fxelastic.spec.options import check_seed, is_number
from fxelastic.threads import computing_with

_DEFAULT = "default"


def expand(
    model: nn.Module,
    gamma: float = 0.1,
    *,
    example_inputs: Any = None,
    batched: str | Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    kinds: str | Sequence[str | Kind] = "default",
    max_size: float | None = None,
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
            pair ``(tuple, dict)``. Inferred from the model if None.
        batched: As in `fxelastic.partition`.
        dynamic_shapes: As in `fxelastic.partition`.
        kinds: Kinds of branches to make beside the originals, which are always there: values such
            as ``fxelastic.kinds.Merged(spans=(1,))``, or names, such as ``"merged"`` or the name
            that another package registers, for a kind with its default options. ``"default"``,
            alone or among others, for merged, pruned, skip and separable; ``"all"`` for every kind
            that is installed; ``()`` for the originals alone.
        max_size: Most parameters of the supernet, as a multiple of the model's, at least 1. Where
            there would be more, those branches stay that save most operations for their
            parameters, spread over kinds and blocks. If None, 2 if ``kinds`` names
            ``"default"``, and any number otherwise.
        spans: Option ``spans`` of the kind ``"merged"``, if it is given by name.
        prune: Option ``ratios`` of the kind ``"pruned"``, if it is given by name.
        fusion: As in `fxelastic.partition`.
        importance: Option of the kind ``"pruned"``, if it is given by name: ``weight``, ``bn`` or
            ``activation``, see `fxelastic.kinds.Pruned`; ``activation`` takes ``calibration``.
        calibration: A few unlabelled batches, each in a form of ``example_inputs``; a single
            tensor is one batch. New branches then start with their last linear map fitted to
            the model's own values in closed form; see `fxelastic.branches.calibration`.
        seed: Seed of branches with random weights; the same seed gives the same weights. The last
            bits of calibrated branches depend on the number of threads.
        threads: Number of threads for torch; one if None, since more help in calibration only.

    Returns:
        The supernet, in eval mode. Its original path computes the model's result. A branch that
        equals an earlier branch of its interval bit for bit is left out; ``skips`` names both, and
        the branches that ``max_size`` leaves out.

    Raises:
        UsageError: An argument has the wrong type or value, or a kind is unknown.
        CaptureError: The model can't be captured, or its inputs can't be inferred.

    Source: AdaptiveNet, section 4.1.
    """
    # Unknown kinds and options are refused before a capture that takes a minute.
    batches = () if calibration is None else as_batches(calibration)
    named: dict[str, dict[str, Any]] = {
        "merged": {"spans": counts("spans", spans)},
        "pruned": {"ratios": shares("prune", prune), "importance": importance},
    }
    check_seed(seed)
    chosen = _kinds(kinds, named, batches)
    if max_size is None and _DEFAULT in kinds:
        max_size = DEFAULT_MAX_SIZE
    if max_size is not None:
        _check_size(max_size)
    with computing_with(1 if threads is None else threads):
        blocks = partition(
            model,
            gamma,
            example_inputs,
            batched=batched,
            dynamic_shapes=dynamic_shapes,
            fusion=fusion,
        )
        inputs_of(blocks, batches)  # checks them
        branches: list[Branch] = []
        refusals: list[Refusal] = []
        # Shown on terminals only, and only if it takes long.
        with tqdm(desc="branches", unit="", delay=3, leave=False, disable=None) as progress:
            for kind in chosen:
                for made in kind.make(blocks, seed):
                    if isinstance(made, Branch):
                        branches.append(made)
                    else:
                        refusals.append(made)
                    progress.update()
        forget(blocks)
        branches, twins = without_twins(branches)
        refusals += twins
        if max_size is not None:
            branches, too_many = within_size(branches, blocks.n_params, max_size)
            refusals += too_many
        supernet = Supernet(blocks, branches, refusals)
        if batches:
            calibrate(supernet, batches)
        return supernet


def _check_size(max_size: Any) -> None:
    if not is_number(max_size) or not 1 <= max_size < math.inf:
        raise UsageError(
            f"max_size must be at least 1, got {max_size!r}",
            expected="the supernet's most parameters as a multiple of the model's, e.g. 2.5",
            got=repr(max_size),
            fix="for any number of parameters, pass kinds= without 'default', and no max_size",
        )


def _kinds(
    kinds: str | Sequence[str | Kind],
    named: dict[str, dict[str, Any]],
    batches: Sequence[Arguments],
) -> list[Kind]:
    """The originals and the chosen kinds, each once, with calibration data where they take it."""
    if kinds in ("all", ("all",), ["all"]):
        kinds = all_kinds()
    elif kinds == _DEFAULT:
        kinds = (_DEFAULT,)
    if (
        isinstance(kinds, str)
        or not isinstance(kinds, Sequence)
        or not all(isinstance(kind, str) or is_kind(kind) for kind in kinds)
    ):
        raise UsageError(
            f"kinds must be a sequence of names and kinds, got {kinds!r}",
            expected="e.g. kinds=('skip', fxelastic.kinds.Merged(spans=(1,))), kinds=() for the "
            "originals alone, kinds='default' or kinds='all'",
            got=repr(kinds),
        )
    if "all" in kinds:
        raise UsageError(
            "kinds names 'all' beside other kinds",
            expected="kinds='all' for one of each kind, or a list of kinds",
            got=repr(kinds),
            fix="name the kinds: " + ", ".join(all_kinds()),
        )
    chosen: list[Kind] = []
    spliced = [k for kind in kinds for k in (DEFAULT_KINDS if kind == _DEFAULT else (kind,))]
    for kind in (ORIGINAL, *spliced):
        made = branch_kind(kind)(**named.get(kind, {})) if isinstance(kind, str) else kind
        if not any(_same(made, other) for other in chosen):
            chosen.append(made)
    return [_with_calibration(kind, batches) for kind in chosen]


def _same(one: Any, other: Any) -> bool:
    """Whether two kinds make the same branches: their batches are compared by identity."""
    own, theirs = (getattr(kind, "calibration", ()) for kind in (one, other))
    same_data = len(own) == len(theirs) and all(a is b for a, b in zip(own, theirs, strict=True))
    return same_data and bool(one == other)


def _with_calibration(kind: Any, batches: Sequence[Arguments]) -> Kind:
    takes_data = dataclasses.is_dataclass(kind) and any(
        field.name == "calibration" for field in dataclasses.fields(kind)
    )
    if takes_data and not kind.calibration:
        kind = dataclasses.replace(kind, calibration=tuple(batches))
    if getattr(kind, "needs_calibration", False) and not kind.calibration:
        raise UsageError(
            f"{type(kind).__name__} with these options needs calibration data",
            expected="a few batches as calibration=",
            got="no calibration data",
        )
    result: Kind = kind
    return result
