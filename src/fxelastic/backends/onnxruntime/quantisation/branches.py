"""Make 8-bit branches from converted float branches, and measure their errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from fxelastic.backends.onnxruntime.quantisation.dynamic import linear_maps, quantise_dynamic
from fxelastic.backends.onnxruntime.quantisation.errors import Judge, NotMadeError
from fxelastic.backends.onnxruntime.quantisation.features import Features
from fxelastic.backends.onnxruntime.quantisation.operators import choose
from fxelastic.backends.onnxruntime.quantisation.options import Int8
from fxelastic.backends.onnxruntime.quantisation.products import fuse_products
from fxelastic.backends.onnxruntime.quantisation.ranges import (
    Array,
    Range,
    ranges_inside,
    scale_of,
)
from fxelastic.backends.onnxruntime.quantisation.reduced import reduce_range
from fxelastic.backends.onnxruntime.quantisation.static import (
    quantise_static,
    with_signed_activations,
)
from fxelastic.backends.onnxruntime.slicing import PRODUCER
from fxelastic.ir.branch import Branch
from fxelastic.spec.branch_spec import ORIGINAL, BranchSpec
from fxelastic.spec.quantised import INT8, REDUCED, Quantised, Scale, int8_id
from fxelastic.spec.value_info import ValueInfo

logger = logging.getLogger(__name__)

#: Batches by name of the input.
Batch = Mapping[str, Array]

# Processors differ in the last bit of a rounded number.
_TOLERANCE, _LEAST_TOLERANCE = 2.0, 1e-5
#: Quantises a model, given the operators that stay float.
Attempt = Callable[[Sequence[str]], onnx.ModelProto]
#: Changes a quantised model to a format, given the values that exist in 8 bits.
Change = Callable[[onnx.ModelProto, Collection[str]], onnx.ModelProto]

# The ways to quantise a model, and the formats that each gives by a change of its result.
_RECIPES: Mapping[str, Mapping[str, Change]] = {
    "static": {
        "u8s8": fuse_products,
        f"u8s8{REDUCED}": lambda model, stored: reduce_range(fuse_products(model, stored)),
        "s8s8": lambda model, _: with_signed_activations(model),
    },
    "dynamic": {
        "dynamic": lambda model, _: model,
        f"dynamic{REDUCED}": lambda model, _: reduce_range(model),
    },
}


@dataclass(frozen=True)
class Int8Branch:
    """A branch of kind ``int8``.

    Attributes:
        spec: Its id, interval and size.
        model: Its converted graph.
        quantised: How it was made.
        approximate: Whether its float branch is approximate.
        note: How it was made, in words.
    """

    spec: BranchSpec
    model: ir.Model
    quantised: Quantised
    approximate: bool
    note: str

    @property
    def id(self) -> str:
        """The branch's id."""
        return self.spec.id


@dataclass(frozen=True)
class Int8Branches:
    """The 8-bit branches of a supernet.

    Attributes:
        branches: The branches.
        scales: The 8-bit forms of values between blocks, by name.
        refused: For each branch that was not made its id, and the reason.
    """

    branches: tuple[Int8Branch, ...]
    scales: Mapping[str, Scale]
    refused: tuple[tuple[str, str], ...]


def quantise_branches(
    branches: Sequence[Branch],
    models: Mapping[str, ir.Model],
    values: Mapping[str, ValueInfo],
    options: Int8,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    progress: Callable[[str], None] = lambda _: None,
) -> Int8Branches:
    """Make an 8-bit branch in each format that suits a float branch.

    A branch reads the values that the model's own blocks compute for the batches.

    Args:
        branches: The float branches.
        models: Their converted graphs by id; they don't change.
        values: The values between blocks by name.
        options: The formats, and how ranges are found.
        batches: The inputs that ranges are found on.
        held_out: The inputs that errors are measured on.
        progress: Called with a short text at each step.
    """
    progress("finding the ranges of the values between blocks")
    originals = sorted((b for b in branches if b.kind == ORIGINAL), key=lambda b: b.start)
    protos = [_proto(models[branch.id]) for branch in originals]
    ranges = Features(protos, values, batches).ranges(options.ranges).result()
    scales = {name: scale_of(found) for name, found in ranges.items()}
    crossing: set[str] = set()
    for proto in protos:
        outputs = {value.name for value in proto.graph.output}
        crossing |= outputs & choose(proto.graph, crossing).values & scales.keys()
    maker = _Maker(options, scales, ranges, frozenset(crossing))
    chosen = [b for b in branches if options.kinds is None or b.kind in options.kinds]
    starting: dict[int, list[Branch]] = {}
    for branch in chosen:
        starting.setdefault(branch.start, []).append(branch)
    made: dict[str, Int8Branch] = {}
    n_done = 0
    known = Features(protos, values, batches).before()
    unseen = Features(protos, values, held_out).before()
    for block, (states, others) in enumerate(zip(known, unseen, strict=True)):
        for branch in starting.get(block, ()):
            n_done += 1
            progress(f"quantising {branch.id} ({n_done} of {len(chosen)})")
            given, judged = (_with_caches_of(branch, found) for found in (states, others))
            for found in maker.make(branch, _proto(models[branch.id]), given, judged):
                made[found.id] = found
    return Int8Branches(
        tuple(made.values()),
        {name: scale for name, scale in scales.items() if name in maker.used},
        tuple(maker.refused),
    )


