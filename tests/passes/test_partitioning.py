"""Modules that are cut for a few percent are named with the gamma that keeps them whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Partition
from fxelastic.backends.base import fusion_rules
from fxelastic.cli.app import main
from fxelastic.ir.traced import Traced
from fxelastic.passes.capture import capture
from fxelastic.passes.partitioning import partition_graph


class Residual(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, hidden), nn.Linear(hidden, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).relu())


class Inverted(nn.Module):
    """A unit of EfficientNet-Lite."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(8, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False),),
            *(nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, 8, 1, bias=False), nn.BatchNorm2d(8)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


class Chain(nn.Module):
    """A unit without a connection around it: it is cut between its layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, hidden), nn.Linear(hidden, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu()).relu()
        return y


def units(unit: Callable[[int], nn.Module], head: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(unit(32), unit(32), unit(48), head).eval()


def attention(hidden: int) -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, hidden, batch_first=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (lambda: units(Residual, nn.Linear(16, 64)), torch.randn(2, 16)),
    "inverted": (lambda: units(Inverted, nn.Conv2d(8, 64, 1)), torch.randn(2, 8, 6, 6)),
    "chain": (lambda: units(Chain, nn.Linear(16, 64)), torch.randn(2, 16)),
    "attention": (lambda: units(attention, nn.Linear(16, 64)), torch.randn(2, 5, 16)),
}


@cache
def traced(name: str) -> Traced:
    build, x = MODELS[name]
    return capture(build(), x)


def partitioned(name: str, gamma: float) -> Partition:
    return partition_graph(traced(name), gamma, fusion_rules("onnxruntime"))


def size_of(name: str, path: str) -> int:
    module = MODELS[name][0]().get_submodule(path)
    return sum(parameter.numel() for parameter in module.parameters())


def holders(partition: Partition, path: str) -> list[str]:
    """The blocks that hold a module's parameters."""
    return [b.name for b in partition.blocks if any(p.startswith(f"{path}.") for p in b.params)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("path", ["0", "2"])
def test_a_module_a_little_over_the_cap_is_named_with_a_gamma_that_keeps_it_whole(
    name: str, path: str
) -> None:
    size, total = size_of(name, path), partitioned(name, 1.0).n_params
    for over in (0.004, 0.02, 0.2):
        partition = partitioned(name, size / total / (1 + over))
        assert len(holders(partition, path)) > 1
        (note,) = (note for note in partition.opened_modules if note.path == path)
        assert note.n_params == size
        assert note.over == pytest.approx(over, rel=1e-3)
        assert size / total <= note.gamma <= 1.02 * size / total
        again = partitioned(name, note.gamma)
        assert len(holders(again, path)) == 1
        assert path not in [other.path for other in again.opened_modules]


@pytest.mark.parametrize("name", MODELS)
def test_modules_far_over_the_cap_and_those_that_fit_have_no_note(name: str) -> None:
    share = size_of(name, "0") / partitioned(name, 1.0).n_params
    for gamma in (share / 1.3, share / 3, share, 1.0):
        assert "0" not in [note.path for note in partitioned(name, gamma).opened_modules]


def test_partitions_supernets_and_explain_name_opened_modules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    build, x = MODELS["residual"]
    gamma = size_of("residual", "0") / partitioned("residual", 1.0).n_params / 1.02
    partition = partitioned("residual", gamma)
    line = "0, 1 are cut, 2 % over the cap: gamma=0.222 keeps them whole"
    assert line in str(partition).splitlines()
    assert line not in partition.to_text()
    assert line in str(fxelastic.expand(build(), gamma, example_inputs=x)).splitlines()
    command = ["explain", f"{__file__}:residual", "--gamma", str(gamma)]
    command += ["--example-input", "float32:2x16"]
    assert main(command) == 0
    assert line in capsys.readouterr().out.splitlines()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["opened_modules"]
    assert [(note["path"], note["gamma"]) for note in found] == [("0", 0.222), ("1", 0.222)]


def residual() -> nn.Module:
    """For the command."""
    return MODELS["residual"][0]()


class Largest(nn.Module):
    """A result of an operator without weights enters the first layer, and another the result."""

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        """Samples (n, 8)."""
        values, places = torch.topk(x, 4)
        if self.scaled:
            values = (values * 2).relu()
        return self.layers(values) + places.sum(1, keepdim=True)


@pytest.mark.parametrize("scaled", [False, True])
def test_results_of_one_operator_may_be_data_and_context(scaled: bool) -> None:
    model = Largest(scaled=scaled).eval()
    partition = fxelastic.partition(model, 0.9, torch.randn(3, 8))
    x = torch.randn(5, 8)
    assert torch.equal(partition(x), model(x))


class Packed(nn.Module):
    """The inputs themselves are packed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (n, 4, 6) and their lengths."""
        pack = nn.utils.rnn.pack_padded_sequence
        _, (state, _) = self.layer(pack(x, lengths, batch_first=True, enforce_sorted=False))
        return self.head(state[-1])


def test_an_input_may_be_packed() -> None:
    model = Packed().eval()
    example = (torch.randn(3, 4, 6), torch.tensor([4, 2, 1]))
    partition = fxelastic.partition(model, 0.5, example)
    x, lengths = torch.randn(2, 4, 6), torch.tensor([1, 3])
    assert torch.equal(partition(x, lengths), model(x, lengths))
