"""`fxelastic.diversity`: what the features after each block tell about the model's result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxelastic.branches.diversity import MeasuredCuts, measured_cuts
from fxelastic.branches.original import Original
from fxelastic.ir.branch import Branch
from fxelastic.ir.partition import Partition
from fxelastic.ir.supernet import Supernet
from fxelastic.train.batches import BatchReader, numbered


def diversity(
    supernet: Supernet | Partition,
    loader: Any,
    *,
    split: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any], Any]] | None = None,
) -> MeasuredCuts:
    """Score each cut of a model by a linear map from its pooled features to the model's result.

    Exits are worth most after cuts that do well, and compression operators in blocks that add
    little (AdaScale III-A2). Nothing is trained: the maps are fitted in closed form.

    Args:
        supernet: The supernet, or the partition of a model.
        loader: Batches with or without targets, as `fxelastic.distill` takes them; one or two
            thousand samples are enough.
        split: Takes a batch apart, as for `fxelastic.distill`.

    Returns:
        The scores, the gains and the FLOPs up to each cut. ``print`` it for a table.

    Raises:
        UsageError: The loader yields nothing, or its batches do not fit the model.

    Example:
        >>> print(fxelastic.diversity(supernet, loader))
    """
    if isinstance(supernet, Partition):
        made = Original().make(supernet)
        supernet = Supernet(supernet, (b for b in made if isinstance(b, Branch)))
    reader = BatchReader(supernet, split)
    read = (reader.read(raw, number) for number, raw in numbered(loader, "the loader"))
    return measured_cuts(supernet.partition, ((b.args, b.kwargs, b.target) for b in read))
