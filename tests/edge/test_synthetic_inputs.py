"""Profiles on synthetic inputs: in the range of the example, and without noise on stderr."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
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
from fxelastic.edge.executor import Executor
from fxelastic.edge.monitoring.table_probe import BranchTimer
from fxelastic.edge.sessions import SessionMaker
from fxelastic.edge.synthetic_inputs import random_inputs, sound_inputs
from fxelastic.errors import BundleError, UsageError
from tests.edge.serving.tiny_bundle import write_bundle

QUICK: dict[str, Any] = {"n_samples": 3, "n_subnets": 0, "n_held_out": 0}


class Masked(nn.Module):
    """Attention to what a mask allows: without anything allowed, a softmax of nothing but -inf."""

    def __init__(self, ordered: bool) -> None:
        super().__init__()
        self.ordered = ordered
        self.embedding = nn.Embedding(7, 8)
        self.body = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.body(self.embedding(ids))
        in_order = (ids == torch.arange(5)).all(1, keepdim=True)
        allowed = mask & in_order if self.ordered else mask
        scores = (x @ x.transpose(1, 2)).masked_fill(~allowed[:, None, :], float("-inf"))
        return self.head((F.softmax(scores, -1) @ x).mean(1))


def bundle_of(folder: Path, *, ordered: bool) -> edge.Bundle:
    torch.manual_seed(0)
    ids = torch.arange(5).repeat(2, 1)
    mask = torch.tensor([[True] * 4 + [False], [True] * 5])
    model = Masked(ordered).eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=(ids, mask), kinds=["skip"])
    return fxelastic.export(supernet, folder / "bundle", verify=False)


def test_a_mask_that_is_drawn_as_all_zeros_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bundle_of(tmp_path, ordered=False)
    with Executor(bundle) as executor:
        zeros = random_inputs(bundle, 1, choice="lowest")
        assert not zeros["mask"].any()
        assert np.isnan(executor.run(bundle.space.original, zeros)[0]).all()
        # Of so many samples that are drawn one has a mask of zeros.
        inputs, sound = sound_inputs(executor, 300)
        assert sound
        assert inputs["mask"].all()
        assert inputs["mask"].shape == (300, 5)
    with caplog.at_level(logging.WARNING):
        table = edge.profile(bundle, **QUICK)
    assert set(table.rows) == set(bundle.space.by_id)
    assert "synthetic" not in caplog.text


def test_where_nothing_made_up_will_do_data_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bundle_of(tmp_path, ordered=True)
    with caplog.at_level(logging.WARNING):
        table = edge.profile(bundle, **QUICK)
    assert set(table.rows) == set(bundle.space.by_id)
    assert "pass inputs" in caplog.text
    caplog.clear()
    ids = np.arange(5)[None].repeat(3, 0)
    inputs = {"ids": ids[:1], "mask": ids[:1] >= 0}
    with caplog.at_level(logging.WARNING):
        edge.profile(bundle, inputs=inputs, **QUICK)
    assert "synthetic" not in caplog.text
    with pytest.raises(UsageError, match="must have batch_size samples"):
        edge.profile(bundle, 2, inputs=inputs, **QUICK)
    path = tmp_path / "data.npz"
    np.savez(path, ids=ids, mask=ids >= 0, targets=np.zeros(3, np.int64))
    argv = ["profile", str(bundle.path), "--data", str(path), "--quiet", "--samples", "3"]
    argv += ["--subnets", "0", "--held-out", "0"]
    assert main([*argv, "--batch-size", "2"]) == 0
    assert main([*argv, "--batch-size", "4", "--force"]) == 2
    assert "synthetic" not in caplog.text


class Columns(nn.Module):
    """Columns of one floating-point input, of which the first holds indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 8)
        self.body = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
        self.head = nn.Linear(12, 2)

    def forward(self, x: Any) -> Any:
        found = self.embedding(x[:, 0].long())
        return self.head(self.body(torch.cat([found, x[:, 1:]], 1)))


