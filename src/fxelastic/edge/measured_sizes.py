"""The sizes of inputs at which a profile measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from operator import index

import numpy as np

from fxelastic.errors import UsageError
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.manifest import Manifest, ModelInfo
from fxelastic.spec.symbols import Symbol, dimension

#: Sizes to measure at: some values of each name, or combinations.
SizesToMeasure = Mapping[str, int | Sequence[int]] | Sequence[Sizes]

# The largest size by default, as a multiple of the example's: of the length of a text, or of the
# number of pixels of an image.
_LARGEST = 4
# Between sizes that differ by more than this factor, one is added by default.
_APART = 8
# The largest number of combinations at which the error is measured.
_MOST_BETWEEN = 4


@dataclass(frozen=True)
class SizePlan:
    """The combinations of sizes at which a profile measures.

    Attributes:
        points: The combinations that costs are fitted to; a single empty one if no size but the
            batch may vary.
        between: Other combinations, where the error of the costs is measured.
        example: The index of the example's sizes in ``points``; 0 if they are not there.
    """

    points: tuple[dict[str, int], ...]
    between: tuple[dict[str, int], ...]
    example: int

    @classmethod
    def of(cls, model: ModelInfo, given: SizesToMeasure | None) -> SizePlan:
        """Choose the combinations.

        With several names, the first values of all names are combined, the second values, and so
        on. Besides, the largest value of each is combined with the smallest of the others, so that
        the costs of each size are told apart. With several combinations, the example's is always
        among them.

        Args:
            model: The model.
            given: Values for each name, or combinations. None for the smallest size that the model
                takes, the example's, and the largest, or four times the example's if that is less;
                and sizes in between, so that none is more than 8 times the one before. With
                several names, None means the smallest, the example's, and at most twice the
                example's.

        Raises:
            UsageError: A name is unknown or missing, a size is out of range, or the names have
                different numbers of values.
        """
        points = _points(model, given)
        example = {symbol.name: symbol.example for symbol in model.sizes}
        between = _between(model.sizes, points) if len(points) > 1 else ()
        return cls(points, between, points.index(example) if example in points else 0)

    @property
    def all(self) -> tuple[dict[str, int], ...]:
        """All combinations, ``points`` first."""
        return (*self.points, *self.between)

    @property
    def judged(self) -> range:
        """The indices in `all` of the combinations at which the error is computed."""
        n = len(self.points)
        return range(n, len(self.all)) if self.between else range(n)

    def __str__(self) -> str:
        texts = [", ".join(f"{k} = {v}" for k, v in point.items()) for point in self.points]
        return "; ".join(texts)


def _points(model: ModelInfo, given: SizesToMeasure | None) -> tuple[dict[str, int], ...]:
    """The combinations of sizes to fit costs to, sorted; see `SizePlan.of`."""
    symbols = model.sizes
    if given is None:
        given = _default(symbols)
    if not isinstance(given, Iterable):
        raise _malformed(model, given)
    if not isinstance(given, Mapping):
        points = [_checked(model, point) for point in given]
        if not points:
            raise _malformed(model, given)
    else:
        values = {
            name: tuple(value) if isinstance(value, Iterable) else (value,)
            for name, value in given.items()
        }
        lengths = {len(value) for value in values.values()}
        if set(values) != {s.name for s in symbols} or len(lengths) > 1 or 0 in lengths:
            raise _malformed(model, given)
        zipped = [
            dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)
        ]
        least = {name: min(value) for name, value in values.items()}
        corners = [{**least, name: max(value)} for name, value in values.items()]
        points = [_checked(model, point) for point in (*zipped, *corners)] or [{}]
    if len({tuple(point.values()) for point in points}) > 1:
        points.append({symbol.name: symbol.example for symbol in symbols})
    return _distinct(points)


def _between(symbols: Sequence[Symbol], points: Sequence[Sizes]) -> tuple[dict[str, int], ...]:
    """Geometric means of neighbours among the combinations, where these are furthest apart."""
    ordered = sorted(points, key=lambda point: (math.prod(point.values()), *point.values()))
    known = {tuple(point.values()) for point in points}
    found: dict[tuple[int, ...], float] = {}
    for low, high in pairwise(ordered):
        middle = tuple(
            symbol.aligned(round(math.sqrt(low[symbol.name] * high[symbol.name])))
            for symbol in symbols
        )
        inside = all(s.holds(size) for s, size in zip(symbols, middle, strict=True))
        if inside and middle not in known:
            found[middle] = math.prod(high.values()) / max(1, math.prod(low.values()))
    widest = sorted(found, key=lambda middle: -found[middle])[:_MOST_BETWEEN]
    names = [symbol.name for symbol in symbols]
    return _distinct([dict(zip(names, middle, strict=True)) for middle in widest])


def basis_of(manifest: Manifest, points: Sequence[Sizes]) -> tuple[str, ...]:
    """The functions of sizes that costs are sums of.

    A layer's cost is proportional to the elements of its features: to ``seq``, or to ``H*W``. In
    attention, it is also proportional to the elements of two features: to ``seq**2``. So the
    basis holds the products of the sizes that occur together in the shape of a value, the products
    of two such products, and 1. Functions that the measured sizes can't tell from those before are
    left out.

    Args:
        manifest: The bundle's manifest.
        points: The combinations of sizes that costs are fitted to.
    """
    names = [symbol.name for symbol in manifest.model.sizes]
    features: dict[tuple[str, ...], None] = {}
    for value in manifest.values:
        used = {name for dim in value.dims if isinstance(dim, str) for name in _names(dim)}
        features[tuple(name for name in names if name in used)] = None
    pairs = combinations_with_replacement(features, 2)
    degrees = {tuple((a + b).count(name) for name in names) for a, b in pairs}
    degrees |= {tuple(feature.count(name) for name in names) for feature in features}
    chosen: list[str] = []
    columns: list[np.ndarray] = []
    for degree in sorted({*degrees, (0,) * len(names)}, key=lambda d: (sum(d), [-k for k in d])):
        text = _monomial(names, degree)
        column = np.array([dimension(text).at(point) for point in points], float)
        trial = np.stack([*columns, column / np.linalg.norm(column)])
        if np.linalg.matrix_rank(trial, tol=1e-6) == len(trial):
            chosen.append(text)
            columns = list(trial)
    return tuple(chosen)


def _names(dim: str) -> tuple[str, ...]:
    return dimension(dim).symbols


def _monomial(names: Sequence[str], degree: Sequence[int]) -> str:
    factors = [
        name if k == 1 else f"{name}**{k}" for name, k in zip(names, degree, strict=True) if k
    ]
    return "*".join(factors) or "1"


def _default(symbols: Sequence[Symbol]) -> dict[str, list[int]]:
    """For each symbol the smallest size, the example's and a larger one, and some in between."""
    times = _LARGEST if len(symbols) < 2 else round(math.sqrt(_LARGEST))
    found = {}
    for symbol in symbols:
        smallest = symbol.aligned(max(1, symbol.min))
        sizes = [smallest, symbol.example, symbol.large(times)]
        if len(symbols) == 1:
            for low, high in pairwise(tuple(sizes)):
                n = math.ceil(math.log(max(1, high / low), _APART))
                between = [low * (high / low) ** (i / n) for i in range(1, n)]
                sizes += [symbol.aligned(round(size)) for size in between]
        found[symbol.name] = sorted(sizes)
    return found


