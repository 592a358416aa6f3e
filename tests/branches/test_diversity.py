"""Scores of cuts: what they measure, where they place exits, and which blocks matter little."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, UsageError, kinds
from fxelastic.branches.diversity import MeasuredCut, MeasuredCuts
from fxelastic.cli.app import main
from tests import models
from tests.models.captured import grouped, partitioned

N, CLASSES = 512, 4


class Late(nn.Module):
    """Classes by quick sines, which no linear map of the first features knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.keep = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])
        self.wide = nn.Linear(8, 64)
        self.narrow = nn.Linear(64, 8, bias=False)
        self.head = nn.Linear(8, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.keep(x)
        x = self.narrow((40 * self.wide(x)).sin())
        return self.head(x)


@pytest.fixture(scope="module")
def late() -> Supernet:
    model = Late().eval()
    return fxelastic.expand(model, 0.2, example_inputs=torch.randn(2, 8), kinds=())


def data(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N // 4, 8, generator=generator) for _ in range(4)]


def test_gains_are_where_the_model_computes_what_counts(late: Supernet) -> None:
    found = fxelastic.diversity(late, data())
    assert found.measure == "agreement"
    assert found.whole == 1.0
    assert found.n_samples == N
    scores = [cut.score for cut in found.cuts]
    assert scores[-1] > 0.9
    assert scores[0] < 0.75
    flops = [cut.flops for cut in found.cuts]
    assert flops == sorted(flops)
    assert 0 < flops[0] < flops[-1] < 1
    best = max(found.cuts, key=lambda cut: cut.gain)
    assert best.position > 1
    assert best.block not in found.little
    total = found.chance + sum(cut.gain for cut in found.cuts)
    assert total == pytest.approx(scores[-1])
    again = json.loads(json.dumps(found.to_dict()))
    assert again["exits"] == list(found.worth_an_exit())
    assert [cut["score"] for cut in again["cuts"]] == scores


def test_with_targets_scores_are_accuracies(late: Supernet) -> None:
    with torch.no_grad():
        labelled = [(x, late(x).argmax(1)) for x in data()]
    same = fxelastic.diversity(late, labelled)
    assert (same.measure, same.whole) == ("accuracy", 1.0)
    wrong = [(x, (y + 1) % CLASSES) for x, y in labelled]
    assert fxelastic.diversity(late, wrong).whole == 0.0
    assert fxelastic.diversity(late.partition, data()) == fxelastic.diversity(late, data())


@pytest.mark.parametrize("name", [grouped(n) for n in ("autoencoder", "vit", "bert", "t5")])
def test_every_model_is_measured_or_says_why_not(name: str) -> None:
    args, kwargs = models.case(name).inputs(4)
    found = fxelastic.diversity(partitioned(name, 0.3), [((args, kwargs), None)])
    assert found.cuts or found.refused
    assert all(0 <= cut.score <= 1 and np.isfinite(cut.gain) for cut in found.cuts)
    assert str(found)


def cuts(*pairs: tuple[float, float]) -> MeasuredCuts:
    """Measured cuts of these scores and shares of the FLOPs."""
    rows = [MeasuredCut(i + 1, f"b{i}", s, 0.0, f) for i, (s, f) in enumerate(pairs)]
    return MeasuredCuts("accuracy", 0.1, 0.95, tuple(rows), (), 100)


def test_exits_are_placed_where_they_save_most() -> None:
    # The second cut knows no more than the first, and the third costs nearly all.
    assert cuts((0.6, 0.2), (0.6, 0.4), (0.9, 0.99)).worth_an_exit() == (1,)
    assert cuts((0.5, 0.2), (0.9, 0.4)).worth_an_exit() == (1, 2)
    # A dominated cut is never chosen, wherever it is.
    assert 2 not in cuts((0.7, 0.3), (0.6, 0.4), (0.9, 0.6)).worth_an_exit()
    assert cuts().worth_an_exit() == ()


def test_with_calibration_auto_follows_the_scores(late: Supernet) -> None:
    wanted = fxelastic.diversity(late, data()).worth_an_exit()
    kind = kinds.Exit(calibration=tuple(((x,), {}) for x in data()))
    assert [made.start for made in kind.make(late.partition)] == list(wanted)
    spread = [made.start for made in kinds.Exit().make(late.partition)]
    assert spread != list(wanted)


def test_a_loader_without_batches_is_refused(late: Supernet) -> None:
    with pytest.raises(UsageError, match="yields no batch"):
        fxelastic.diversity(late, [])


def test_the_command_scores_the_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.cat(data())
    with torch.no_grad():
        y = Late().eval()(x).argmax(1)
    np.savez(tmp_path / "samples.npz", x=x.numpy(), y=y.numpy())
    given = [f"{__file__}:Late", "--example-input", "2x8", "--gamma", "0.2"]
    given += ["--exits", str(tmp_path / "samples.npz")]
    assert main(["explain", *given]) == 0
    text = capsys.readouterr().out
    assert "exits: what a linear map" in text
    assert "accuracy" in text
    assert "matters little" in text
