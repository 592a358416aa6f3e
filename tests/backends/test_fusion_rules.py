"""onnxruntime's fusion rules are what the installed onnxruntime does, measured here again."""

from __future__ import annotations

import functools

import pytest

from benchmarks.fusion_probe import Cut, Measured, measure
from fxelastic.backends.onnxruntime.fusion_rules import ONNXRUNTIME

# One worker measures all chains.
pytestmark = pytest.mark.xdist_group("fusion rules")

# Rule → chains in which the framework fuses across the cut, each as (kind of value, chain).
# See benchmarks/fusion_samples.py for the operators.
FUSED: dict[str, tuple[tuple[str, str], ...]] = {
    "conv-bn": (
        ("image", "conv2d | batch_norm"),
        ("image", "conv2d_depthwise | batch_norm"),
        ("image", "conv2d | batch_norm relu"),
        ("image", "conv_transpose2d | batch_norm"),
        ("signal", "conv1d | batch_norm"),
        ("volume", "conv3d | batch_norm"),
    ),
    "conv-activation": (
        ("image", "conv2d | relu"),
        ("image", "conv2d | relu6"),
        ("image", "conv2d | hardtanh"),
        ("image", "conv2d | clamp"),
        ("image", "conv2d | leaky_relu"),
        ("image", "conv2d | sigmoid"),
        ("image", "conv2d | tanh"),
        ("image", "conv2d | hardsigmoid"),
        ("image", "conv2d | log_sigmoid"),
        ("signal", "conv1d | relu"),
        ("volume", "conv3d | relu"),
    ),
    "conv-constant": (
        ("image", "conv2d | add_constant"),
        ("image", "conv2d | mul_constant"),
        ("image", "conv2d | mul_number"),
    ),
    "pad-conv": (
        ("image", "pad | conv2d"),
        ("image", "pad | max_pool2d"),
        ("image", "pad | avg_pool2d"),
        ("signal", "pad | conv1d"),
    ),
    "gemm-bn": (("vector", "linear | batch_norm"), ("vector", "mm | batch_norm")),
    "gemm-activation": (
        ("vector", "linear | relu"),
        ("vector", "linear | leaky_relu"),
        ("vector", "linear | sigmoid"),
        ("vector", "linear | tanh"),
        ("vector", "linear | hardsigmoid"),
        ("vector", "linear | elu"),
        ("vector", "linear | selu"),
        ("vector", "linear | log_sigmoid"),
        ("tokens", "linear | gelu"),
        ("tokens", "linear | gelu_tanh"),
    ),
    "matmul-constant": (
        ("vector", "mm | add_constant"),
        ("tokens", "matmul | mul_number"),
        ("tokens", "matmul | div_number"),
        ("tokens", "linear_no_bias | mul_number"),
        ("heads", "attention | mul_number"),
    ),
    "transpose-matmul": (
        ("tokens", "transpose | linear_tokens"),
        ("tokens", "transpose | matmul_tokens"),
    ),
    "bn-activation": (
        ("image", "conv2d batch_norm | relu"),
        ("image", "conv2d batch_norm | hardsigmoid"),
        ("vector", "linear batch_norm | relu"),
    ),
    "bn-constant": (("image", "conv2d batch_norm | mul_constant"),),
    "bn-bn": (("image", "conv2d batch_norm | batch_norm"),),
    "scale-constant": (
        ("image", "conv2d mul_constant | add_constant"),
        ("tokens", "standardise | mul_constant add_constant"),
        ("tokens", "standardise mul_constant | add_constant"),
    ),
    "shift-constant": (("image", "conv2d add_constant | mul_constant"),),
    "constant-bn": (
        ("image", "conv2d mul_constant | batch_norm"),
        ("image", "conv2d add_constant | batch_norm"),
    ),
    "constant-activation": (
        ("image", "conv2d add_constant | relu"),
        ("image", "conv2d mul_constant | relu"),
        ("vector", "mm add_constant | relu"),
        ("tokens", "linear_no_bias add_constant | gelu"),
    ),
    "relu-clip": (("image", "relu | clamp"), ("image", "clamp | relu")),
    "layout-layout": (
        ("image", "channels_last | channels_last_back"),
        ("tokens", "reshape | flatten"),
        ("tokens", "transpose | mean"),
    ),
    "no-op-after": (
        ("image", "conv2d | dropout relu"),
        ("tokens", "linear | dropout gelu"),
    ),
    "no-op-before": (
        ("image", "conv2d dropout | relu"),
        ("image", "conv2d dropout | batch_norm"),
    ),
    "no-op-constant": (("image", "conv2d dropout | mul_constant"),),
    "add-layer-norm": (
        ("tokens", "add | layer_norm"),
        ("tokens", "linear add | layer_norm"),
        ("tokens", "add dropout | layer_norm"),
    ),
    "matmul-add": (
        ("tokens", "linear | add layer_norm"),
        ("tokens", "linear dropout | add layer_norm"),
        ("vector", "mm | add"),
    ),
    "scale-matmul": (
        ("tokens", "mul_number | linear"),
        ("tokens", "div_number | matmul"),
        ("heads", "mul_number | attention"),
    ),
}