def _checked(model: ModelInfo, point: object) -> dict[str, int]:
    """A combination of sizes with every name.

    Raises:
        UsageError: A name is unknown or missing, or a size is out of range.
    """
    names = [symbol.name for symbol in model.sizes]
    if not isinstance(point, Mapping) or set(point) != set(names):
        raise _malformed(model, point)
    if any(isinstance(size, bool) or not hasattr(size, "__index__") for size in point.values()):
        raise _malformed(model, point)
    found = model.sizes_at(model.batch_size, {name: index(size) for name, size in point.items()})
    return {name: found[name] for name in names}


def _distinct(points: Sequence[dict[str, int]]) -> tuple[dict[str, int], ...]:
    by_values = {tuple(point.values()): point for point in points}
    return tuple(by_values[values] for values in sorted(by_values))


def _malformed(model: ModelInfo, got: object) -> UsageError:
    if not model.sizes:
        return UsageError(
            "the model has no size that may vary besides the batch size",
            expected="sizes=None",
            got=repr(got),
            fix="pass dynamic_shapes= to fxelastic.expand to let sizes vary",
        )
    example = {symbol.name: (symbol.example, symbol.large(_LARGEST)) for symbol in model.sizes}
    return UsageError(
        "sizes to measure at must have values for each size of the model that may vary",
        expected=", ".join(map(str, model.sizes)) + ", as many values for each",
        got=repr(got),
        fix=f"for example sizes={example}",
    )
