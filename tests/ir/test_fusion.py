"""Rules match pairs of operators; broken rules are refused."""

from __future__ import annotations

import pytest
import torch

from fxelastic.ir.fusion import FusionRule, FusionRules, canonical_operator

CONV, RELU, ADD = (frozenset({f"aten.{name}"}) for name in ("conv2d", "relu", "add"))


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (torch.ops.aten.relu_.default, "aten.relu"),
        (torch.ops.aten.conv2d.padding, "aten.conv2d"),
        ("aten::add_", "aten.add"),
        ("aten.add.Tensor", "aten.add"),
        ("aten.__and__", "aten.__and__"),
        ("<built-in function getitem>", "<built-in function getitem>"),
        ("getitem", "getitem"),
    ],
)
def test_operator_is_named_without_overload_and_in_place_suffix(target: object, name: str) -> None:
    assert canonical_operator(target) == name


def test_pair_matches_by_producer_and_consumer() -> None:
    rule = FusionRule("conv-relu", CONV, RELU)
    rules = FusionRules("x", (rule,))
    assert rules.match("aten.conv2d", "aten.relu", True) is rule
    assert rules.match(torch.ops.aten.conv2d.default, torch.ops.aten.relu_.default, True) is rule
    assert rules.match("aten.relu", "aten.conv2d", True) is None


def test_hard_rule_wins_over_soft() -> None:
    soft = FusionRule("a", CONV, RELU, soft=True)
    hard = FusionRule("b", CONV, RELU)
    assert FusionRules("x", (soft, hard)).match("aten.conv2d", "aten.relu", True) is hard
    assert FusionRules("x", (soft,)).match("aten.conv2d", "aten.relu", True) is soft


def test_constant_operand_is_asked_for() -> None:
    rules = FusionRules("x", (FusionRule("conv-add", CONV, ADD, constant_operand=True),))
    assert rules.match("aten.conv2d", "aten.add", True) is not None
    assert rules.match("aten.conv2d", "aten.add", False) is None


def test_constant_producer_is_asked_for() -> None:
    hard = FusionRules("x", (FusionRule("add-relu", ADD, RELU, constant_producer=True),))
    assert hard.match("aten.add", "aten.relu", True, True) is not None
    assert hard.match("aten.add", "aten.relu", True, False) is None


def test_unknown_producer_lists_a_pair_but_forbids_no_cut() -> None:
    hard = FusionRule("hard", ADD, RELU, constant_producer=True)
    soft = FusionRule("soft", ADD, RELU, constant_producer=True, soft=True)
    assert FusionRules("x", (hard, soft)).match("aten.add", "aten.relu", True) is soft


def test_two_rules_of_one_name_raise() -> None:
    with pytest.raises(ValueError, match="'a' twice"):
        FusionRules("x", (FusionRule("a", CONV, RELU), FusionRule("a", RELU, CONV)))


@pytest.mark.parametrize("name", ["aten.relu_", "aten.relu.default", "aten::relu"])
def test_rule_names_operators_canonically(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'aten\.relu'"):
        FusionRule("a", CONV, frozenset({name}))


def test_rule_without_operators_raises() -> None:
    with pytest.raises(ValueError, match="no consumer"):
        FusionRule("a", CONV, frozenset())
