"""Elements that are as good as equal may be chosen either way, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import fxelastic
from fxelastic import edge
from fxelastic.backends.onnxruntime.choices import Choices, OtherChoiceError, chooses
from fxelastic.backends.onnxruntime.comparison import TOLERANCES
from fxelastic.backends.onnxruntime.parity import Parity
from fxelastic.backends.onnxruntime.teacher import make_inputs, teacher_values
from fxelastic.errors import ExportError
from tests.backends.test_parity import node, paths, spoil

WIDTH = 16

CHOOSING: dict[str, Callable[[Tensor], Any]] = {
    "topk": lambda x: x.topk(2, dim=1),
    "topk without order": lambda x: x.topk(3, dim=1, sorted=False),
    "smallest": lambda x: x.topk(2, dim=1, largest=False),
    "sort": lambda x: x.sort(dim=1, descending=True),
    "stable sort": lambda x: x.sort(dim=1, stable=True),
    "argsort": lambda x: x.argsort(dim=1),
    "argmax": lambda x: x.argmax(dim=1),
    "argmax of all": lambda x: x.argmax(),
    "argmin, dimension kept": lambda x: x.argmin(dim=1, keepdim=True),
    "max": lambda x: x.max(dim=1),
    "min, dimension kept": lambda x: x.min(dim=1, keepdim=True),
}


def traced(choose: Callable[[Tensor], Any], x: Tensor) -> fx.GraphModule:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return choose(x)

    graph_module = torch.export.export(Module(), (x,)).module()
    assert isinstance(graph_module, fx.GraphModule)
    return graph_module


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def ran(module: nn.Module, x: Tensor, *indices: Any) -> tuple[Tensor, ...]:
    choices = Choices([np.asarray(i) for i in indices], TOLERANCES, {})
    result = choices.run(module, x)
    choices.end()
    return tensors(result)


@pytest.mark.parametrize("name", CHOOSING)
def test_a_choice_that_is_as_good_is_taken_over(name: str) -> None:
    """Of rows in which all is nearly equal, what is chosen of the row turned round."""
    torch.manual_seed(0)
    x = 1 + 1e-6 * torch.rand(3, 5)
    module = traced(CHOOSING[name], x)
    own = tensors(module(x))[-1]
    turned = x.numel() - 1 - own if own.dim() == 0 else 4 - own
    if name == "argmax of all":
        found = ran(module, x, turned.numpy())
        assert torch.equal(found[-1], turned)
        return
    found = ran(module, x, turned.numpy())
    assert torch.equal(found[-1], turned)
    if len(found) == 2:
        places = turned if turned.dim() == 2 else turned.unsqueeze(1)
        assert torch.equal(found[0].reshape(places.shape), x.gather(1, places))


@pytest.mark.parametrize("name", CHOOSING)
def test_a_choice_that_is_worse_is_not(name: str) -> None:
    x = torch.arange(15.0).reshape(3, 5)
    module = traced(CHOOSING[name], x)
    own = tensors(module(x))[-1]
    turned = 14 - own if own.dim() == 0 else 4 - own
    with pytest.raises(OtherChoiceError, match="largest difference"):
        ran(module, x, turned.numpy())


def test_what_is_no_choice_of_torch_is_refused() -> None:
    x = torch.ones(2, 5)
    module = traced(CHOOSING["topk"], x)
    assert torch.equal(ran(module, x, [[4, 2], [0, 3]])[1], torch.tensor([[4, 2], [0, 3]]))
    for indices, problem in (
        ([[4, 4], [0, 3]], "an element twice"),
        ([[4, 5], [0, 3]], "an index out of 5"),
        ([[-1, 4], [0, 3]], "an index out of 5"),
        ([[4, 2, 1], [0, 3, 1]], "shape"),
    ):
        with pytest.raises(OtherChoiceError, match=problem):
            ran(module, x, indices)
    with pytest.raises(OtherChoiceError, match="more in torch"):
        ran(module, x)
    with pytest.raises(OtherChoiceError, match="1 more in the file"):
        ran(module, x, [[4, 2], [0, 3]], [[4, 2], [0, 3]])


def test_who_chooses() -> None:
    x = torch.ones(2, 5)
    assert all(chooses(nn.Sequential(traced(choose, x))) for choose in CHOOSING.values())
    assert not chooses(traced(torch.relu, x))
    assert not chooses(nn.Linear(2, 2))


class Detector(nn.Module):
    """The best 20 of 400 places by what is there, and which they are."""

    def __init__(self, *, equal: bool) -> None:
        super().__init__()
        self.places = nn.Linear(WIDTH, WIDTH)
        self.score = nn.Linear(WIDTH, 1)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
        if equal:
            nn.init.constant_(self.score.weight, 1e-8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = self.places(x).relu()
        best = self.score(places).squeeze(2).topk(20, dim=1).indices
        chosen = places.gather(1, best.unsqueeze(2).expand(-1, -1, WIDTH))
        return self.head(chosen), best


class Router(nn.Module):
    """Adds the results of two experts of four, which a router chooses."""

    def __init__(self, *, equal: bool) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.Parameter(torch.randn(4, WIDTH, WIDTH))
        self.last = nn.Linear(WIDTH, 5)
        if equal:
            nn.init.zeros_(self.router.weight)
            nn.init.zeros_(self.router.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        weights, chosen = self.router(x).softmax(-1).topk(2)
        results = torch.einsum("nkij,nj->nki", self.experts[chosen], x)
        return self.last((weights.unsqueeze(-1) * results).sum(1))


EXAMPLES = {Detector: (2, 400, WIDTH), Router: (2, WIDTH)}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_models_with_equal_elements_are_exported(tmp_path: Path, kind: Any) -> None:
    """The export compares files and subnets with torch, which makes other choices."""
    torch.manual_seed(0)
    model = kind(equal=True).eval()
    supernet = fxelastic.expand(model, 0.4, example_inputs=torch.randn(EXAMPLES[kind]))
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    x = torch.randn(EXAMPLES[kind])
    with edge.Executor(bundle) as executor, torch.no_grad():
        found = executor.run(bundle.space.original, {bundle.inputs[0].name: x.numpy()})
        expected = tensors(model(x))[-1].numpy()
    assert np.abs(found[-1] - expected).max() > 1e-2


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_file_that_chooses_wrongly_is_found(tmp_path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(equal=False).eval()
    supernet = fxelastic.expand(model, 0.4, example_inputs=torch.randn(EXAMPLES[kind]))
    files = paths(fxelastic.export(supernet, tmp_path / "bundle"))
    parity = Parity(supernet, [teacher_values(supernet, make_inputs(supernet.partition, 2, 0))])
    parity.check_files(files)

    def smallest(model: onnx.ModelProto) -> None:
        found = node(model, "TopK")
        del found.attribute[:]
        found.attribute.append(onnx.helper.make_attribute("largest", 0))

    originals = {name: files[name] for name in supernet.space.original}
    chooser = next(
        name
        for name, path in originals.items()
        if any(n.op_type == "TopK" for n in onnx.load(path).graph.node)
    )
    files[chooser] = spoil(files[chooser], tmp_path, smallest)
    with pytest.raises(ExportError, match=r"1 of \d+ files compute other results") as caught:
        parity.check_files(files)
    assert f"branch {chooser}" in str(caught.value)


def pooled(x: Tensor) -> Any:
    return nn.functional.max_pool2d(x, 3, 2, 1, 2, return_indices=True)


def as_in_a_file(place: Tensor, x: Tensor) -> Any:
    """Places counted over all samples and channels."""
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1, 1)
    return (place + planes * x.shape[2] * x.shape[3]).numpy()


def test_a_place_in_a_window_that_is_as_good_is_taken_over() -> None:
    torch.manual_seed(0)
    x = 1 + 1e-6 * torch.rand(2, 3, 9, 12)
    module = traced(pooled, x)
    assert chooses(module)
    turned = pooled(-x)[1]
    largest, place = ran(module, x, as_in_a_file(turned, x))
    assert torch.equal(place, turned)
    assert torch.equal(largest, x.flatten(2).gather(2, turned.flatten(2)).reshape(turned.shape))
    for wrong in (turned + 1, turned + 12, turned.flip(3), turned - 1000):
        with pytest.raises(OtherChoiceError, match="of another window"):
            ran(module, x, as_in_a_file(wrong, x))
    with pytest.raises(OtherChoiceError, match="of another window"):
        ran(module, x, turned.numpy())


def test_a_place_in_a_window_that_is_worse_is_not() -> None:
    x = torch.arange(2 * 3 * 9 * 12.0).reshape(2, 3, 9, 12)
    with pytest.raises(OtherChoiceError, match="largest difference"):
        ran(traced(pooled, x), x, as_in_a_file(pooled(-x)[1], x))


def test_pooling_without_places_is_no_choice() -> None:
    x = torch.ones(2, 3, 8, 8)
    found = ran(traced(lambda x: pooled(x)[0], x), x)
    assert torch.equal(found[0], torch.ones(2, 3, 3, 3))


class Unpooled(nn.Module):
    """A decoder that puts elements where an encoder's windows had their largest."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, 8, 5, padding=2)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.decode = nn.Conv2d(8, 3, 3, padding=1)
        # All elements of a window are nearly equal.
        nn.init.normal_(self.encode.weight, std=1e-7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(x).sigmoid()
        x, places = nn.functional.max_pool2d(x, 2, return_indices=True)
        return self.decode(nn.functional.max_unpool2d(self.inner(x), places, 2))


def test_a_decoder_with_places_of_windows_is_exported(tmp_path: Path) -> None:
    """onnxruntime rounds otherwise, so that other elements are the largest."""
    torch.manual_seed(0)
    example = torch.randn(2, 3, 16, 16)
    supernet = fxelastic.expand(Unpooled().eval(), 0.5, example_inputs=example)
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    x = torch.randn(2, 3, 16, 16)
    with edge.Executor(bundle) as executor, torch.no_grad():
        found = executor.run(bundle.space.original, {bundle.inputs[0].name: x.numpy()})
        expected = supernet(x).numpy()
    assert np.abs(found[0] - expected).max() > 1e-2


def test_a_maximum_without_its_place_is_no_choice() -> None:
    """A file has no node for it."""
    x = torch.ones(2, 5, 3)
    module = traced(lambda x: x.max(dim=2).values.topk(2, dim=1), x)
    found = ran(module, x, [[4, 2], [0, 3]])
    assert torch.equal(found[1], torch.tensor([[4, 2], [0, 3]]))