def _with_caches_of(branch: Branch, batches: Sequence[Batch]) -> Sequence[Batch]:
    """The model's values with the part of each cache that a branch keeps."""
    kept = {part.past: (np.asarray(part.kept, np.int64), part.dim) for part in branch.spec.cache}
    return [
        {**batch, **{name: np.take(batch[name], *part) for name, part in kept.items()}}
        for batch in batches
    ]


class _Maker:
    """Makes the 8-bit branches of one float branch after the other."""

    def __init__(
        self,
        options: Int8,
        scales: Mapping[str, Scale],
        ranges: Mapping[str, Range],
        crossing: frozenset[str],
    ) -> None:
        self._options = options
        self._scales = scales
        self._ranges = ranges
        self._crossing = crossing
        self.refused: list[tuple[str, str]] = []
        self.used: set[str] = set()  # values between blocks that a branch has in 8 bits

    def make(
        self,
        branch: Branch,
        model: onnx.ModelProto,
        batches: Sequence[Batch],
        held_out: Sequence[Batch],
    ) -> Iterable[Int8Branch]:
        """The 8-bit branches of a float branch, each format once."""
        suited = choose(model.graph, self._crossing)
        if not suited.names:
            return  # nothing to compute in 8 bits, as in a block of reshapes
        judge = Judge(model, held_out)
        found = ranges_inside(model, batches, self._options.ranges)
        inside = {**found, **{k: self._ranges[k] for k in found.keys() & self._ranges.keys()}}
        weighted = {"static": suited.weighted, "dynamic": linear_maps(model.graph, suited)}

        def quantised(recipe: str, left: Sequence[str]) -> onnx.ModelProto:
            per_channel = self._options.per_channel
            if recipe == "dynamic":
                kept = tuple(name for name in weighted[recipe] if name not in left)
                return quantise_dynamic(model, kept, per_channel=per_channel)
            chosen = choose(model.graph, self._crossing, left)
            return quantise_static(model, chosen, inside, self._scales, per_channel=per_channel)

        for recipe, formats in _RECIPES.items():
            wanted = [format for format in formats if format in self._options.formats]
            if not wanted or (recipe == "dynamic" and not weighted[recipe]):
                continue
            try:
                first, left = self._fitted(partial(quantised, recipe), weighted[recipe], judge)
                for format, change in formats.items():
                    if format.removesuffix(REDUCED) not in wanted:
                        continue
                    try:
                        found = change(first, choose(model.graph, self._crossing, left).values)
                        error = judge.error(found)
                    except NotMadeError as e:
                        self._refuse(branch, [format], str(e))
                        continue
                    if not error <= self._options.max_error:
                        # Weights of fewer bits, or zero points, may cost what the first did not.
                        self._refuse(branch, [format], self._too_large(error))
                        continue
                    self.used |= _crossing_in_8_bits(found.graph)
                    yield _branch(branch, format, found, error, left)
            except NotMadeError as e:
                self._refuse(branch, wanted, str(e))

    def _refuse(self, branch: Branch, formats: Sequence[str], why: str) -> None:
        names = [int8_id(branch.id, format) for format in formats]
        self.refused += [(name, why) for name in names]
        logger.info("%s: not made: %s", ", ".join(names), why)

    def _too_large(self, error: float) -> str:
        limit = self._options.max_error
        return f"its error is {error:.2g} of the variance of its outputs; {limit:g} is accepted"

    def _fitted(
        self, attempt: Attempt, weighted: Sequence[str], judge: Judge
    ) -> tuple[onnx.ModelProto, tuple[str, ...]]:
        """Quantise a model; operators that lose most stay float until the error is small.

        Args:
            attempt: Quantises the model, given the operators that stay float.
            weighted: The operators with weights.
            judge: Measures the error.
        """
        limit = self._options.max_error
        found = attempt(())
        error = judge.error(found)
        left: list[str] = []
        if error > limit and len(weighted) > 1:
            # The errors of operators about add up.
            alone = {n: judge.error(attempt([m for m in weighted if m != n])) for n in weighted}
            for name in sorted(weighted, key=lambda n: -alone[n])[:-1]:
                left.append(name)
                if sum(alone[n] for n in weighted if n not in left) <= limit:
                    break
            found = attempt(left)
            error = judge.error(found)
        if not error <= limit:
            raise NotMadeError(self._too_large(error))
        return found, tuple(left)


def _crossing_in_8_bits(graph: onnx.GraphProto) -> set[str]:
    """The inputs and outputs of a graph that have fixed scales."""
    names = {value.name for value in (*graph.input, *graph.output)}
    read = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    computed = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    return names & (read | computed)


def _branch(
    branch: Branch, format: str, model: onnx.ModelProto, error: float, left: tuple[str, ...]
) -> Int8Branch:
    spec = branch.spec
    model.producer_name, model.producer_version = PRODUCER, ""
    tolerance = _TOLERANCE * error + _LEAST_TOLERANCE
    note = f"{branch.id} in 8 bits, {format}"
    if left:
        note += f"; {len(left)} operators stay float"
    return Int8Branch(
        replace(spec, id=int8_id(branch.id, format), kind=INT8),
        ir.from_proto(model),
        Quantised(branch.id, format, error, tolerance, left),
        branch.approximate,
        note,
    )


def _proto(model: ir.Model) -> onnx.ModelProto:
    """A converted model with the types of all its values."""
    proto = ir.to_proto(model)
    return onnx.shape_inference.infer_shapes(proto)
