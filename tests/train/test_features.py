"""What the blocks before a stage compute is kept by sample, where it belongs to a sample."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fxelastic
from fxelastic.expansion import expand
from fxelastic.train.batches import Batch
from fxelastic.train.features import FeatureReader, FrozenPrefix
from fxelastic.train.learners import BranchRunner
from tests.models.compare import assert_same_output
from tests.train.staged import images, loader, network


class Counted:
    """Counts how many samples run through the blocks before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        real = FrozenPrefix._computed

        def computed(features: FrozenPrefix, inputs: Any) -> dict[str, Any]:
            self.n += len(next(iter(inputs.values())))
            return real(features, inputs)

        monkeypatch.setattr(FrozenPrefix, "_computed", computed)


@pytest.fixture(scope="module")
def supernet() -> fxelastic.Supernet:
    return expand(network(), 0.4, example_inputs=torch.zeros(2, 1, 8, 8), kinds=())


def reader_of(supernet: fxelastic.Supernet, start: int = 1) -> FeatureReader:
    runner = BranchRunner(supernet)
    return FeatureReader(supernet, runner=runner, features=FrozenPrefix(runner, start))


def filled(supernet: fxelastic.Supernet, data: Any, folder: Path, limit: int = 2**20) -> Any:
    reader = reader_of(supernet)
    reader.fill([(data, "the loader")], folder / "rows", {}, limit, 0)
    return reader


def values(reader: FeatureReader, raw: Any) -> dict[str, Any]:
    return reader.bind(reader.read(raw, 0))


def test_known_samples_are_read_in_any_order_and_others_computed(
    supernet: fxelastic.Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, counted = filled(supernet, loader(), tmp_path), Counted(monkeypatch)
    known, new = images()[0], images(24, 1)[0]
    order = torch.randperm(40)[:12]
    assert_same_output(values(reader, known[order]), values(reader_of(supernet), known[order]))
    assert counted.n == 12
    # Fewer than half are new: these alone run.
    mixed = torch.cat([known[:5], new[:3], known[7:9]])
    found = values(reader, mixed)
    assert counted.n == 15
    for name, value in values(reader_of(supernet), mixed).items():
        torch.testing.assert_close(found[name], value)
    # Most are new: the whole batch runs.
    counted.n = 0
    values(reader, torch.cat([known[:2], new[:4]]))
    assert counted.n == 6


def test_the_next_process_takes_the_rows_of_the_same_weights_only(
    supernet: fxelastic.Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(supernet, loader(), tmp_path)
    counted = Counted(monkeypatch)
    filled(supernet, loader(), tmp_path)
    assert counted.n == 0
    bias = next(supernet.branches["original@0"].module.parameters())
    with torch.no_grad():
        bias.add_(1)
        filled(supernet, loader(), tmp_path)
        bias.sub_(1)
    assert counted.n == 40


@pytest.mark.parametrize("limit", [100, 20_000])
def test_what_does_not_fit_is_computed_each_epoch(
    supernet: fxelastic.Supernet, tmp_path: Path, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The first batch shows that it will not fit, or a later one where there is no length."""
    data: Any = loader() if limit == 100 else Endless(images()[0])
    with caplog.at_level(logging.INFO):
        reader = filled(supernet, data, tmp_path, limit)
    assert "over" in caplog.text
    assert not list(tmp_path.iterdir())
    known = images()[0][:4]
    assert_same_output(values(reader, known), values(reader_of(supernet), known))


class Endless:
    """Batches without a length."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data.split(8))


class Noisy(Dataset[Any]):
    """Augmented images."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        return images()[0][i] + torch.randn(1, 8, 8), images()[1][i]


def test_augmented_data_is_not_kept(
    supernet: fxelastic.Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    filled(supernet, DataLoader(Noisy(), 8), tmp_path)
    assert counted.n == 0
    # Where it does not show beforehand, the first batches show it.
    reader = filled(supernet, Endless(images()[0]), tmp_path)
    assert list(tmp_path.iterdir())
    for i in range(4):
        values(reader, images()[0][:8] + i + 1)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_costs_time_only(
    supernet: fxelastic.Supernet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    reader = filled(supernet, loader(), tmp_path / "file")
    assert "can't be written" in caplog.text
    known = images()[0][:4]
    assert_same_output(values(reader, known), values(reader_of(supernet), known))


class Positions(nn.Module):
    """Adds a mask that is the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        keep = torch.ones(length, length, dtype=torch.bool).tril()
        x = self.embed(tokens)
        for layer in self.layers:
            scores = (x @ x.mT).masked_fill(~keep, -torch.inf)
            x = x + layer(scores.softmax(-1) @ x).relu()
        return self.head(x.mean(1))


def test_values_beside_the_samples_are_computed_again(tmp_path: Path) -> None:
    example = torch.zeros(2, 5, dtype=torch.int64)
    supernet = expand(Positions(), 0.3, example_inputs=example, kinds=())
    tokens = torch.randint(0, 11, (24, 5))
    kept = 0
    for start in range(1, len(supernet.partition.blocks)):
        reader = reader_of(supernet, start)
        reader.fill([([tokens], "the loader")], tmp_path / str(start), {}, 2**20, 0)
        kept += not reader.features.problem
        batch = Batch((tokens[5:9],), {}, None, 0)
        expected, found = reader_of(supernet, start).bind(batch), reader.bind(batch)
        assert_same_output(dict(sorted(found.items())), dict(sorted(expected.items())))
    assert kept
