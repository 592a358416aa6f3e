"""Kernels are counted with what is fused into them, and every lost fusion shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from fxelastic.backends.onnxruntime.kernels import (
    compare_kernels,
    export_each,
    export_onnx,
    optimised_kernels,
)

X = torch.randn(2, 3, 8, 8)


class Numbered(nn.Module):
    """Reads the batch size, which is no stream value."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.arange(x.shape[0]) * 2
        return x.reshape(x.shape[0], 2, -1) + rows[:, None, None], y + 1


def conv_bn_relu() -> nn.Sequential:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.running_mean)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval()


def test_fused_kernel_is_named_with_its_activation() -> None:
    kernels = optimised_kernels(export_onnx(conv_bn_relu(), [X]))
    assert kernels == Counter({"com.microsoft.FusedConv[Relu]": 1})


def test_model_is_read_from_a_file_too(tmp_path: Path) -> None:
    model = export_onnx(conv_bn_relu(), [X])
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert optimised_kernels(tmp_path / "model.onnx") == optimised_kernels(model)


def test_kernels_inside_control_flow_are_counted() -> None:
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Exp", ["x"], ["y"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Tanh", ["x"], ["y"])],
        "other",
        [],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=other)],
        "graph",
        [
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"]),
            onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 9
    assert optimised_kernels(model) == Counter({"If": 1, "Exp": 1, "Tanh": 1})


def test_batch_is_dynamic() -> None:
    (dimension, *_) = export_onnx(conv_bn_relu(), [X]).graph.input[0].type.tensor_type.shape.dim
    assert dimension.dim_param
    static = export_onnx(conv_bn_relu(), [X], dynamic_batch=False)
    assert static.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_modules_exported_together_are_those_exported_alone() -> None:
    pieces = [(conv_bn_relu(), [X]), (Numbered(), [X, X]), (nn.Linear(8, 8), [X])]
    together = export_each(pieces)
    assert [len(model.graph.input) for model in together] == [1, 2, 1]
    assert [len(model.graph.output) for model in together] == [1, 2, 1]
    for model, (module, inputs) in zip(together, pieces, strict=True):
        assert optimised_kernels(model) == optimised_kernels(export_onnx(module, inputs))


def test_computed_sizes_are_told_apart() -> None:
    kernels = optimised_kernels(export_onnx(Numbered(), [X, X]))
    assert "shape:Shape" in kernels
    assert {"Reshape", "Add"} <= kernels.keys()


def test_equal_kernels_compare_equal() -> None:
    diff = compare_kernels({"Conv": 2, "Relu": 1}, [{"Conv": 1}, {"Conv": 1, "Relu": 1}])
    assert diff.equal
    assert str(diff) == "same kernels"


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"A": 1}], "lost by cutting: 1 A, 1 B"),
        ([{"A": 2, "B": 1}, {"A": 1}], "added by cutting: 1 A"),
        ([{"A": 1, "C": 2}, {"A": 1}], "lost by cutting: 1 B; added by cutting: 2 C"),
    ],
)
def test_different_kernels_compare_unequal(parts: list[dict[str, int]], text: str) -> None:
    diff = compare_kernels({"A": 2, "B": 1}, parts)
    assert not diff.equal
    assert str(diff) == text


def test_lost_activation_alone_makes_a_difference() -> None:
    whole = {"com.microsoft.FusedConv[Relu]": 1}
    assert not compare_kernels(whole, [{"com.microsoft.FusedConv[Clip]": 1}]).equal


def test_bookkeeping_is_listed_but_no_difference() -> None:
    diff = compare_kernels({"Conv": 1}, [{"Conv": 1, "shape:Shape": 2}, {"Identity": 1}])
    assert diff.equal
    assert str(diff) == "same kernels (bookkeeping, not a fusion: +1 Identity, +2 shape:Shape)"


def test_difference_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="equal"):
        bool(compare_kernels({}, []))


def test_bad_cut_of_a_model_makes_a_difference() -> None:
    model = conv_bn_relu()
    with torch.no_grad():
        inside = model[0](X)
    whole, head, tail = map(
        optimised_kernels, export_each([(model, [X]), (model[0], [X]), (model[1:], [inside])])
    )
    diff = compare_kernels(whole, [head, tail])
    assert diff.lost == {"com.microsoft.FusedConv[Relu]": 1}
    assert diff.extra == {"BatchNormalization": 1, "Conv": 1, "Relu": 1}
