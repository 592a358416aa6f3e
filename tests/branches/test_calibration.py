"""Closed-form calibration: branches get nearer to the model, never further from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.branches.calibration import as_batches, calibrate
from fxelastic.branches.options import inputs_of
from fxelastic.ir.branch import Branch
from tests.branches.expanded import over_shared_capture
from tests.models import CASES
from tests.models.captured import grouped
from tests.models.compare import assert_same_output

MODELS = (
    "resnet18",
    "efficientnet",
    "vit",
    "gpt2",
    "llama",
    "convnext",
    "mlp_mixer",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def expanded(name: str) -> tuple[Supernet, list[object]]:
    """A supernet over the shared capture, since calibration leaves the model's weights alone."""
    found = over_shared_capture(name)
    return found.supernet, [found.case.inputs(n) for n in (6, 5)]


def error(supernet: Supernet, branch: Branch, data: list[object]) -> float:
    """Mean squared error on the model's own values, over their variance."""
    total = variance = 0.0
    with torch.no_grad():
        for args, kwargs in data:  # type: ignore[misc]
            values = dict(supernet.bind(args, kwargs))
            for part in supernet.path():
                result = part.module(*(values[n] for n in (*part.inputs, *part.context)))
                several = len(part.outputs) > 1
                values.update(zip(part.outputs, result if several else (result,), strict=True))
            found = branch.module(*(values[n] for n in (*branch.inputs, *branch.context)))
            wanted = values[branch.outputs[0]].double()
            total += float((found.double() - wanted).square().sum())
            variance += float((wanted - wanted.mean()).square().sum())
    return total / variance


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", [grouped(name) for name in MODELS])
def test_branches_get_nearer_to_the_model(name: str) -> None:
    supernet, data = expanded(name)
    new = [b for b in supernet.branches.values() if b.kind in ("merged", "pruned")]
    before = {branch.id: error(supernet, branch, data) for branch in new[::3]}
    found = calibrate(supernet, data)
    for branch in new[::3]:
        after = error(supernet, branch, data)
        assert after <= before[branch.id] * (1 + 1e-6), branch.id
        if branch.id in found:
            assert found[branch.id].before == pytest.approx(before[branch.id], rel=1e-3, abs=1e-9)
            assert found[branch.id].after == pytest.approx(after, rel=1e-3, abs=1e-9)
        else:
            assert after == before[branch.id]
    nearer = [c for c in found.values() if c.after < 0.9 * c.before]
    assert len(nearer) > len(new) / 2


class _Wide(nn.Module):
    """Half of its hidden channels are smaller copies of the others: they can go without a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.enter.weight[8:] = 0.1 * self.enter.weight[:8]
            self.enter.bias[8:] = 0.1 * self.enter.bias[:8]
            self.leave.weight.copy_(torch.where(self.leave.weight < 0, -0.25, 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.enter(x))


def test_what_a_linear_map_can_do_is_found() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    supernet = fxelastic.expand(
        _Wide(), 1.0, example_inputs=x, kinds=("pruned",), prune=(0.5,), calibration=x
    )
    (pruned,) = (b for b in supernet.branches.values() if b.kind == "pruned")
    assert pruned.module.get_parameter("enter.weight").abs().max() > 0.2
    assert error(supernet, pruned, [((torch.randn(64, 4),), {})]) < 1e-5


@pytest.mark.xdist_group("wide_resnet")
def test_originals_stay_and_the_result_is_reproducible() -> None:
    supernet, data = expanded("wide_resnet")
    other, _ = expanded("wide_resnet")
    before = {b.id: state(b.module) for b in other.path()}
    for net in (supernet, other):
        calibrate(net, data)
        assert not net.training
    for branch in other.branches.values():
        assert_same_output(state(branch.module), state(supernet.branches[branch.id].module))
        if branch.frozen:
            assert_same_output(state(branch.module), before[branch.id])
        else:
            assert all(p.requires_grad for p in branch.module.parameters())


@pytest.mark.xdist_group("vit")
def test_values_that_are_not_finite_change_nothing() -> None:
    supernet, _ = expanded("vit")
    before = state(supernet)
    calibrate(supernet, CASES["vit"].inputs(2)[0][0] * float("nan"))
    assert_same_output(state(supernet), before)


def test_forms_of_batches() -> None:
    x, y = torch.ones(2), torch.zeros(3)
    assert as_batches(x) == (((x,), {}),)
    forms = as_batches([x, (x, y), {"a": y}, ((x,), {"b": y})])
    assert forms == (((x,), {}), ((x, y), {}), ((), {"a": y}), ((x,), {"b": y}))
    assert len(as_batches(x for _ in range(3))) == 3


@pytest.mark.parametrize("data", [3, "text", {"a": torch.ones(1)}, [], [3], None])
def test_what_is_no_data(data: object) -> None:
    with pytest.raises(UsageError, match="calibration"):
        as_batches(data)


def test_expand_refuses_bad_data_before_the_capture() -> None:
    with pytest.raises(UsageError, match="calibration must have at least one batch"):
        fxelastic.expand(nn.Identity(), calibration=[])


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (torch.full((2, 8), torch.nan), "batch 1 of calibration holds values that are NaN"),
        (torch.full((2, 8), torch.inf), "batch 1 of calibration holds values that are NaN"),
        (torch.zeros(0, 8), "batch 1 of calibration holds no sample"),
        (torch.zeros(2, 7), "batch 1 of calibration: input 'input' has another shape"),
        ((torch.zeros(2, 8), torch.zeros(2)), "batch 1 of calibration: the arguments have another"),
    ],
)
@pytest.mark.parametrize("way", ["expand", "export"])
def test_batches_are_checked(last: Any, message: str, way: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    expand = partial(fxelastic.expand, model, 0.5, example_inputs=torch.randn(2, 8))
    data = [torch.randn(2, 8), last]
    run = (
        partial(expand, kinds="all", calibration=data)
        if way == "expand"
        else partial(
            fxelastic.export,
            expand(),
            tmp_path / "bundle",
            quantise=fxelastic.Int8(calibration=data),
        )
    )
    with pytest.raises(UsageError, match=message):
        run()
    assert not (tmp_path / "bundle").exists()


def test_minus_infinity_is_no_missing_value() -> None:
    x = torch.randn(2, 8)
    masks = torch.tensor([0.0, -torch.inf]).repeat(2, 4)
    partition = fxelastic.partition(nn.Linear(8, 8), 1.0, x)
    assert torch.equal(inputs_of(partition, as_batches(masks))[0]["input_1"], masks)
