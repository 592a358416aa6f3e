"""Operators that replace layers: what they compute, and that their closed forms are the best."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import UsageError, kinds
from fxelastic.branches.operators import moments
from fxelastic.branches.operators.factors import by_inputs, by_outputs, root
from fxelastic.ir.branch import Branch
from fxelastic.ir.partition import Partition

OPERATORS: dict[str, Any] = {
    "lowrank": kinds.LowRank(ranks=(0.5,)),
    "lowrank-spatial": kinds.LowRank(ranks=(0.25,), ways=("spatial",)),
    "tucker": kinds.Tucker(ranks=(0.5,)),
    "separable": kinds.Separable(terms=(2,)),
    "grouped": kinds.Grouped(groups=(2,)),
    "ghost": kinds.Ghost(),
    "fire": kinds.Fire(ratios=(0.5,)),
}

#: The convolution's dimensions and its options.
GEOMETRIES: dict[str, tuple[int, dict[str, Any]]] = {
    "1d": (1, {"padding": 1}),
    "2d": (2, {"padding": 1}),
    "2d-strided": (2, {"stride": (2, 1), "padding": (1, 0)}),
    "2d-dilated": (2, {"dilation": 2, "padding": 2}),
    "3d": (3, {"padding": 1}),
}


def inputs(dims: int) -> Tensor:
    """Values of correlated channels with a mean."""
    generator = torch.Generator().manual_seed(dims)
    mix = torch.randn(16, 16, generator=generator) * torch.linspace(0.1, 2, 16)
    x = torch.randn((3, 16, *(7,) * dims), generator=generator)
    return torch.einsum("ij,nj...->ni...", mix, x) + 0.5


def branch(layer: nn.Module, x: Tensor, kind: Any) -> nn.Module:
    """The only branch of a model of one layer."""
    supernet = fxelastic.expand(nn.Sequential(layer), 1.0, example_inputs=x, kinds=(kind,))
    found = [b.module for b in supernet.branches.values() if not b.frozen]
    assert len(found) == 1, [refusal.reason for refusal in supernet.skips]
    return found[0]


def calibrated(kind: Any, x: Tensor) -> Any:
    return dataclasses.replace(kind, calibration=(((x,), {}),))


@cache
def captured(geometry: str) -> tuple[Any, Tensor, Partition]:
    """A convolution, its inputs, and its partition, which reads the convolution's own weights."""
    dims, options = GEOMETRIES[geometry]
    torch.manual_seed(0)
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](16, 32, 3, **options)
    x = inputs(dims)
    return layer, x, fxelastic.partition(nn.Sequential(layer), 1.0, x)


def made(partition: Partition, kind: Any) -> nn.Module:
    (found,) = kind.make(partition)
    assert isinstance(found, Branch), found
    moments.forget(partition)
    return found.module


