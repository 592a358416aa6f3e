"""Calibration data, divided into a part to find ranges on and a part to measure errors on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxelastic.backends import description
from fxelastic.backends.onnxruntime.quantisation.ranges import Array
from fxelastic.errors import UsageError
from fxelastic.ir.partition import Partition

#: One of so many batches is held out.
_EVERY = 4


@dataclass(frozen=True)
class CalibrationData:
    """The inputs that scales are found on, and others that errors are measured on.

    Attributes:
        batches: The model's inputs by name, for each batch.
        held_out: The same for the batches that are held out.
        n_samples: The number of samples of ``batches``.
        n_held_out: The number of samples of ``held_out``.
    """

    batches: tuple[Mapping[str, Array], ...]
    held_out: tuple[Mapping[str, Array], ...]
    n_samples: int
    n_held_out: int

    @property
    def parts(self) -> tuple[Sequence[Mapping[str, Array]], Sequence[Mapping[str, Array]]]:
        """Both parts."""
        return self.batches, self.held_out

    @classmethod
    def of(cls, partition: Partition, batches: Sequence[Mapping[str, Any]]) -> CalibrationData:
        """Divide batches.

        Args:
            partition: The model.
            batches: The model's inputs by their names in the graph, for each batch.

        Raises:
            UsageError: There is a single batch that can't be divided.
        """
        names = description.device_names(partition)
        dims = {
            n: partition.batch_dims[names[n]]
            for n in partition.signature.inputs
            if names[n] in partition.batch_dims
        }
        if len(batches) == 1:
            batches = _halves(batches[0], dims if partition.dynamic_batch else {})
        held = range(1, len(batches), _EVERY)
        parts = ([b for i, b in enumerate(batches) if (i in held) == out] for out in (False, True))
        first, last = (list(part) for part in parts)
        arrays = [
            tuple({names[k]: _array(value) for k, value in batch.items()} for batch in part)
            for part in (first, last)
        ]
        counts = [sum(_n_samples(batch, dims) for batch in part) for part in (first, last)]
        return cls(arrays[0], arrays[1], counts[0], counts[1])


def _halves(batch: Mapping[str, Any], dims: Mapping[str, int]) -> list[dict[str, Any]]:
    n_samples = _n_samples(batch, dims) if dims else 0
    if n_samples < 2:
        raise UsageError(
            "calibration must have at least two batches",
            expected="batches to find ranges on, and others to measure errors on",
            got="one batch that can't be divided",
            fix="pass a list of batches",
        )
    middle = (n_samples + 1) // 2
    parts = (slice(0, middle), slice(middle, n_samples))
    return [
        {k: v[(slice(None),) * dims[k] + (part,)] if k in dims else v for k, v in batch.items()}
        for part in parts
    ]


def _n_samples(batch: Mapping[str, Any], dims: Mapping[str, int]) -> int:
    return next((int(batch[name].shape[dims[name]]) for name in batch if name in dims), 1)


def _array(value: Any) -> Array:
    found: Array = torch.as_tensor(value).detach().cpu().numpy()
    return found
