"""How a model is called on the device, and what it returns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError
from fxelastic.spec import structure
from fxelastic.spec.value_info import ValueInfo

_MULTIPLE = re.compile(r"(?:(?P<factor>\d+)\*)?N")


class BundleSignature:
    """Turns a call into named arrays, and output arrays into what the model returns.

    Arrays of another dtype raise an error instead of being converted: a conversion on every request
    would cost latency.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Take it from a bundle."""
        self.inputs = bundle.inputs
        self.outputs = bundle.outputs
        self._structure = bundle.manifest.structure
        self._checks = tuple((info, np.dtype(info.dtype), info.dims) for info in bundle.inputs)
        self._positions = {info.name: i for i, info in enumerate(bundle.inputs)}
        self._plain = dict(self._structure) == {"tensor": 0}

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Array]:
        """The arrays of a call, by input name.

        Args:
            args: Arrays in the order of the bundle's inputs.
            kwargs: Arrays by input name.

        Raises:
            UsageError: An input is missing, unknown or given twice, or has another dtype, rank or
                size than the model's.
        """
        given = self._given(args, kwargs)
        batch: tuple[str, int] | None = None
        for info, dtype, dims in self._checks:
            value = given[info.name]
            if value.dtype != dtype:
                raise self._refused(info, value, f"pass it as numpy.{dtype}")
            if len(value.shape) != len(dims):
                raise self._refused(info, value, "pass an array with a batch dimension")
            for size, dim in zip(value.shape, dims, strict=True):
                if isinstance(dim, int):
                    if size != dim:
                        raise self._refused(info, value, "only the batch size N is free")
                    continue
                n = _batch_size(dim, size)
                if n == 0:
                    raise self._refused(info, value, "pass a batch size N of at least 1")
                if n is None:
                    continue
                if batch is not None and n != batch[1]:
                    raise UsageError(
                        f"inputs {batch[0]!r} and {info.name!r} hold different numbers of samples",
                        expected=f"the same batch size N in both: {self.describe()}",
                        got=f"{batch[1]} in {batch[0]!r}, {n} in {info.name!r}",
                        fix="pass as many samples in each",
                    )
                batch = batch or (info.name, n)
        return given

    def result(self, outputs: Sequence[Array]) -> Any:
        """What the model returns for these outputs; dictionaries for its objects."""
        return outputs[0] if self._plain else structure.build(self._structure, outputs)

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Array]:
        if len(args) > len(self.inputs):
            raise UsageError(
                f"the model takes at most {len(self.inputs)} inputs",
                expected=self.describe(),
                got=f"{len(args)} positional arguments",
            )
        given = {info.name: arg for info, arg in zip(self.inputs, args, strict=False)}
        for name, value in kwargs.items():
            if name not in self._positions or name in given:
                problem = "is given twice" if name in given else "is not an input of the model"
                raise UsageError(f"{name!r} {problem}", expected=self.describe(), got=name)
            given[name] = value
        if len(given) < len(self.inputs):
            missing = [info.name for info in self.inputs if info.name not in given]
            raise UsageError(
                f"inputs are missing: {', '.join(missing)}",
                expected=self.describe(),
                got=", ".join(given) or "none",
            )
        for name, value in given.items():
            if not isinstance(value, np.ndarray):
                given[name] = np.asarray(value)
        return given

    def describe(self) -> str:
        """The inputs in one line: ``x: float32[N, 3, 224, 224]``."""
        return "; ".join(map(str, self.inputs)) or "no inputs"

    def _refused(self, info: ValueInfo, value: Array, fix: str) -> UsageError:
        return UsageError(
            f"input {info.name!r} is not what the model takes",
            expected=str(info),
            got=f"{value.dtype}[{', '.join(map(str, value.shape))}]",
            fix=fix,
        )


def _batch_size(dim: str, size: int) -> int | None:
    """The batch size that gives a size; 0 if no batch size does, None if it is unknown."""
    multiple = _MULTIPLE.fullmatch(dim)
    if multiple is None:
        return None
    n, rest = divmod(size, int(multiple["factor"] or 1))
    return 0 if rest else n
