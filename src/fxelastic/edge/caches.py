"""Keys and values of earlier steps, as the subnets of a bundle have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.bundle import Bundle
from fxelastic.spec.arch import Arch
from fxelastic.spec.cache import KeptCache


def cut_cache(array: NDArray[Any], kept: KeptCache) -> NDArray[Any]:
    """The part of a cache that a branch keeps; a cache of that part's size stays."""
    if array.shape[kept.dim] == len(kept.kept):
        return array
    index = np.asarray(kept.kept, np.int64)
    return np.ascontiguousarray(np.take(array, index, axis=kept.dim))


def cut_caches(
    bundle: Bundle, arch: Arch, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The inputs of a subnet, from those of the model.

    Args:
        bundle: The bundle.
        arch: The subnet.
        inputs: Arrays by name; inputs that the subnet has whole stay.
    """
    kept = {part.past: part for part in bundle.space.cache_of(arch)}
    return {k: cut_cache(v, kept[k]) if k in kept else v for k, v in inputs.items()}
