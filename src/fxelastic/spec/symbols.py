"""Named sizes that may vary, and expressions of them."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from fxelastic.spec.json_fields import Fields

#: Pattern of a symbol's name.
SYMBOL_NAME = r"[A-Za-z_]\w{0,99}"

#: The name of the batch size, unless the user gives it another.
BATCH = "N"

#: The largest size that a symbol may stand for.
MAX_SIZE = 2**31

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}

# What torch's expressions of sizes call.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "CeilToInt": math.ceil,
    "FloorToInt": math.floor,
    "TruncToInt": math.trunc,
    "RoundToInt": round,
    "IntTrueDiv": operator.truediv,
    "ToFloat": float,
    "ceiling": math.ceil,
    "floor": math.floor,
    "ModularIndexing": lambda value, divisor, modulus: value // divisor % modulus,
}

# torch captures sizes of 0 and 1 as constants.
_LEAST = 2

# Larger exponents and values do not occur in sizes, and would take long to compute.
_MAX_POWER = 64
_MAX_VALUE = 2**200


@dataclass(frozen=True)
class Symbol:
    """A size that may vary.

    Attributes:
        name: Its name, in shapes such as ``[N, seq, 384]``.
        example: Its value in the example inputs.
        min: The smallest value that the model takes.
        max: The largest value; None if there is no limit.
        step: Values differ from the example's by multiples of it.
    """

    name: str
    example: int
    min: int = 1
    max: int | None = None
    step: int = 1

    def __str__(self) -> str:
        """The symbol as messages write it: ``seq[1..512]``, ``H[32.. by 32]``."""
        largest = "" if self.max is None else self.max
        return f"{self.name}[{self.min}..{largest}{f' by {self.step}' * (self.step > 1)}]"

    def holds(self, size: int) -> bool:
        """Whether a size is in the range."""
        in_range = self.min <= size and (self.max is None or size <= self.max)
        return in_range and (size - self.example) % self.step == 0

    @property
    def traced(self) -> int:
        """The example's size, or the next that torch does not take for a constant."""
        size = self.example
        while size // self.step < _LEAST:
            size += self.step
        return size

    def traced_at(self, times: int) -> int:
        """About so many times the size `traced`; the size itself if that is out of range."""
        larger = self.aligned(times * self.traced)
        return larger if self.holds(larger) else self.traced

    def large(self, times: int) -> int:
        """The largest size, or one of about so many times the example's if that is smaller."""
        limit = times * max(self.example, 1)
        largest = limit if self.max is None else min(self.max, limit)
        return largest - (largest - self.example) % self.step

    def aligned(self, size: int) -> int:
        """The smallest possible size of at least a given one."""
        return size + (self.example - size) % self.step

    def to_json(self) -> dict[str, object]:
        """The symbol as an object for ``json.dumps``."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, fields: Fields) -> Symbol:
        """Read what `to_json` gives.

        Raises:
            BundleError: A field is missing, unknown, or has another type or range.
        """
        smallest = fields.count("min", 0, MAX_SIZE)
        unlimited = "max" in fields.value and fields.value["max"] is None
        largest = fields.take("max") if unlimited else fields.count("max", smallest, MAX_SIZE)
        symbol = cls(
            fields.text("name", SYMBOL_NAME, "a name"),
            fields.count("example", smallest, MAX_SIZE if largest is None else largest),
            smallest,
            largest,
            fields.count("step", 1, MAX_SIZE),
        )
        fields.end()
        return symbol


class Dimension:
    """A size as an expression of symbols: ``seq + 1``, ``N*(H//16)*(W//16)``."""

    def __init__(self, text: str) -> None:
        """Parse the text of an expression.

        Raises:
            ValueError: The text is not an expression of sizes.
        """
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            names = set(_names(tree))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise ValueError(f"{text[:80]!r} is not an expression of sizes") from e
        self.text = text
        self._tree = tree
        self.symbols = tuple(sorted(names))

    def at(self, sizes: Mapping[str, int]) -> int:
        """Its value.

        Args:
            sizes: The value of each symbol.

        Raises:
            ValueError: A symbol has no value, or the result is not a size.
        """
        try:
            value = _value(self._tree, sizes)
            size = int(value)
        except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError) as e:
            raise ValueError(f"{self.text} can't be computed from {dict(sizes)}: {e}") from e
        if value != size:
            raise ValueError(f"{self.text} is {value} for {dict(sizes)}, which is not a size")
        return size

    def solve(self, size: int) -> tuple[str, int] | None:
        """The symbol, and its value at which the expression has a given value.

        Returns:
            None if the expression is not linear in a single symbol. The value is -1 if no integer
            of at least 0 gives the size.
        """
        if self._linear is None:
            return None
        name, factor, offset = self._linear
        value, rest = divmod(size - offset, factor)
        return name, -1 if rest or value < 0 else value

    @cached_property
    def _linear(self) -> tuple[str, int, int] | None:
        """``(s, a, b)`` if the expression is ``a*s + b``."""
        if len(self.symbols) != 1 or any(
            isinstance(node, (ast.Call, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow))
            for node in ast.walk(self._tree)
        ):
            return None
        (name,) = self.symbols
        try:
            offset, at_one, at_two = (self.at({name: n}) for n in range(3))
        except ValueError:
            return None  # not an integer at each size, such as 0.5*N
        factor = at_one - offset
        return (name, factor, offset) if factor and at_two == offset + 2 * factor else None


@lru_cache(maxsize=4096)
def dimension(text: str) -> Dimension:
    """The expression that a text holds; each text is parsed once.

    Raises:
        ValueError: The text is not an expression of sizes.
    """
    return Dimension(text)


def shape_at(dims: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The sizes of a shape with expressions.

    Raises:
        ValueError: A symbol has no value, or an expression gives no size.
    """
    return tuple(dim if isinstance(dim, int) else dimension(dim).at(sizes) for dim in dims)


def _names(tree: ast.AST) -> list[str]:
    """The symbols of an expression.

    Raises:
        ValueError: A part of the tree does not belong in an expression of sizes.
    """
    if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        return []
    if isinstance(tree, ast.Name):
        return [tree.id]
    if isinstance(tree, ast.BinOp) and type(tree.op) in _BINARY:
        return _names(tree.left) + _names(tree.right)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, (ast.USub, ast.UAdd)):
        return _names(tree.operand)
    function = tree.func if isinstance(tree, ast.Call) and not tree.keywords else None
    if isinstance(function, ast.Name) and function.id in _FUNCTIONS:
        assert isinstance(tree, ast.Call)
        return [name for argument in tree.args for name in _names(argument)]
    raise ValueError(ast.dump(tree)[:80])


def _value(tree: ast.AST, sizes: Mapping[str, int]) -> Any:
    if isinstance(tree, ast.Constant):
        return tree.value
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    if isinstance(tree, ast.BinOp):
        left, right = _value(tree.left, sizes), _value(tree.right, sizes)
        if isinstance(tree.op, ast.Pow) and abs(right) > _MAX_POWER:
            raise ArithmeticError(f"the exponent {right} is too large")
        value = _BINARY[type(tree.op)](left, right)
        if abs(value) > _MAX_VALUE:
            raise ArithmeticError("the value is too large")
        return value
    if isinstance(tree, ast.UnaryOp):
        value = _value(tree.operand, sizes)
        return -value if isinstance(tree.op, ast.USub) else value
    assert isinstance(tree, ast.Call)
    assert isinstance(tree.func, ast.Name)
    return _FUNCTIONS[tree.func.id](*(_value(argument, sizes) for argument in tree.args))
