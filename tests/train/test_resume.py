"""A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fxelastic
from fxelastic import TrainingError, UsageError, train
from fxelastic.train import Attentive, Bucketed, EndToEnd, Stage, TeacherForced, Training
from fxelastic.train.checkpoints import Checkpoint, Checkpoints
from tests import warm
from tests.cli.commands import ROOT
from tests.models.compare import assert_same_output
from tests.train.killed_runs import Stop
from tests.train.supernets import linear_supernet, vector_batches, weights


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    folder = tmp_path_factory.mktemp("runs")
    found = warm.run("tests.train.killed_runs", str(folder), cwd=ROOT)
    assert found.returncode == 0, found.stderr
    results: dict[str, Any] = json.loads(found.stdout)
    return results


@pytest.mark.parametrize(
    "stage", ["teacher_forced", "chained", "tune", "stages", "multi_stage", "specialise"]
)
def test_a_killed_run_ends_with_the_same_bits(killed_runs: dict[str, Any], stage: str) -> None:
    plain = killed_runs[stage]["plain"]
    assert plain["resumed_at"] == 0
    for run in killed_runs[stage]["killed"]:
        assert set(run["codes"]) == {-signal.SIGKILL}, run["at"]
        for key in ("weights", "losses", "coverage", "logged"):
            assert run[key] == plain[key], (run["at"], key)


def test_runs_were_resumed_at_several_points(killed_runs: dict[str, Any]) -> None:
    found = {run["resumed_at"] for stage in killed_runs.values() for run in stage["killed"]}
    assert {0, 2, 4, 6} <= found


def test_stages_go_on_where_they_were_and_keep_no_features(killed_runs: dict[str, Any]) -> None:
    runs = killed_runs["multi_stage"]["killed"]
    # Killed after 8 of 9 steps of the third stage; checkpoints are written every second step.
    assert [run["resumed"] for run in runs] == [[9, 9, 6], [9, 9, 0], [9, 0, 0]]
    assert not any(run["left"] for run in runs)


def run(folder: Path, *, stop: int | None = None, **options: Any) -> Any:
    supernet = linear_supernet(dropout=0.2)
    given = {"epochs": 2, "checkpoints": folder, "checkpoint_every": 1, "keep": 3, **options}
    given["callbacks"] = [Stop(stop)] if stop else []
    try:
        history = fxelastic.tune(supernet, vector_batches(), **given)
    except KeyboardInterrupt:
        return None
    return history, weights(supernet)


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A folder with checkpoints of the steps 5, 6 and 7 of 8, all in the second epoch."""
    run(tmp_path, stop=8)
    names = [p.name for p in sorted(tmp_path.iterdir())]
    assert names == [f"tune-0000000{i}-0001" for i in (5, 6, 7)]
    return tmp_path


OWN = ["tune-00000007-0001", "tune-00000008-0001", "tune-00000008-0002"]
EXPECTED: list[Any] = []
ERRORS = {"student@0": 1.0, "student@1": 0.5, "student@2-4": 0.25}


