"""A file that computes other results is found, with its branch and its operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import fxelastic
from fxelastic.backends.onnxruntime.parity import Parity
from fxelastic.backends.onnxruntime.teacher import make_inputs, teacher_values
from fxelastic.edge import Bundle, assemble
from fxelastic.errors import ExportError, UsageError
from tests.backends.exported import bundle, supernet

NAME = "plain_mlp"


def parity(jobs: int = 1) -> Parity:
    made = supernet(NAME)
    samples = [teacher_values(made, make_inputs(made.partition, n, n)) for n in (2, 3)]
    return Parity(made, samples, jobs)


def paths(of: Bundle) -> dict[str, Path]:
    return {segment.id: of.model_path(segment.id) for segment in of.manifest.segments}


def spoil(path: Path, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(folder / "spoilt.onnx"))
    return folder / "spoilt.onnx"


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


class Doubled(nn.Module):
    """Ends in 64 bits, as for a loss; what it computes with has 32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
        self.places = nn.Parameter(torch.randn(1, 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x + self.places[:, : x.shape[1]]).softmax(-1).double()


def test_results_of_64_bits_have_the_precision_of_their_origin(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 5, 8)
    made = fxelastic.expand(Doubled().eval(), 0.3, example_inputs=example)
    with torch.autocast("cpu", torch.bfloat16):  # which the conversion takes no part in
        written = fxelastic.export(made, tmp_path / "bundle", n_subnets=1)
    assert written.outputs[0].dtype == "float64"
    with pytest.raises(UsageError, match="seed must be an integer"):
        fxelastic.export(made, tmp_path / "other", seed=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_was_exported_agrees(jobs: int) -> None:
    parity(jobs).check_files(paths(bundle(NAME)))


def other_activation(model: onnx.ModelProto) -> None:
    node(model, "Gelu").CopyFrom(
        onnx.helper.make_node("Relu", node(model, "Gelu").input, node(model, "Gelu").output)
    )


def other_weight(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def no_kernel(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "nowhere"
    model.opset_import.add(domain="nowhere", version=1)


def other_sizes(model: onnx.ModelProto) -> None:
    """Broadcast the first input to 7 columns, which it does not have and no check of types sees."""
    name, make = model.graph.node[0].input[0], onnx.helper.make_node
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 7]), "ones_and_sevens"))
    for node in model.graph.node:
        node.input[:] = ["wide" if read == name else read for read in node.input]
    nodes = [
        make("ReduceSum", [name], ["sum"], keepdims=0),
        make("Sub", ["sum", "sum"], ["zero"]),
        make("Add", ["zero", "ones_and_sevens"], ["sums"]),
        make("Cast", ["sums"], ["sizes"], to=onnx.TensorProto.INT64),
        make("Expand", [name, "sizes"], ["wide"]),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def test_a_wrong_operator_is_named(tmp_path: Path) -> None:
    """Not the linear layer before it, which is right, nor what is behind it."""
    layers = [torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers).eval()
    made = fxelastic.expand(model, 1.0, example_inputs=torch.randn(2, 4), kinds=())
    files = paths(fxelastic.export(made, tmp_path / "bundle"))
    files["original@0"] = spoil(files["original@0"], tmp_path, other_activation)
    samples = [teacher_values(made, make_inputs(made.partition, 2, 0))]
    with pytest.raises(ExportError) as caught:
        Parity(made, samples).check_files(files)
    assert caught.value.what.startswith("1 of 1 files")
    assert "branch original@0 (" in str(caught.value)
    assert "), value " in str(caught.value)
    assert "operator aten.gelu.default" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weight, "operator aten."),
        (no_kernel, "files can't be loaded by onnxruntime"),
        (no_kernel, "onnxruntime fails to load the converted model"),
        (other_sizes, "files can't be run by onnxruntime"),
        (other_sizes, "replace the operator that becomes Expand"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, change: Any, message: str) -> None:
    files = paths(bundle(NAME))
    files["original@1"] = spoil(files["original@1"], tmp_path, change)
    with pytest.raises(ExportError, match="branch original@1") as caught:
        parity().check_files(files)
    assert message in str(caught.value)


