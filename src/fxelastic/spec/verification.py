"""The results of the checks at export."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxelastic.spec.json_fields import Fields, show


@dataclass(frozen=True)
class SoftFusionInfo:
    """A pair of operators that the backend would fuse, but a block boundary separates.

    Attributes:
        rule: The name of the fusion.
        producer: The block of the first operator.
        consumer: The block of the second operator.
    """

    rule: str
    producer: str
    consumer: str


@dataclass(frozen=True)
class Verification:
    """How an export was compared with PyTorch, and which fusions its cuts prevent.

    Attributes:
        batch_sizes: Batch sizes with which every file, the model and the subnets were run.
        tolerances: The largest difference allowed in a file by dtype, relative to the largest
            absolute value; 0 means equality.
        subnet_tolerances: The same for the results of whole subnets.
        subnets: The texts of the archs that were assembled and compared; the original is first.
        fusion_verified: Whether the optimised model and its optimised blocks run the same
            kernels, so that no cut separates operators that the backend fuses.
        kernels_lost: Kernels that the whole model has and the blocks lack, with their counts.
        kernels_added: Kernels that the blocks have and the whole model lacks, with their counts.
        soft_fusions: Fusions that block boundaries are known to prevent.
        sizes: Other sizes, besides the example's, with which they were run, by symbol.
    """

    batch_sizes: tuple[int, ...]
    tolerances: Mapping[str, float]
    subnet_tolerances: Mapping[str, float]
    subnets: tuple[str, ...]
    fusion_verified: bool
    kernels_lost: Mapping[str, int]
    kernels_added: Mapping[str, int]
    soft_fusions: tuple[SoftFusionInfo, ...]
    sizes: tuple[Mapping[str, int], ...] = ()

    def to_json(self) -> dict[str, object]:
        """The record as an object for ``json.dumps``."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "tolerances": dict(self.tolerances),
            "subnet_tolerances": dict(self.subnet_tolerances),
            "subnets": list(self.subnets),
            "fusion_verified": self.fusion_verified,
            "kernels_lost": dict(self.kernels_lost),
            "kernels_added": dict(self.kernels_added),
            "soft_fusions": [
                {"rule": soft.rule, "producer": soft.producer, "consumer": soft.consumer}
                for soft in self.soft_fusions
            ],
            **({"sizes": [dict(sizes) for sizes in self.sizes]} if self.sizes else {}),
        }

    @classmethod
    def from_json(cls, fields: Fields) -> Verification:
        """Read the object that `to_json` returns.

        Raises:
            BundleError: A field is missing, unknown, of the wrong type, or out of range.
        """
        sizes = fields.array("batch_sizes")
        if not all(type(size) is int and size > 0 for size in sizes):
            raise fields.error(
                "batch_sizes", "are not batch sizes", expected="integers above 0", got=show(sizes)
            )
        record = cls(
            tuple(sizes),
            _numbers(fields, "tolerances", (int, float)),
            _numbers(fields, "subnet_tolerances", (int, float)),
            fields.texts("subnets"),
            fields.flag("fusion_verified"),
            _numbers(fields, "kernels_lost", (int,)),
            _numbers(fields, "kernels_added", (int,)),
            fields.objects("soft_fusions", _soft_fusion),
            fields.objects("sizes", _sizes) if "sizes" in fields.value else (),
        )
        fields.end()
        return record


def _sizes(fields: Fields) -> Mapping[str, int]:
    sizes = {name: fields.count(name) for name in list(fields.value)}
    fields.end()
    return sizes


def _soft_fusion(fields: Fields) -> SoftFusionInfo:
    return SoftFusionInfo(fields.text("rule"), fields.text("producer"), fields.text("consumer"))


def _numbers(fields: Fields, name: str, kinds: tuple[type, ...]) -> Mapping[str, Any]:
    value = fields.object(name).value
    for key, number in value.items():
        if type(number) not in kinds or not 0 <= number < math.inf:
            raise fields.error(
                f"{name}[{show(key)}]",
                "is not a number of at least 0",
                expected="a finite number of at least 0",
                got=show(number),
            )
    return dict(value)
