"""Inputs have the user's own names everywhere: in calls, in texts, in files and on the device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import edge
from fxelastic.edge.array_bytes import read_arrays, write_arrays
from fxelastic.edge.pool import PoolEntry
from fxelastic.edge.searching.data import read_data
from fxelastic.errors import UsageError
from fxelastic.ir.supernet import Supernet
from fxelastic.spec.manifest import ModelInfo
from fxelastic.spec.value_info import ValueInfo

# Builtins, keywords, names of generated code, of symbolic sizes, of numpy.savez, of operators, of
# arguments of our own functions.
NAMES = [
    *("input", "float", "max", "id", "type", "lambda", "class", "None", "torch", "device", "inf"),
    *("nan", "pytree", "N", "n", "N1", "n_1", "batch", "s0", "file", "allow_pickle", "args"),
    *("kwargs", "arch", "linear", "linear_1", "mul", "add", "relu", "output", "result"),
    *("x", "targets", "y", "größe", "__x", "_", "input_1", "float_1", "budget_ms", "arguments"),
]


class Net(nn.Module):
    """Adds up its inputs, each scaled by another number."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.first = first
        self.stem, self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        x = self.stem(inputs[self.first])
        for i, name in enumerate(inputs):
            x = x + (i + 1) * inputs[name]
        return {"file": self.head(x), "input": x.mean(1), "größe": x.sum(1)}


def _inputs(names: list[str], n: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(n, 8) for name in names}


def _same(result: Any, expected: Any) -> bool:
    return list(result) == list(expected) and all(
        torch.equal(result[k], expected[k]) for k in result
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Supernet, edge.Bundle]:
    torch.manual_seed(0)
    model = Net("input").eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=_inputs(NAMES), kinds=("skip",))
    folder = tmp_path_factory.mktemp("names")
    return model, supernet, fxelastic.export(supernet, folder / "bundle", n_subnets=1)


def test_keyword_calls_work_whatever_the_inputs_are_called(made: Any) -> None:
    model, supernet, _ = made
    inputs, arch = _inputs(NAMES, 3), supernet.space.sample(1, seed=1)[0]
    expected = model(**inputs)
    assert _same(supernet(**inputs), expected)
    assert _same(supernet.partition(**inputs), expected)
    assert _same(supernet.subnet()(**inputs), expected)
    assert _same(copy.deepcopy(supernet)(**inputs), expected)
    assert isinstance(supernet.subnet(arch)(**inputs)["file"], Tensor)


def test_keyword_inputs_may_come_in_any_order(made: Any) -> None:
    _, supernet, _ = made
    inputs = _inputs(NAMES)
    assert _same(supernet(**dict(reversed(inputs.items()))), supernet(**inputs))


def test_texts_name_the_inputs_as_the_user_does(made: Any) -> None:
    _, supernet, _ = made
    partition = supernet.partition
    lines = [line.split() for line in partition.to_text().splitlines()]
    assert [line[-1] for line in lines if line and line[0] == "input"][: len(NAMES)] == NAMES
    for name in NAMES:
        assert f'"input {name}"' in partition.to_dot()
    inputs = _inputs(NAMES)
    for name in ("float", "N", "lambda", "größe"):
        with pytest.raises(UsageError, match=f"'{name}'"):
            supernet(**{**inputs, name: torch.randn(4, 9)})