def test_a_wrong_subnet_is_found(tmp_path: Path) -> None:
    made = bundle(NAME)
    arch = made.space.original
    path = assemble(made, arch, tmp_path / "m.onnx")
    parity().check_subnet(arch, path, made.manifest.results)
    with pytest.raises(ExportError, match="the result 'output'"):
        parity().check_subnet(arch, spoil(path, tmp_path, other_weight), made.manifest.results)
    with pytest.raises(ExportError, match="an assembled subnet can't be loaded by onnxruntime"):
        parity().check_subnet(arch, spoil(path, tmp_path, no_kernel), made.manifest.results)
    with pytest.raises(ExportError, match="an assembled subnet can't be run by onnxruntime"):
        parity().check_subnet(arch, spoil(path, tmp_path, other_sizes), made.manifest.results)


def test_inputs_are_seeded_and_of_the_batch_size_asked_for() -> None:
    partition = supernet("dict_input").partition
    first, again = make_inputs(partition, 5, 1), make_inputs(partition, 5, 1)
    for name, example in zip(partition.signature.inputs, partition.example, strict=True):
        assert torch.equal(first[name], again[name])
        assert first[name].shape[0] == 5
        assert first[name].dtype == example.dtype
        if not example.is_floating_point():
            assert torch.equal(first[name], example[torch.arange(5) % 2])
    images = supernet(NAME).partition
    assert not torch.equal(*(next(iter(make_inputs(images, 2, s).values())) for s in (1, 2)))


def test_a_supernet_without_example_inputs_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ExportError, match="has no example inputs"):
        make_inputs(replace(supernet(NAME).partition, example=()), 2, 0)


def test_an_export_that_computes_something_else_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is a part of the export, not an option of the test."""
    from fxelastic.backends.onnxruntime import export as exporter

    convert = exporter.convert

    def wrong(*args: Any) -> Any:
        conversion = convert(*args)
        for model in conversion.models.values():
            for node in model.graph:
                if node.op_type == "Relu":
                    node.op_type = "Abs"
        return conversion

    monkeypatch.setattr(exporter, "convert", wrong)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    made = fxelastic.expand(model.eval(), 1.0, example_inputs=torch.randn(2, 4), kinds=())
    with pytest.raises(ExportError, match=r"operator aten\.relu\.default"):
        fxelastic.export(made, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


class Noisy(nn.Module):
    """A model that draws random numbers, as one with random masks does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x + torch.rand_like(x)).argsort(-1)


class Unlikely(nn.Module):
    """Probabilities that are all small, as those of a detector that has not seen a thing."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 400)
        self.factor = factor
        torch.nn.init.constant_(self.layer.bias, -11.0)

    def forward(self, x: Tensor) -> Tensor:
        """Samples (n, 8) to probabilities (n, 400)."""
        return self.factor * torch.sigmoid(self.layer(x))


def test_small_probabilities_are_compared_as_a_sigmoid_is_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    supernet = fxelastic.expand(Unlikely(), 1.0, example_inputs=x, kinds=())
    fxelastic.export(supernet, tmp_path / "bundle")
    (original,) = supernet.branches.values()
    wrong = fxelastic.expand(Unlikely(1.1), 1.0, example_inputs=x, kinds=())
    (other,) = wrong.branches.values()
    other.module.load_state_dict(original.module.state_dict())
    bundle = fxelastic.export(wrong, tmp_path / "wrong", verify=False)
    values = teacher_values(supernet, make_inputs(supernet.partition, 16, 0))
    with pytest.raises(ExportError, match="compute other results"):
        Parity(supernet, [values], 1).check_files({original.id: bundle.model_path(other.id)})


def test_random_numbers_are_named(tmp_path: Path) -> None:
    supernet = fxelastic.expand(Noisy().eval(), 0.5, example_inputs=torch.randn(2, 4), kinds=())
    with pytest.raises(ExportError, match=r"draw random numbers: aten\.rand"):
        fxelastic.export(supernet, tmp_path / "bundle")


class Bags(nn.Module):
    """Means of embeddings, whose file passes sequences of values on."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(10, 8, mode=mode), nn.Linear(8, 3)

    def forward(self, index: Tensor, offsets: Tensor) -> Tensor:
        out: Tensor = self.head(self.bags(index, offsets))
        return out


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_a_file_that_passes_sequences_on_is_compared_by_its_operators(
    mode: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    inputs = torch.arange(6), torch.tensor([0, 2, 3])
    made = fxelastic.expand(Bags(mode).eval(), 1.0, example_inputs=inputs, kinds=())
    with pytest.raises(ExportError, match=r"operator aten\._?embedding_bag"):
        fxelastic.export(made, tmp_path / "bundle")
