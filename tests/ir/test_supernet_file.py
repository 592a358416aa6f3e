"""A supernet's file: the same bytes, loaded whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, UsageError, files
from fxelastic.ir.supernet_file import example_inputs_of


class _Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(*(_Unit() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = (
            nn.Conv2d(4, 32, 1),
            nn.BatchNorm2d(32),
            nn.Conv2d(32, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.norm(self.enter(x)).relu())


#: The default kinds of the first releases, which the file in tests/fixtures has.
KINDS = ("merged", "pruned", "skip")
X = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))


def expanded(seed: int = 0, **options: object) -> Supernet:
    options = {"kinds": KINDS, **options}
    return fxelastic.expand(_Net(seed), 0.3, example_inputs=X, **options)


def trained(supernet: Supernet) -> Supernet:
    """Other weights and statistics than expand gives."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for branch in supernet.branches.values():
            if not branch.frozen:
                for value in branch.module.state_dict().values():
                    if value.is_floating_point():
                        value.add_(torch.rand(value.shape, generator=generator))
    return supernet


def outputs(supernet: Supernet) -> list[Tensor]:
    archs = supernet.space.sample(8, seed=3)
    with torch.no_grad():
        return [supernet(X, arch=arch) for arch in (None, *archs)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Supernet]:
    path = tmp_path_factory.mktemp("supernet") / "net.safetensors"
    supernet = trained(expanded())
    supernet.save(path)
    return path, supernet


def test_what_was_saved_is_loaded(written: tuple[Path, Supernet]) -> None:
    path, supernet = written
    other = expanded()
    wanted = outputs(supernet)
    assert not all(map(torch.equal, outputs(other), wanted))
    assert other.load(path) is other
    assert all(map(torch.equal, outputs(other), wanted))


def test_the_same_supernet_gives_the_same_bytes(written: tuple[Path, Supernet]) -> None:
    path, supernet = written
    other = path.with_name("other.safetensors")
    for _ in range(3):
        supernet.save(other)
        assert other.read_bytes() == path.read_bytes()


def test_the_models_own_weights_are_not_in_it(written: tuple[Path, Supernet]) -> None:
    path, supernet = written
    names = set(safetensors.torch.load_file(path))
    assert {name.split("/")[0] for name in names} == {
        b.id for b in supernet.branches.values() if not b.frozen and b.module.state_dict()
    }


def test_other_weights_of_the_model_are_told(
    written: tuple[Path, Supernet], caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = written
    with caplog.at_level(logging.WARNING):
        expanded(seed=1).load(path)
    assert "other weights of the model" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        expanded().load(path)
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("merged",)}, "another supernet: it also has"),
        ({"kinds": "default"}, "kinds; the file has weights of merged, pruned25, pruned50"),
        ({"prune": (0.25,)}, "another supernet: it also has"),
        ({"prune": (0.25, 0.5, 0.75)}, "another supernet: it has no"),
    ],
)
def test_another_structure(
    written: tuple[Path, Supernet], options: dict[str, object], message: str
) -> None:
    path, _ = written
    supernet = expanded(**options)
    before = outputs(supernet)
    with pytest.raises(UsageError, match=message):
        supernet.load(path)
    assert all(map(torch.equal, outputs(supernet), before))


def test_other_example_inputs_are_named(written: tuple[Path, Supernet]) -> None:
    path, _ = written
    assert example_inputs_of(path) == ["x=2x4x3x3"]
    larger = fxelastic.expand(_Net(), 0.3, example_inputs=torch.zeros(2, 4, 6, 6), kinds=KINDS)
    with pytest.raises(UsageError, match="captured with x=2x4x3x3 instead of x=2x4x6x6"):
        larger.load(path)


