"""Operators that the exporter does not know compute in onnxruntime what they do in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import edge
from fxelastic.backends.onnxruntime.conversion import convert
from fxelastic.backends.onnxruntime.pieces import Piece

N_EXPERTS, WIDTH, HIDDEN = 4, 16, 32


def product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """What transformers' operator computes; it is declared here where that is not imported."""
    result = rows.new_zeros(rows.shape[0], matrices.shape[2])
    start = 0
    for matrix, stop in zip(matrices, ends.tolist(), strict=True):
        result[start:stop] = rows[start:stop] @ matrix
        start = stop
    return result


if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):
    NAME = "transformers::grouped_mm_fallback"
    SCHEMA = "(Tensor input, Tensor weight, Tensor offs) -> Tensor"
    torch.library.custom_op(NAME, product, mutates_args=(), schema=SCHEMA)
    torch.library.register_fake(
        NAME, lambda rows, matrices, ends: rows.new_empty(rows.shape[0], matrices.shape[2])
    )

GROUPED = torch.ops.transformers.grouped_mm_fallback


class Experts(nn.Module):
    """Each token goes to two of four experts, as the tokens of each lie beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, N_EXPERTS)
        self.up = nn.Parameter(torch.randn(N_EXPERTS, WIDTH, HIDDEN) / 4)
        self.down = nn.Parameter(torch.randn(N_EXPERTS, HIDDEN, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, WIDTH)
        weights, chosen = self.router(tokens).softmax(-1).topk(2)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.histc(chosen.flatten().float(), N_EXPERTS, 0, N_EXPERTS - 1)
        ends = counts.cumsum(0).int()
        rows = GROUPED(tokens[order // 2], self.up, ends).relu()
        rows = GROUPED(rows, self.down, ends)
        rows = rows[order.argsort()] * weights.reshape(-1, 1)
        return x + rows.reshape(-1, 2, WIDTH).sum(1).reshape(x.shape)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Experts(), nn.LayerNorm(WIDTH), Experts(), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def test_a_mixture_of_experts_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixture().eval()
    supernet = fxelastic.expand(model, 0.3, example_inputs=torch.randn(2, 6, WIDTH))
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    with edge.Executor(bundle) as executor, torch.no_grad():
        # Of one token and of the same token again and again, most experts have none.
        for x in (torch.randn(5, 6, WIDTH), torch.randn(1, 1, WIDTH).expand(3, 6, WIDTH)):
            (found,) = executor.run(bundle.space.original, {bundle.inputs[0].name: x.numpy()})
            np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-4)


class Grouped(nn.Module):
    """The operator by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        return GROUPED(rows, self.matrices, ends)


def piece(module: nn.Module) -> Piece:
    examples = torch.randn(12, 8), torch.tensor([2, 2, 12], dtype=torch.int32)
    return Piece("grouped", module.eval(), ("rows", "ends"), ("y",), examples, ((), ()))


@pytest.mark.parametrize("ends", [(2, 2, 12), (0, 0, 12), (12, 12, 12), (3, 7, 10), (0, 0, 0)])
def test_rows_of_no_group_give_zero(ends: tuple[int, ...]) -> None:
    module = Grouped()
    given = piece(module)
    model = convert([given]).models["grouped"]
    session = ort.InferenceSession(serialised(model), providers=["CPUExecutionProvider"])
    rows = given.examples[0]
    (found,) = session.run(None, {"rows": rows.numpy(), "ends": np.array(ends, np.int32)})
    expected = product(rows, module.matrices.detach(), torch.tensor(ends))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


class Sorted(nn.Module):
    """Sorts in every way in which equal elements keep their order."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            *x.sort(stable=True),
            *x.sort(dim=0, stable=True, descending=True),
            x.argsort(dim=-2, stable=True),
        )


def test_equal_elements_keep_their_order() -> None:
    x = torch.randint(0, 3, (4, 50, 6)).float()
    names = ("a", "b", "c", "d", "e")
    model = convert([Piece("sorted", Sorted().eval(), ("x",), names, (x,), ((),))]).models["sorted"]
    session = ort.InferenceSession(serialised(model), providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(None, {"x": x.numpy()}), Sorted()(x), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())


class Numbered(nn.Module):
    """Numbers elements by their group, of which a tensor has the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        groups = torch.repeat_interleave(torch.arange(2), torch.tensor([2, 4]))
        return self.last(self.first(x) * (groups + 1))


def test_sizes_of_groups_may_be_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Numbered().eval(), torch.randn(3, 6)
    bundle = fxelastic.export(fxelastic.expand(model, 0.6, example_inputs=x), tmp_path / "bundle")
    with edge.Executor(bundle) as executor, torch.no_grad():
        (found,) = executor.run(bundle.space.original, {"x": x.numpy()})
        np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-4, atol=1e-5)


def serialised(model: object) -> bytes:
    import onnx_ir as ir

    assert isinstance(model, ir.Model)
    return ir.to_proto(model).SerializeToString()