def test_the_device_sees_the_users_names(made: Any, tmp_path: Path) -> None:
    model, _, bundle = made
    assert [value.name for value in bundle.inputs] == NAMES
    # A result called as an input can't be called so in one file with it.
    assert [r.name for r in bundle.manifest.results] == ["file_2", "input_2", "größe_2"]
    path = edge.assemble(bundle, bundle.space.original, tmp_path / "whole.onnx")
    graph = onnx.load(str(path)).graph
    assert [value.name for value in graph.input] == NAMES
    feeds = {name: value.numpy() for name, value in _inputs(NAMES, 3).items()}
    expected = model(**_inputs(NAMES, 3))
    for result, value in zip(
        edge.Executor(bundle).run(bundle.space.original, feeds), expected.values(), strict=True
    ):
        np.testing.assert_allclose(result, value.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_a_runtime_is_called_by_the_users_names(made: Any) -> None:
    model, _, bundle = made
    feeds = {name: value.numpy() for name, value in _inputs(NAMES, 2).items()}
    step = PoolEntry(bundle.space.original, latency_ms=1.0, accuracy=1.0)
    with edge.serve(bundle, None, [step], budget_ms=1000) as runtime:
        result = runtime(**feeds)
    expected = model(**_inputs(NAMES, 2))
    assert list(result) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_arrays_of_any_name_go_through_npz_files() -> None:
    arrays = {name: np.arange(3) for name in NAMES}
    found = read_arrays(write_arrays(arrays), NAMES, 10**6)
    assert list(found) == NAMES


class Flattened(nn.Module):
    """A list and a dictionary whose parts are called as inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(
        self, a: list[Tensor], b: Mapping[str, Tensor], a_0: Tensor, b_c: Tensor, a_0_2: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.stem(a[0]) + 2 * a[1] + 3 * b["c"] + 4 * b["d-e"]
        return self.head(x + 5 * a_0 + 6 * b_c + 7 * a_0_2), {"0": x}


def test_an_inputs_own_name_goes_before_one_made_of_a_list(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = [torch.randn(4, 8) for _ in range(7)]
    model = Flattened().eval()
    args = (x[:2], {"c": x[2], "d-e": x[3]}, *x[4:])
    supernet = fxelastic.expand(model, 1.0, example_inputs=args, kinds=())
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    names = [value.name for value in bundle.inputs]
    assert names == ["a_0_3", "a_1", "b_c_2", "b_d_e", "a_0", "b_c", "a_0_2"]
    assert [r.name for r in bundle.manifest.results] == ["output_0", "output_1_0"]
    feeds = {name: value.numpy() for name, value in zip(names, x, strict=True)}
    found = edge.Executor(bundle).run(bundle.space.original, feeds)
    np.testing.assert_allclose(found[0], model(*args)[0].detach().numpy(), rtol=1e-4, atol=1e-4)


class WithArch(nn.Module):
    """A model with an input of the name by which a supernet takes a subnet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, arch: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        return self.head(x if arch is None else x * arch)


def test_a_models_own_arch_is_passed_by_name_or_by_position() -> None:
    torch.manual_seed(0)
    model, x, arch = WithArch().eval(), torch.randn(4, 8), torch.randn(4, 8)
    supernet = fxelastic.expand(model, 0.4, example_inputs={"x": x, "arch": arch})
    chosen = next(a for a in supernet.space.sample(20, seed=0) if a != supernet.space.original)
    expected = model(x, arch)
    assert torch.equal(supernet(x=x, arch=arch), expected)
    assert torch.equal(supernet(x, arch=arch), expected)
    assert torch.equal(supernet(x, arch), expected)
    assert torch.equal(supernet(x, arch, arch=chosen), supernet.subnet(chosen)(x=x, arch=arch))
    fxelastic.distill(supernet, [{"x": x, "arch": arch}], steps=1)
    with pytest.raises(UsageError, match="structure"):
        supernet(x)


@pytest.mark.parametrize("example", [((None,), {}), ((), {"arch": None}), ((), {})])
def test_a_models_own_arch_may_be_none(example: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model, x = WithArch().eval(), torch.randn(4, 8)
    supernet = fxelastic.expand(model, 0.4, example_inputs=((x, *example[0]), example[1]))
    assert torch.equal(supernet(x, arch=None), model(x))
    chosen = supernet.space.sample(1, seed=0)[0]
    args = (x, None) if any(example) else (x,)
    assert torch.equal(supernet(*args, arch=chosen), supernet.subnet(chosen)(*args))


def test_an_arch_of_no_meaning_is_still_refused() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), torch.randn(4, 8)
    supernet = fxelastic.expand(model, 1.0, example_inputs=x)
    with pytest.raises(UsageError, match="arch must be an Arch"):
        supernet(x, arch=x)


def test_a_batch_may_have_an_input_called_as_targets_are() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

        def forward(self, **inputs: Tensor) -> Tensor:
            return self.head(self.stem(inputs["label"]) + inputs["target"])

    torch.manual_seed(0)
    inputs = {"label": torch.randn(4, 8), "target": torch.randn(4, 8)}
    supernet = fxelastic.expand(Keywords().eval(), 0.4, example_inputs=inputs)
    fxelastic.distill(supernet, [inputs], steps=1)
    fxelastic.tune(supernet, [{**inputs, "labels": torch.tensor([0, 1, 2, 0])}], steps=1)


class Variadic(nn.Module):
    """Positional arguments without names beside ones that are called as those are numbered."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())

    def forward(self, args_0: Tensor, *rest: Tensor, scale: Tensor, **more: Tensor) -> Tensor:
        x = self.stem(args_0) * scale
        for i, value in enumerate((*rest, *more.values())):
            x = x + (i + 2) * value
        return x


@pytest.mark.parametrize("more", [(), ("args_1",), ("args_1_", "args_1")])
def test_positional_arguments_without_names_share_none(more: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    args = tuple(torch.randn(4, 8) for _ in range(3))
    kwargs = {name: torch.randn(4, 8) for name in ("scale", *more)}
    model = Variadic().eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=(args, kwargs), kinds=())
    assert torch.equal(supernet(*args, **kwargs), model(*args, **kwargs))
    names = supernet.partition.signature.names
    assert len(set(names)) == len(names) == 4 + len(more)
    assert {"args_0", "scale", *more} <= set(names)


@pytest.mark.parametrize("name", ["targets", "y", "x", "input"])
def test_a_search_tells_an_input_from_the_targets(name: str) -> None:
    bundle = SimpleNamespace(
        inputs=(ValueInfo(name, "float32", ("N", 8)),),
        outputs=(),
        manifest=SimpleNamespace(
            model=ModelInfo("Net", "0" * 64, 1, dynamic_batch=True, batch_size=4),
            sample_inputs=(name,),
            batch_dims={name: 0},
        ),
    )
    x, targets = np.zeros((4, 8), np.float32), np.arange(4)
    found = read_data(cast(edge.Bundle, bundle), (x, targets))
    np.testing.assert_array_equal(found.inputs[name], x)
    np.testing.assert_array_equal(found.targets, targets)


def test_what_the_manifest_says_of_an_input_goes_by_its_name(tmp_path: Path) -> None:
    class Ids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

        def forward(self, input: Tensor, float: Tensor) -> Tensor:
            return self.head(self.embedding(input).mean(1)) + float

    inputs = {"input": torch.arange(12).reshape(4, 3) % 10, "float": torch.randn(1, 3)}
    model = Ids().eval()
    supernet = fxelastic.expand(model, 1.0, example_inputs=inputs, batched=("input",), kinds=())
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    assert bundle.manifest.batched == ("input",)
    assert bundle.inputs[0].range == (0, 9)
    assert "batch: dimension 0 of input (batched= names them)" in str(supernet)
    with pytest.raises(UsageError, match=r"'input'.*another shape"):
        supernet(torch.zeros(2, 4, dtype=torch.long), torch.randn(1, 3))