def test_files_without_example_inputs_have_none(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _Net()

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.net(pair[0] + pair[1])

    path = tmp_path / "nested.safetensors"
    fxelastic.expand(Pair(), 0.3, example_inputs=((X, X),)).save(path)
    assert example_inputs_of(path) == []
    assert example_inputs_of(tmp_path / "missing") == []
    path.write_bytes(b"no tensors")
    assert example_inputs_of(path) == []


def _flipped(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def _of_another_schema(data: bytes) -> bytes:
    return data.replace(b"fxelastic.supernet/1", b"fxelastic.supernet/9")


def _foreign(data: bytes) -> bytes:
    return safetensors.torch.save({"weight": torch.zeros(2)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "a complete safetensors file"),
        (lambda data: b"", "a complete safetensors file"),
        (lambda data: b"x" * 500, "a complete safetensors file"),
        (_flipped, "an unchanged file"),
        (_of_another_schema, "schema"),
        (_foreign, "schema"),
    ],
)
def test_damaged_files(
    written: tuple[Path, Supernet], tmp_path: Path, damage: object, message: str
) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(written[0].read_bytes()))  # type: ignore[operator]
    supernet = expanded()
    before = outputs(supernet)
    with pytest.raises(UsageError, match=message):
        supernet.load(path)
    assert all(map(torch.equal, outputs(supernet), before))


def test_tensors_left_out(written: tuple[Path, Supernet], tmp_path: Path) -> None:
    """By somebody who kept the header."""
    data = written[0].read_bytes()
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    tensors = safetensors.torch.load(data)
    missing = tensors.popitem()[0]
    path = tmp_path / "short.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(UsageError, match=f"it has no {missing}"):
        expanded().load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        expanded().load(tmp_path / "none")
    with pytest.raises(UsageError, match="folder that exists"):
        expanded().save(tmp_path / "none" / "net.safetensors")


def test_a_failed_write_keeps_the_old_file(
    written: tuple[Path, Supernet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(UsageError, match="No space left"):
        written[1].save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_trainable_parameters_are_those_of_new_branches() -> None:
    supernet = expanded()
    everything = {id(p) for p in supernet.trainable_parameters()}
    assert everything == {id(p) for p in supernet.parameters() if p.requires_grad}
    assert not list(supernet.trainable_parameters(supernet.space.original))
    arch = next(a for a in supernet.space.sample(20, seed=0) if any("merged" in b for b in a))
    own = {id(p) for p in supernet.trainable_parameters(arch)}
    assert own
    assert own < everything
    assert own == {
        id(p) for b in supernet.path(arch) for p in b.module.parameters() if not b.frozen
    }


def test_a_file_does_not_depend_on_what_the_inputs_are_called(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())

    class One(Net):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.layers(input)

    class Other(Net):
        def forward(self, input_1: torch.Tensor) -> torch.Tensor:
            return self.layers(input_1)

    torch.manual_seed(0)
    one, other, x = One().eval(), Other().eval(), torch.randn(4, 8)
    other.load_state_dict(one.state_dict())
    One.__name__ = Other.__name__ = "Net"
    supernet = fxelastic.expand(one, 0.5, example_inputs=x)
    supernet.save(tmp_path / "supernet.safetensors")
    fxelastic.expand(other, 0.5, example_inputs=x).load(tmp_path / "supernet.safetensors")
    assert "input_1" not in supernet.partition.to_text()


def test_a_file_of_an_earlier_commit_loads() -> None:
    """The digest of the structure does not follow changes of the code that computes it."""

    def unit() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    torch.manual_seed(0)
    stem, head = nn.Conv2d(3, 8, 3, padding=1), (nn.Flatten(), nn.Linear(128, 4))
    model = nn.Sequential(stem, *(unit() for _ in range(3)), *head).eval()
    supernet = fxelastic.expand(model, 0.4, example_inputs=torch.zeros(2, 3, 4, 4), kinds=KINDS)
    path = Path(__file__).parents[1] / "fixtures" / "supernet_of_0_1.safetensors"
    saved = safetensors.torch.load_file(path)
    supernet.load(path)
    assert saved
    for name, value in saved.items():
        branch, _, own = name.partition("/")
        assert torch.equal(supernet.branches[branch].module.state_dict()[own], value)
