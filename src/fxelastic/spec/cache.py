"""Keys and values of earlier steps, which a decoder's step reads and extends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxelastic.spec.json_fields import Fields
from fxelastic.spec.value_info import NAME

_MAX_RANK = 63
_MAX_SIZE = 2**31


@dataclass(frozen=True)
class Cache:
    """An input that a result extends: the past keys or values of one layer.

    Attributes:
        past: Name of the input.
        present: Name of the value that is the past and the new elements behind it.
        dim: The dimension along which it grows.
    """

    past: str
    present: str
    dim: int

    def to_json(self) -> dict[str, object]:
        """The cache as an object for ``json.dumps``."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, fields: Fields) -> Cache:
        """Read what `to_json` gives.

        Raises:
            BundleError: A field is missing, unknown, or has another type or range.
        """
        return cls(*_place(fields))


@dataclass(frozen=True)
class KeptCache:
    """The part of a cache that a branch keeps: fewer heads, or none if it skips the layer.

    The branch takes a past and gives a present with these indices only.

    Attributes:
        past: Name of the input.
        present: Name of the value that extends it.
        dim: The dimension that is smaller.
        kept: The indices that stay, of those of the model's cache.
    """

    past: str
    present: str
    dim: int
    kept: tuple[int, ...]

    def shape(self, dims: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """The shape of the past or present, from that of the model's."""
        return (*dims[: self.dim], len(self.kept), *dims[self.dim + 1 :])

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """The part of a whole cache; an array of the part's size stays."""
        if array.shape[self.dim] == len(self.kept):
            return array
        index = np.asarray(self.kept, np.int64)
        return np.ascontiguousarray(np.take(array, index, axis=self.dim))

    def to_json(self) -> dict[str, object]:
        """The part as an object for ``json.dumps``."""
        return {**vars(self), "kept": list(self.kept)}

    @classmethod
    def from_json(cls, fields: Fields) -> KeptCache:
        """Read what `to_json` gives.

        Raises:
            BundleError: A field is missing, unknown, or has another type or range.
        """
        kept = tuple(_index(fields, i) for i in fields.array("kept"))
        found = cls(*_place(fields), kept)
        if list(found.kept) != sorted(set(found.kept)):
            raise fields.error(
                "kept", "is not in order", expected="increasing indices", got=str(found.kept)
            )
        return found


def _place(fields: Fields) -> tuple[str, str, int]:
    past, present = (fields.text(name, NAME, "a value's name") for name in ("past", "present"))
    return past, present, fields.count("dim", 0, _MAX_RANK)


def _index(fields: Fields, value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise fields.error(
            "kept", "holds something that is not an index", expected="indices", got=repr(value)
        )
    return value
