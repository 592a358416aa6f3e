"""A named tensor that crosses a cut between blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fxelastic.errors import UsageError
from fxelastic.spec.json_fields import Fields, show
from fxelastic.spec.quantised import Scale
from fxelastic.spec.symbols import dimension, shape_at

#: The dtypes of values, by NumPy's names, or onnxruntime's if NumPy lacks the dtype.
DTYPES: tuple[str, ...] = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)


def itemsize(dtype: str) -> int:
    """The size of an element of one of `DTYPES`, in bytes."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1


#: Pattern for the names of values, results and inputs.
NAME = r"[^\W\d]\w{0,999}"

#: The largest number of elements of a value at batch size 1.
MAX_ELEMENTS = 2**40

_MAX_RANK = 64
_SYMBOLIC = r"[A-Za-z0-9_ ()*/%,.+-]{1,200}"


@dataclass(frozen=True)
class ValueInfo:
    """A value of the model: an input, a result, or a value between blocks.

    Attributes:
        name: Its name in feeds and in ONNX files.
        dtype: NumPy's name of the dtype: ``float32``, ``int64``, ``bool``, …
        dims: Its shape: integers, and expressions of the batch size and the other sizes that vary,
            such as ``64*N`` and ``seq + 1``.
        produced: The block that computes it; -1 for an input or a constant.
        last_read: The last block that reads it; the number of blocks for a result of the model,
            -1 for an input that no block reads.
        constant: For a result that depends on no input, the file with its elements (little
            endian, C order); otherwise None.
        range: For integers and booleans, the lowest and the highest value observed with the
            example inputs; None if unknown, as in bundles of earlier releases.
        int8: Its 8-bit form, if branches read or compute it in 8 bits; None otherwise. Between
            files it is always a ``dtype``.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    produced: int = -1
    last_read: int = -1
    constant: str | None = None
    range: tuple[int, int] | None = None
    int8: Scale | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Its shape, with None for each size that varies."""
        return tuple(dim if isinstance(dim, int) else None for dim in self.dims)

    def dim_of(self, symbol: str) -> int | None:
        """The first dimension whose size depends on a symbol; None if none does."""
        for i, dim in enumerate(self.dims):
            if isinstance(dim, str) and symbol in dimension(dim).symbols:
                return i
        return None

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape for given sizes.

        Args:
            sizes: The value of each symbol of the model, such as ``N``, by its name.

        Raises:
            UsageError: A size depends on something else, such as the data.
        """
        try:
            return shape_at(self.dims, sizes)
        except ValueError as e:
            raise UsageError(
                f"the shape of value {self.name!r} does not follow from the model's sizes: {e}",
                expected=f"expressions of {', '.join(sizes) or 'no symbol'}",
                got=str(self),
                fix="run the model to see it",
            ) from e

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"

    def to_json(self) -> dict[str, object]:
        """The value as an object for ``json.dumps``."""
        known: dict[str, object] = {} if self.range is None else {"range": list(self.range)}
        if self.int8 is not None:
            known["int8"] = self.int8.to_json()
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.dims),
            "produced": self.produced,
            "last_read": self.last_read,
            "constant": self.constant,
            **known,
        }

    @classmethod
    def from_json(cls, fields: Fields, n_blocks: int) -> ValueInfo:
        """Read the object that `to_json` returns.

        Raises:
            BundleError: A field is missing, of the wrong type, or out of range.
        """
        dtype = fields.text("dtype")
        if dtype not in DTYPES:
            raise fields.error(
                "dtype", "is not a dtype", expected=", ".join(DTYPES), got=show(dtype)
            )
        value = cls(
            fields.text("name", NAME, "a name"),
            dtype,
            _dims(fields),
            fields.count("produced", -1, n_blocks - 1),
            fields.count("last_read", -1, n_blocks),
            fields.optional_text("constant"),
            _range(fields, dtype) if "range" in fields.value else None,
            Scale.from_json(fields.object("int8")) if "int8" in fields.value else None,
        )
        if value.int8 is not None and dtype != "float32":
            raise fields.error(
                "int8", "is set for another dtype", expected="a value of float32", got=dtype
            )
        if value.constant is not None and (value.produced != -1 or None in value.shape):
            raise fields.error(
                "constant",
                "is set for a value that is not a constant",
                expected="a value with a fixed shape that no block computes",
                got=str(value),
            )
        return value


def _range(fields: Fields, dtype: str) -> tuple[int, int]:
    found = fields.array("range")
    low, high = (0, 1) if dtype == "bool" else _limits(dtype)
    if len(found) != 2 or not all(type(n) is int and low <= n <= high for n in found):
        raise fields.error(
            "range",
            f"is not a range of {dtype}",
            expected=f"two integers from {low} to {high}"
            if low < high
            else "no range for this dtype",
            got=show(found),
        )
    if found[0] > found[1]:
        raise fields.error("range", "is empty", expected="the lower value first", got=show(found))
    return found[0], found[1]


def _limits(dtype: str) -> tuple[int, int]:
    """The lowest and the highest value of an integer dtype; an empty range for other dtypes."""
    integer = re.fullmatch(r"(u?)int(\d+)", dtype)
    if integer is None:
        return 0, -1
    bits = int(integer[2])
    return (0, 2**bits - 1) if integer[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _is_expression(text: str) -> bool:
    if re.fullmatch(_SYMBOLIC, text) is None:
        return False
    try:
        return bool(dimension(text).symbols)
    except ValueError:
        return False


def _dims(fields: Fields) -> tuple[int | str, ...]:
    dims = fields.array("shape")
    for i, dim in enumerate(dims):
        symbolic = isinstance(dim, str) and _is_expression(dim)
        literal = isinstance(dim, int) and not isinstance(dim, bool) and 0 <= dim <= MAX_ELEMENTS
        if not symbolic and not literal:
            raise fields.error(
                f"shape[{i}]",
                "is not a size",
                expected=f"an integer from 0 to {MAX_ELEMENTS}, or an expression such as seq+1",
                got=show(dim),
            )
    # A size of zero counts as one, so that it does not hide large sizes.
    n_elements = math.prod(max(dim, 1) for dim in dims if isinstance(dim, int))
    if len(dims) > _MAX_RANK or n_elements > MAX_ELEMENTS:
        raise fields.error(
            "shape",
            "is too large",
            expected=f"at most {_MAX_RANK} sizes and {MAX_ELEMENTS} elements",
            got=f"{len(dims)} sizes and {n_elements:.3g} elements",
        )
    return tuple(dims)
