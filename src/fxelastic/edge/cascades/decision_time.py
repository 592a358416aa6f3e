"""The time of a decision between two segments of a cascade, measured on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.confidence import max_softmax
from fxelastic.edge.cascades.joined import THRESHOLDS, CascadeForm, decision_alone
from fxelastic.edge.searching.choice import default_result
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.stopwatch import Stopwatch
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.spec import EXIT, Arch
from fxelastic.spec.cascade import Cascade, Servable
from fxelastic.spec.costs import BranchCosts
from fxelastic.spec.latency_table import original_cost

_OPSET, _IR_VERSION = 17, 8
# Decisions in a sample, and samples, of which the first ones warm up.
_REPEATS, _SAMPLES, _WARM = 16, 24, 4
# Exits of the cascade that is timed, and a threshold above every confidence.
_TIMED_EXITS, _NEVER = 4, 2.0
# Up to this latency of the original, the decisions of a cascade may take a large share.
_SMALL_MS = 10.0


def with_decisions(
    bundle: Bundle,
    latencies: Mapping[str, BranchCosts],
    maker: SessionMaker,
    watch: Stopwatch,
    in_loop: Callable[[Sequence[Servable]], Sequence[float] | None],
) -> dict[str, BranchCosts]:
    """Add the cost of a cascade's decisions, in the state of the caches of the other costs.

    A decision is timed in a loop, and so is the original: what both take otherwise is assumed
    to differ by the same factor, so that the decision's share of the original is right. If
    this share may be large, a cascade in which no sample leaves is timed, too.

    Args:
        bundle: The bundle.
        latencies: The latencies of the branches in each mode.
        maker: Makes sessions.
        watch: Times decisions.
        in_loop: Returns the latencies of subnets and cascades by themselves, in ms; None if there
            is no room for them.
    """
    decisions = {mode: decision_ms(bundle, maker, watch, mode) for mode in latencies}
    whole = bundle.space.original
    loop = in_loop([whole]) if any(decisions.values()) else None
    if loop is not None:
        assembled = latencies["assembled"]
        original_ms = original_cost(assembled)
        slower = max(1.0, original_ms / loop[0])
        decisions = {mode: slower * ms for mode, ms in decisions.items()}
        staying = all_stay(bundle) if original_ms < _SMALL_MS else None
        if staying is not None and decisions["assembled"]:
            loop = in_loop([whole, staying])
            extra_ms = 0.0 if loop is None else slower * (loop[1] - loop[0])
            found_ms = per_decision(staying, extra_ms, assembled)
            decisions["assembled"] = max(decisions["assembled"], found_ms)
    return {mode: replace(own, per_decision=decisions[mode]) for mode, own in latencies.items()}


def decision_ms(bundle: Bundle, maker: SessionMaker, watch: Stopwatch, mode: str) -> float:
    """What a decision of a cascade takes besides its branches, for one sample.

    A small model may take no longer as a whole, so cascades with many exits would be slower than
    the model itself; see `per_decision` for those. In assembled mode the cascade's model decides:
    a cascade of segments that compute nothing runs, and a session that does not even decide. In
    paged mode such a session ends, and the confidence of its result is computed in Python. The
    lower quartiles of the times count.

    Args:
        bundle: The bundle.
        maker: Makes the sessions.
        watch: Times them.
        mode: ``assembled`` or ``paged``.

    Returns:
        The time in ms; 0 if the bundle has no exits or its result has no class scores.
    """
    exits = [spec.id for spec in bundle.space.branches if spec.kind == EXIT]
    info = bundle.outputs[default_result(bundle)]
    if not exits or len(info.dims) != 2 or not isinstance(info.dims[1], int) or info.dims[1] < 2:
        return 0.0
    logits = np.zeros((1, info.dims[1]), np.float32)
    nothing = maker.open_branch(VerifiedModel("nothing", _identity(info.dims[1])))
    if mode != "assembled" or not _are_joinable(bundle, exits):
        return _timed(watch, lambda: max_softmax(nothing.run(["y"], {"x": logits})[0]))
    model = decision_alone(info.dims[1]).SerializeToString()
    deciding = maker.open_branch(VerifiedModel("a decision", model))
    never = np.full(1, 2.0)
    with_it = _timed(watch, lambda: deciding.run(None, {"x": logits, THRESHOLDS: never}))
    without = _timed(watch, lambda: nothing.run(None, {"x": logits}))
    return max(0.0, with_it - without)


def all_stay(bundle: Bundle) -> Cascade | None:
    """A cascade along the original in which no sample leaves, to time its decisions in.

    Its exits are spread evenly over the original, at most four.

    Returns:
        The cascade; None if there are no exits, or one model can't compute it.
    """
    space = bundle.space
    exits = {
        spec.start: spec.id
        for spec in space.branches
        if spec.kind == EXIT and spec.stop == space.n_blocks and spec.start > 0
    }
    starts = sorted(exits)
    chosen = starts[:: -(-len(starts) // _TIMED_EXITS)] if starts else ()
    archs = [Arch((*space.original.branches[:start], exits[start])) for start in chosen]
    if not archs:
        return None
    cascade = Cascade((*archs, space.original), (_NEVER,) * len(archs))
    return cascade if CascadeForm.of(cascade).is_joinable(bundle) else None


def per_decision(cascade: Cascade, extra_ms: float, costs: BranchCosts) -> float:
    """What a decision takes in a cascade in which no sample leaves, in ms; at least 0.

    It is more than what decides: the rest of the network runs inside of it.

    Args:
        cascade: The cascade.
        extra_ms: How much longer it takes than the subnet that it ends in.
        costs: The latencies of the branches, among them its exits.
    """
    heads = math.fsum(costs.costs[arch.branches[-1]] for arch in cascade.archs[:-1])
    return max(0.0, extra_ms - heads) / len(cascade.thresholds)


def _are_joinable(bundle: Bundle, exits: Sequence[str]) -> bool:
    """Whether cascades with each of some exits are one model."""
    original = bundle.space.original
    starts = (bundle.segment(branch).spec.start for branch in exits)
    return all(
        CascadeForm.of(
            Cascade((Arch((*original.branches[:start], branch)), original), (0.0,))
        ).is_joinable(bundle)
        for start, branch in zip(starts, exits, strict=True)
    )


def _timed(watch: Stopwatch, decide: Callable[[], object]) -> float:
    times = []
    for _ in range(_SAMPLES):
        begin = watch.begin()
        for _ in range(_REPEATS):
            decide()
        times.append(watch.ms_since(begin) / _REPEATS)
    return float(np.quantile(times[_WARM:], 0.25))


def _identity(n_classes: int) -> bytes:
    """A model that returns its input."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n_classes]) for name in "xy"
    ]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "identity", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    return bytes(model.SerializeToString())