@contextmanager
def holding(layer: Any, module: nn.Module, x: Tensor) -> Iterator[None]:
    """Give a layer the weights that an affine branch amounts to, within the context.

    They are the branch's derivatives at one position.
    """
    middle = tuple(n // 2 for n in module(x).shape[2:])
    jacobian = torch.autograd.functional.jacobian(
        lambda value: module(value)[(0, slice(None), *middle)], x[:1]
    )[:, 0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        for tap in itertools.product(*map(range, layer.kernel_size)):
            at = [
                middle[d] * layer.stride[d] - layer.padding[d] + tap[d] * layer.dilation[d]
                for d in range(len(tap))
            ]
            taken = jacobian[(slice(None), slice(None), *at)]
            layer.weight[(slice(None), slice(None), *tap)] = taken
        layer.bias.copy_(module(torch.zeros_like(x[:1]))[(0, slice(None), *middle)])
    yield
    layer.load_state_dict(before)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_layer_of_an_operators_structure_loses_nothing(name: str, geometry: str) -> None:
    layer, x, partition = captured(geometry)
    kind = calibrated(OPERATORS[name], x)
    if name == "lowrank-spatial" and x.dim() != 4:
        (refusal,) = kind.make(partition)
        assert "two dimensions" in refusal.reason
        return
    once = made(partition, kind)
    assert sum(p.numel() for p in once.parameters()) < layer.weight.numel()
    with torch.no_grad():
        expected = once(x)
        assert not torch.allclose(expected, layer(x), atol=1e-2)
    with holding(layer, once, x):
        again = made(partition, kind)
    with torch.no_grad():
        assert (again(x) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("name", OPERATORS)
def test_calibration_data_reduces_the_error_on_it(name: str) -> None:
    layer, x, partition = captured("2d")
    with torch.no_grad():
        plain, fitted = (
            (made(partition, kind)(x) - layer(x)).square().mean()
            for kind in (OPERATORS[name], calibrated(OPERATORS[name], x))
        )
    assert fitted < 0.95 * plain


@pytest.mark.parametrize(("n_out", "n_in"), [(5, 8), (8, 5), (6, 6)])
@pytest.mark.parametrize("deficient", [False, True])
def test_the_output_error_is_the_sum_of_the_dropped_singular_values(
    n_out: int, n_in: int, deficient: bool
) -> None:
    generator = torch.Generator().manual_seed(n_out)
    matrix = torch.randn(n_out, n_in, generator=generator, dtype=torch.float64)
    rows = torch.randn(50, n_in, generator=generator, dtype=torch.float64)
    if deficient:
        rows[:, 1:] = rows[:, :1]
    moment = rows.mT @ rows / len(rows)
    values = torch.linalg.svdvals(matrix @ root(moment))
    for rank in range(1, min(n_out, n_in) + 1):
        expected = values[rank:].square().sum()
        pairs = (
            by_outputs(matrix, matrix @ moment @ matrix.mT, rank),
            by_inputs(matrix, moment, rank),
        )
        for left, right in pairs:
            assert left.shape == (n_out, rank)
            rest = rows @ (matrix - left @ right).mT
            error = rest.square().sum(1).mean()
            assert abs(error - expected) < 1e-6 * max(1.0, float(values.square().sum()))


def test_a_linear_map_of_low_rank_is_reproduced() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(40, 12) @ torch.randn(12, 24))
    x = torch.randn(6, 5, 24)
    found = branch(layer, x, kinds.LowRank(ranks=(0.5,)))
    torch.testing.assert_close(found(x), layer(x), rtol=1e-4, atol=1e-4)


def test_a_mean_that_the_weights_lose_is_kept_in_the_bias() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=False)
    x = torch.randn(64, 24) + 3 * torch.randn(24)
    found = branch(layer, x, calibrated(kinds.LowRank(ranks=(0.25,)), x))
    with torch.no_grad():
        torch.testing.assert_close(found(x).mean(0), layer(x).mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kinds.LowRank(ranks=(1.5,)), "ranks must hold numbers above 0 and below 1"),
        (lambda: kinds.LowRank(ways=("sideways",)), "unknown way to factorise"),
        (lambda: kinds.Tucker(ranks=0.5), "ranks must hold numbers"),  # type: ignore[arg-type]
        (lambda: kinds.Separable(terms=(0,)), "terms must hold integers of at least 1"),
        (lambda: kinds.Grouped(groups=("4",)), "groups must hold integers"),  # type: ignore[arg-type]
        (lambda: kinds.Ghost(ratios=(0,)), "ratios must hold numbers"),
        (lambda: kinds.Dense(n_layers=0), "n_layers must be at least 1, got 0"),
    ],
)
def test_options_are_checked(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "kind", "reason"),
    [
        (nn.Linear(16, 16), kinds.Tucker(), "its kernel has a single tap"),
        (nn.Linear(16, 16), kinds.Grouped(), "which has no groups"),
        (nn.Conv2d(16, 16, 3, groups=16), kinds.LowRank(), "no convolution without groups"),
        (nn.Conv2d(16, 18, 3), kinds.Grouped(), "do not split into 4 groups"),
        (nn.Conv2d(16, 16, 2), kinds.Fire(), "its kernel has an even size"),
        (nn.Conv2d(3, 16, 3), kinds.Fire(), "it has 3 input"),
        (nn.Linear(16, 16), kinds.LowRank(ranks=(0.8,)), "it would keep 1"),
    ],
)
def test_a_refusal_has_a_reason(layer: nn.Module, kind: Any, reason: str) -> None:
    x = (
        torch.randn(2, 16)
        if isinstance(layer, nn.Linear)
        else torch.randn(2, layer.in_channels, 8, 8)
    )
    supernet = fxelastic.expand(nn.Sequential(layer), 1.0, example_inputs=x, kinds=(kind,))
    assert supernet.skips
    assert all(reason in refusal.reason for refusal in supernet.skips)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_layer_whose_weights_are_not_finite_is_refused(value: float) -> None:
    layer = nn.Linear(16, 16)
    layer.weight.data[0, 0] = value
    supernet = fxelastic.expand(
        nn.Sequential(layer), 1.0, example_inputs=torch.randn(2, 16), kinds=(kinds.LowRank(),)
    )
    assert supernet.skips
    assert all("hold NaN or infinity" in refusal.reason for refusal in supernet.skips)


RECIPE_IMPORTS = """
import torch
from collections.abc import Mapping
from dataclasses import dataclass
from torch import fx
from fxelastic.branches.operators.layers import Layer
from fxelastic.branches.operators.moments import Moments
from fxelastic.branches.operators.operator import LayerOperator, Replacement
from fxelastic.branches.operators.stand_in import StandIn
"""


def test_the_operator_of_the_recipe_works() -> None:
    pages = Path(__file__).parents[3] / "CONTRIBUTING.md"
    section = pages.read_text("utf-8").partition("### Add a compression operator")[2]
    code = section.partition("```python\n")[2].partition("   ```")[0]
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(RECIPE_IMPORTS + textwrap.dedent(code), namespace)
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 8, 3), torch.randn(2, 4, 8, 8)
    found = branch(layer, x, namespace["Halved"]())
    with torch.no_grad():
        expected = nn.functional.conv2d(x, layer.weight[::2].repeat_interleave(2, 0))
        torch.testing.assert_close(found(x), expected)


def test_a_model_may_take_what_can_t_be_hashed() -> None:
    """Symptom: with calibration data, a TypeError for an argument such as a dataclass."""

    @dataclasses.dataclass
    class Options:
        scale: float = 2.0

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor, options: Any) -> Tensor:
            """Values (n, 16)."""
            return self.layer(x) * options.scale

    x = torch.randn(8, 16)
    supernet = fxelastic.expand(
        *(Scaled(), 1.0),
        example_inputs=(x, Options()),
        kinds=(kinds.LowRank(),),
        calibration=[(x, Options())],
    )
    assert len(supernet.branches) > 1