def test_floating_point_inputs_may_hold_indices(tmp_path: Path) -> None:
    """Random numbers are no rows of a table: the example's samples and zeros are."""
    torch.manual_seed(0)
    x = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), torch.randn(3, 4)], 1)
    model = Columns().eval()
    supernet = fxelastic.expand(model, 0.5, example_inputs=x, kinds=["pruned", "skip"])
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    with Executor(bundle) as executor:
        with pytest.raises(BundleError):
            executor.run(bundle.space.original, random_inputs(bundle, 64))
        inputs, sound = sound_inputs(executor, 64)
        assert sound
        assert inputs["x"].shape == (64, 5)
        (result,) = executor.run(bundle.space.original, {"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(result, model(x).numpy(), rtol=1e-4, atol=1e-5)


class Looked(nn.Module):
    """A table that integers are looked up in, with other things that may be asked of them."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_rows, 8)
        self.body = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))

    def forward(self, ids: Any) -> Any:
        return self.body(self.embedding(ids))


class Labelled(Looked):
    """Features and labels; one class, as for a diffusion model that is not conditioned."""

    def forward(self, x: Any, labels: Any) -> Any:
        return self.body(x + self.embedding(labels))


class Placed(Looked):
    """Positions from 40 on, behind a prefix, of a table that is read from there."""

    def forward(self, x: Any, positions: Any) -> Any:
        return self.body(x + self.embedding(positions - 40))


class Unmasked(Looked):
    """Flags that choose a row of a table with one row: none may be set."""

    def forward(self, x: Any, flags: Any) -> Any:
        return self.body(x + self.embedding(flags.long()))


class Neighbours(Looked):
    """Indices of other samples, which are out of range in smaller batches than the example."""

    def forward(self, x: Any, others: Any) -> Any:
        return self.body(x + x[others])


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
LOOKED: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "a vocabulary of one": (Looked(1), (torch.zeros(4, 3, dtype=torch.int64),)),
    "one class": (Labelled(1), (X, torch.zeros(4, dtype=torch.int64))),
    "positions from 40 on": (Placed(8), (X, torch.tensor([40, 42, 44, 47]))),
    "small integers": (Looked(1), (torch.zeros(4, 3, dtype=torch.int32),)),
    "flags": (Unmasked(1), (X, torch.zeros(4, dtype=torch.bool))),
    "samples": (Neighbours(1), (X, torch.tensor([3, 2, 1, 3]))),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Bundles of these models, each exported once."""
    folder = tmp_path_factory.mktemp("bundles")

    def path(name: str) -> Path:
        if not (folder / name).exists():
            model, inputs = LOOKED[name]
            supernet = fxelastic.expand(model.eval(), 0.6, example_inputs=inputs, kinds=["skip"])
            fxelastic.export(supernet, folder / name, verify=False)
        return folder / name

    return path


@pytest.fixture
def looked(exported: Callable[[str], Path], tmp_path: Path) -> Callable[[str], edge.Bundle]:
    """A copy of one of the bundles, for a test to change."""
    return lambda name: edge.load(shutil.copytree(exported(name), tmp_path / "bundle"))


def without_ranges(bundle: edge.Bundle) -> edge.Bundle:
    """The bundle as an earlier release would have written it, for what is measured next."""
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    assert any(value.pop("range", None) for value in manifest["values"])
    path.write_text(json.dumps(manifest), "utf-8")
    return edge.load(bundle.path)


def profile(bundle: edge.Bundle) -> subprocess.CompletedProcess[str]:
    """Measure in another process, whose stderr the onnxruntime library writes to as well."""
    argv = [sys.executable, "-m", "fxelastic.cli", "profile", str(bundle.path), "--samples", "3"]
    return subprocess.run(
        [*argv, "--subnets", "0", "--held-out", "0", "--quiet", "--force"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )


@pytest.mark.parametrize("name", LOOKED)
def test_a_profile_that_succeeds_prints_no_error_of_onnxruntime(
    name: str, looked: Callable[[str], edge.Bundle]
) -> None:
    bundle = looked(name)
    for change in (None, without_ranges) if name == "flags" else (None,):
        found = profile(bundle if change is None else change(bundle))
        assert found.returncode == 0, found.stderr
        lines = found.stderr.splitlines()
        # Ours may say that the machine is busy.
        assert all(line.startswith("fxelastic: warning: ") for line in lines), found.stderr


@pytest.mark.parametrize("name", LOOKED)
def test_integers_are_drawn_from_the_range_of_the_example(
    name: str, looked: Callable[[str], edge.Bundle]
) -> None:
    bundle = looked(name)
    info, given = bundle.inputs[-1], LOOKED[name][1][-1]
    assert info.range == (int(given.min()), int(given.max()))
    made = random_inputs(bundle, 64)[info.name]
    assert made.dtype == info.dtype
    assert (made.min(), made.max()) == info.range
    with Executor(bundle) as executor:
        inputs, sound = sound_inputs(executor, 4)
        assert sound
        assert np.array_equal(inputs[info.name], random_inputs(bundle, 4)[info.name])
        # In a batch of one, an index of other samples has to be the lowest: it is 1, or none.
        results = [] if name == "samples" else executor.run(bundle.space.original, inputs)
    assert all(np.isfinite(result).all() for result in results)


def test_branches_are_measured_beside_requests_on_integers_in_range(tmp_path: Path) -> None:
    class Late(Looked):
        def forward(self, x: Any) -> Any:
            x = self.body[0](x)
            return self.body[1](self.embedding((x.sum(-1) > 1e9).long() + 3))

    supernet = fxelastic.expand(Late(5).eval(), 0.3, example_inputs=X, kinds=["skip"])
    bundle = fxelastic.export(supernet, tmp_path / "bundle", verify=False)
    crossing = [v for v in bundle.manifest.values if v.dtype == "int64" and v.produced >= 0]
    assert [value.range for value in crossing] == [(3, 3)] * len(crossing)
    timer = BranchTimer(bundle, SessionMaker(1).open_branch, 1, 1, 0.0)
    assert set(timer.measure(bundle.space.original, threading.Event())) == set(
        bundle.space.original
    )


def test_the_error_of_a_run_that_fails_is_in_the_exception_alone(
    looked: Callable[[str], edge.Bundle], capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = looked("a vocabulary of one")
    capfd.readouterr()
    with Executor(bundle) as executor, pytest.raises(BundleError, match="out of data bounds"):
        executor.run(bundle.space.original, {"ids": np.ones((1, 3), np.int64)})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([0], "not a range"),
        ([0, 1.5], "not a range"),
        ([0, True], "not a range"),
        ([0, 2**63], "not a range"),
        ([1, 0], "empty"),
        ("0-1", "not an array"),
    ],
)
def test_a_range_that_is_damaged_is_refused(
    looked: Callable[[str], edge.Bundle], value: Any, problem: str
) -> None:
    bundle = looked("a vocabulary of one")
    path = bundle.path / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    next(v for v in manifest["values"] if v["name"] == "ids")["range"] = value
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError, match=problem):
        edge.load(bundle.path)


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
    assert "starting from the beginning" in caplog.text


class InPairs(nn.Module):
    """One result for two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(16, 2)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).relu().reshape(-1, 16))


def test_a_batch_size_at_which_the_model_does_not_run_is_named(tmp_path: Path) -> None:
    supernet = fxelastic.expand(InPairs().eval(), 0.6, example_inputs=torch.randn(4, 8), kinds=())
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    with pytest.raises(
        BundleError, match=r"a batch size that it supports .the example inputs have 4"
    ):
        edge.profile(bundle, **QUICK)
    assert edge.profile(bundle, batch_size=2, **QUICK).batch_size == 2