def uninterrupted(folder: Path) -> Any:
    if not EXPECTED:
        EXPECTED.append(run(folder / "plain")[1])
    return EXPECTED[0]


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
def test_a_corrupt_checkpoint_is_refused_and_the_older_one_used(
    stopped: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(stopped / "tune-00000007-0001" / name)
    with caplog.at_level(logging.WARNING):
        history, found = run(stopped)
    assert history.resumed_at == 6
    (reason,) = history.refused
    assert "tune-00000007-0001: it is corrupt" in reason
    assert name in reason
    assert reason in caplog.text
    assert_same_output(found, uninterrupted(stopped))


def test_an_incomplete_checkpoint_is_refused(stopped: Path) -> None:
    (stopped / "tune-00000007-0001" / "state.safetensors").unlink()
    (stopped / "tune-00000006-0001" / "checkpoint.json").write_text("{")
    history, found = run(stopped)
    assert history.resumed_at == 5
    assert len(history.refused) == 2
    assert all("it is not complete" in reason for reason in history.refused)
    assert_same_output(found, uninterrupted(stopped))


def test_what_was_refused_is_kept_aside(stopped: Path) -> None:
    spoil(stopped / "tune-00000007-0001" / "checkpoint.json")
    run(stopped)
    names = sorted(p.name for p in stopped.iterdir())
    assert names == ["refused-tune-00000007-0001-1", *OWN]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lr": 0.5}, "lr differs"),
        ({"seed": 3}, "seed differs"),
        ({"epochs": 9}, "epochs differs"),
        ({"optimizer": torch.optim.SGD}, "optimizer differs"),
        ({"soft": 0.5}, "tune soft differs"),
        ({"sampling": Attentive(ERRORS)}, "tune sampling"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    stopped: Path, options: dict[str, Any], reason: str
) -> None:
    before = sorted(stopped.rglob("*"))
    with pytest.raises(TrainingError, match=f"it belongs to another run: {reason}") as raised:
        run(stopped, **options)
    assert "name another folder" in str(raised.value)
    assert sorted(stopped.rglob("*")) == before


def test_a_checkpoint_of_another_model_is_refused(stopped: Path) -> None:
    supernet = linear_supernet(dropout=0.2)
    with torch.no_grad():
        supernet.branches["original@0"].module.get_parameter("layers.0.0.bias").add_(1)
    with pytest.raises(TrainingError, match="model differs"):
        fxelastic.tune(
            supernet, vector_batches(), epochs=2, checkpoints=stopped, checkpoint_every=1
        )


def test_a_finished_run_is_not_made_again(tmp_path: Path) -> None:
    first, expected = run(tmp_path)
    again, found = run(tmp_path)
    assert again.resumed_at == again.steps == 8
    assert again.coverage == first.coverage
    assert [e.loss for e in again.epochs] == [e.loss for e in first.epochs]
    assert_same_output(found, expected)


def test_stages_share_a_folder(tmp_path: Path) -> None:
    supernet = linear_supernet()
    for stage in (fxelastic.distill, fxelastic.tune):
        stage(supernet, vector_batches(), checkpoints=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "distill-00000004-0001",
        "tune-00000004-0001",
    ]


def test_other_runs_checkpoints_survive_rotation(tmp_path: Path) -> None:
    run(tmp_path)
    foreign = tmp_path / "tune-00000001-0000"
    foreign.mkdir()
    (foreign / "checkpoint.json").write_text("of someone else\n{}")
    run(tmp_path / "empty")
    supernet = linear_supernet(dropout=0.2)
    options: dict[str, Any] = {"epochs": 2, "checkpoints": tmp_path, "checkpoint_every": 1}
    fxelastic.tune(supernet, vector_batches(), keep=1, **options)
    assert foreign.is_dir()


def test_half_written_checkpoints_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".tune-00000009-0000.123.tmp").mkdir()
    run(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        run(tmp_path / "file")


def test_an_optimiser_with_other_state_is_refused(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "odd": object()}

    with pytest.raises(UsageError, match="optimizer/odd can't be written"):
        run(tmp_path, optimizer=lambda p: Odd(p, 0.1))


def test_runs_of_earlier_versions_go_on_with_their_options(tmp_path: Path) -> None:
    """Their checkpoints know neither held-out errors nor rates by branch nor these options."""
    options: dict[str, Any] = {"lr": 1e-3, "norm_statistics": "batch", "keep_best": False}
    assert not {"norm_statistics", "keep_best"} & Training(**options).numerics().keys()
    _, expected = run(tmp_path / "whole", **options)
    run(tmp_path / "stopped", stop=6, **options)
    folder = Checkpoints(tmp_path / "stopped", "tune", {})
    for path in sorted((tmp_path / "stopped").iterdir()):
        facts = json.loads((path / "checkpoint.json").read_text().split("\n", 1)[1])
        tensors = safetensors.torch.load((path / "state.safetensors").read_bytes())
        data = facts["data"]
        del data["held_out"]
        state = data["optimisation"]["__items__"]
        data["optimisation"]["__items__"] = [pair for pair in state if pair[0] != "rates"]
        shutil.rmtree(path)
        earlier = replace(folder, run=facts["run"])
        earlier.write(Checkpoint(facts["step"], facts["epoch"], data, tensors))
    history, found = run(tmp_path / "stopped", **options)
    assert history.resumed_at == 5
    assert_same_output(found, expected)


def test_checkpoints_of_an_earlier_version_go_on(tmp_path: Path) -> None:
    """A finished distillation, and a tuning that was killed after 7 of its 8 steps."""
    fixture = ROOT / "tests" / "fixtures" / "training"
    expected = safetensors.torch.load_file(fixture / "expected.safetensors")
    options: dict[str, Any] = {"checkpoint_every": 2, "keep": 1, "norm_statistics": "frozen"}
    for way in ("functions", "stages"):
        folder = tmp_path / way
        shutil.copytree(fixture / "checkpoints", folder)
        supernet = linear_supernet(dropout=0.2)
        options["checkpoints"] = folder
        if way == "functions":
            first = fxelastic.distill(supernet, vector_batches(), **options)
            second = fxelastic.tune(supernet, vector_batches(), epochs=2, soft=0.5, **options)
        else:
            stages = Stage(TeacherForced()), Stage(EndToEnd(soft=0.5), epochs=2)
            first, second = train.run(supernet, vector_batches(), stages, **options)
        assert (first.resumed_at, second.resumed_at, second.steps) == (4, 6, 8)
        found = weights(supernet)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_numbers_of_a_sampling_belong_to_the_run(tmp_path: Path) -> None:
    """Symptom: a second run with newer errors returned at once, as if it had ended."""
    facts = [
        Stage(EndToEnd(), sampling=sampling).numerics(EndToEnd())
        for sampling in (
            *(Attentive(ERRORS), Attentive(ERRORS), Attentive({**ERRORS, "student@0": 2.0})),
            *(Bucketed(costs={"student@0": 2.0}), Bucketed(costs={"student@0": 3.0}), Bucketed()),
        )
    ]
    assert facts[0] == facts[1] != facts[2]
    assert facts[3] != facts[4] != facts[5]
