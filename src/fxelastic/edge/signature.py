"""How a model is called on the device, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array
from fxelastic.errors import UsageError
from fxelastic.spec import Arch, structure
from fxelastic.spec.input_sizes import input_sizes
from fxelastic.spec.value_info import ValueInfo

# Calls of so many shapes are checked once.
_KEPT = 4096


class BundleSignature:
    """Turns a call into named arrays, and output arrays into what the model returns.

    Arrays of another dtype raise an error instead of being converted: a conversion on every request
    would cost latency.
    """

    def __init__(self, bundle: Bundle, arch: Arch | None = None) -> None:
        """Take it from a bundle.

        Args:
            bundle: The bundle.
            arch: A subnet, whose caches count; the model if None.
        """
        self.inputs = bundle.inputs if arch is None else bundle.inputs_of(arch)
        self.outputs = bundle.outputs
        self._structure = bundle.manifest.structure
        self._checks = tuple((info.name, info.dtype, info.dims) for info in self.inputs)
        self._positions = {info.name: i for i, info in enumerate(self.inputs)}
        self._pasts = frozenset(cache.past for cache in bundle.manifest.caches)
        self._symbols = bundle.manifest.model.symbols
        self._plain = dict(self._structure) == {"tensor": 0}
        # The sizes of calls that fitted, by the inputs' dtypes and shapes.
        self._fitted: dict[tuple[Any, ...], Mapping[str, int]] = {}

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
        if self._key(given) not in self._fitted:
            self._check(given)
        return given

    def sizes(self, inputs: Mapping[str, Array]) -> Mapping[str, int]:
        """The value of each symbol in the arrays that `bind` returned, batch size included."""
        found = self._fitted.get(self._key(inputs))
        return self._check(inputs) if found is None else found

    def _key(self, given: Mapping[str, Array]) -> tuple[Any, ...]:
        return tuple([(given[info.name].dtype, given[info.name].shape) for info in self.inputs])

    def _check(self, given: Mapping[str, Array]) -> Mapping[str, int]:
        """Check the arrays' dtypes and shapes; returns the value of each symbol."""
        values = [given[info.name] for info in self.inputs]

        def refuse(i: int, problem: str) -> UsageError:
            fixes = {
                "dtype": f"pass it as numpy.{self.inputs[i].dtype}",
                "rank": f"pass an array of {len(self.inputs[i].dims)} dimensions",
                "size": f"only {', '.join(self._symbols) or 'no size'} may vary",
            }
            if self.inputs[i].name in self._pasts:
                fixes["size"] = (
                    "pass the cache that this subnet returned, or begin the sequence again with "
                    "bundle.first_cache(arch)"
                )
            return self._refused(self.inputs[i], values[i], fixes[problem])

        sizes = input_sizes(self._checks, values, self._symbols, refuse)
        if len(self._fitted) >= _KEPT:
            self._fitted.clear()
        self._fitted[self._key(given)] = sizes
        return sizes

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