# Rules that keep operators together which the framework does not fuse: what belongs to a
# convolution is not to be a block of its own. A fusion that appears here is no harm, but news.
KEPT: dict[str, tuple[tuple[str, str], ...]] = {
    "activation-kept": (
        ("image", "conv2d batch_norm | silu"),
        ("image", "conv2d batch_norm | hardswish"),
        ("image", "conv2d | mish"),
    ),
}

# Where no rule is wanted, because nothing is fused.
FREE: tuple[tuple[str, str], ...] = (
    ("image", "relu | conv2d"),
    ("image", "max_pool2d | conv2d"),
    ("image", "conv2d relu | batch_norm"),
    ("image", "conv2d | add relu"),
    ("image", "conv2d batch_norm | add"),
    ("image", "conv2d add | batch_norm"),
    ("image", "add relu | conv2d"),
    ("tokens", "linear gelu | linear"),
    ("heads", "transpose | attention"),
    ("tokens", "add layer_norm | linear"),
    ("tokens", "layer_norm | linear"),
    ("tokens", "add | rms_norm"),
    ("vector", "linear relu | linear"),
)

ALL = [
    *((rule, kind, chain) for rule, chains in FUSED.items() for kind, chain in chains),
    *((rule, kind, chain) for rule, chains in KEPT.items() for kind, chain in chains),
    *((None, kind, chain) for kind, chain in FREE),
]


@functools.cache
def measured() -> dict[str, Measured]:
    """Every chain, measured at once: single exports would take minutes."""
    cuts = [Cut.parse(kind, chain) for _, kind, chain in ALL]
    results = {}
    for cut, result in zip(cuts, measure(cuts), strict=True):
        assert isinstance(result, Measured), result
        results[str(cut)] = result
    return results


def result_of(kind: str, chain: str) -> Measured:
    return measured()[str(Cut.parse(kind, chain))]


@pytest.mark.parametrize(
    ("rule", "kind", "chain"),
    [item for item in ALL if item[0] in FUSED],
)
def test_what_a_rule_holds_together_is_fused(rule: str, kind: str, chain: str) -> None:
    found = result_of(kind, chain)
    assert found.rule is not None, f"{found.operators} have no rule; expected {rule}"
    assert found.rule.name == rule
    assert not found.diff.equal, f"{found.cut}: {found.diff}; whole: {dict(found.whole)}"


@pytest.mark.parametrize(
    ("rule", "kind", "chain"),
    [item for item in ALL if item[0] in KEPT],
)
def test_what_is_kept_by_convention_is_not_fused_today(rule: str, kind: str, chain: str) -> None:
    found = result_of(kind, chain)
    assert found.rule is not None
    assert found.rule.name == rule
    assert found.diff.equal, f"{found.cut} is fused now; measure the rule: {found.diff}"


@pytest.mark.parametrize(("kind", "chain"), FREE)
def test_what_no_rule_holds_together_is_not_fused(kind: str, chain: str) -> None:
    found = result_of(kind, chain)
    assert found.rule is None
    assert found.diff.equal, f"{found.cut}: {found.diff}; whole: {dict(found.whole)}"


def test_every_rule_is_measured() -> None:
    assert [rule.name for rule in ONNXRUNTIME.rules if rule.name not in {**FUSED, **KEPT}] == []


def test_every_rule_says_what_fuses() -> None:
    assert [rule.name for rule in ONNXRUNTIME.rules if not rule.reason] == []


def test_a_value_with_two_readers_is_not_fused() -> None:
    """What every rule assumes: the sum of a pre-norm residual has a second reader."""
    (found,) = measure([Cut.parse("tokens", "add | layer_norm_residual")])
    assert isinstance(found, Measured)
    assert found.diff.equal, str(found.diff)
