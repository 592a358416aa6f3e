"""Profiles of models that take masks: what is made up must not make NaN, or be told from faults."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxelastic
from fxelastic import edge
from fxelastic.cli import main
from fxelastic.edge.execution import Executor
from fxelastic.edge.made_up_inputs import random_inputs, sound_inputs
from fxelastic.errors import UsageError
from tests.edge.serving.tiny_bundle import write_bundle

QUICK: dict[str, Any] = {"n_samples": 3, "n_subnets": 0, "n_held_out": 0}


class Masked(nn.Module):
    """Attention to what a mask allows: without anything allowed, a softmax of nothing but -inf."""

    def __init__(self, forbidden: bool) -> None:
        super().__init__()
        self.forbidden = forbidden
        self.embedding = nn.Embedding(7, 8)
        self.body = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.body(self.embedding(ids))
        allowed = mask & (ids > 2) if self.forbidden else mask
        scores = (x @ x.transpose(1, 2)).masked_fill(~allowed[:, None, :], float("-inf"))
        return self.head((F.softmax(scores, -1) @ x).mean(1))


def bundle_of(folder: Path, *, forbidden: bool) -> edge.Bundle:
    torch.manual_seed(0)
    ids = torch.full((2, 5), 4)
    model = Masked(forbidden).eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=(ids, ids > 0), kinds=["skip"])
    return fxelastic.export(supernet, folder / "bundle", verify=False)


def test_a_mask_of_ones_is_made_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = bundle_of(tmp_path, forbidden=False)
    with Executor(bundle) as executor:
        zeros = random_inputs(bundle, 1, whole=0)
        assert np.isnan(executor.run(bundle.space.original, zeros)[0]).all()
        inputs, sound = sound_inputs(executor, 2)
        assert sound
        assert inputs["mask"].all()
        assert inputs["mask"].shape == (2, 5)
    with caplog.at_level(logging.WARNING):
        table = edge.profile(bundle, **QUICK)
    assert set(table.rows) == set(bundle.space.by_id)
    assert "made up" not in caplog.text


def test_where_nothing_made_up_will_do_data_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bundle_of(tmp_path, forbidden=True)
    with caplog.at_level(logging.WARNING):
        table = edge.profile(bundle, **QUICK)
    assert set(table.rows) == set(bundle.space.by_id)
    assert "pass inputs" in caplog.text
    caplog.clear()
    ids = np.full((3, 5), 4)
    inputs = {"ids": ids[:1], "mask": ids[:1] > 0}
    with caplog.at_level(logging.WARNING):
        edge.profile(bundle, inputs=inputs, **QUICK)
    assert "made up" not in caplog.text
    with pytest.raises(UsageError, match="another batch size"):
        edge.profile(bundle, 2, inputs=inputs, **QUICK)
    path = tmp_path / "data.npz"
    np.savez(path, ids=ids, mask=ids > 0, targets=np.zeros(3, np.int64))
    argv = ["profile", str(bundle.path), "--data", str(path), "--quiet", "--samples", "3"]
    argv += ["--subnets", "0", "--held-out", "0"]
    assert main([*argv, "--batch-size", "2"]) == 0
    assert main([*argv, "--batch-size", "4", "--force"]) == 2
    assert "made up" not in caplog.text


def test_zeros_are_taken_where_ones_are_no_index(tmp_path: Path) -> None:
    class OneRow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(1, 4)
            self.body = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))

        def forward(self, ids: Any) -> Any:
            return self.body(self.embedding(ids))

    ids = torch.zeros(2, 3, dtype=torch.int64)
    supernet = fxelastic.expand(OneRow().eval(), 0.6, example_inputs=ids, kinds=["skip"])
    bundle = fxelastic.export(supernet, tmp_path / "bundle", verify=False)
    with Executor(bundle) as executor:
        inputs, sound = sound_inputs(executor, 1)
    assert sound
    assert not inputs["ids"].any()


def test_a_measurement_on_other_inputs_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    path = tmp_path / "partial.json"

    def interrupt(task: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edge.profile(bundle, path=path, progress=interrupt, **QUICK)
    inputs = random_inputs(bundle, 1, seed=5)
    with caplog.at_level(logging.WARNING):
        edge.profile(bundle, path=path, inputs=inputs, **QUICK)
    assert "begun anew" in caplog.text
