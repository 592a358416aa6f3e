"""``fxelastic train``: data, stages, output, going on after an interruption."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxelastic
from fxelastic.cli import main
from tests import warm

DATA = """
import torch

x = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
y = torch.arange(12) % 5
train = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)]
validation = train[:1]


def both():
    return {"train": train, "validation": validation}


def pair():
    return train, validation


def three():
    return train, validation, None


def unlabelled():
    return [batch for batch, _ in train]


def broken():
    raise RuntimeError("no disk")


def loss(output, target):
    return ((output - target[:, None]) ** 2).mean()
"""

SMALL = ["--gamma", "0.6", "--kinds", "merged", "--example-input", "1x3x16x16"]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def data(folder: Path) -> Path:
    (folder / "data.py").write_text(DATA)
    generator = np.random.default_rng(0)
    np.savez(
        folder / "images.npz",
        x=generator.normal(size=(13, 3, 16, 16)).astype(np.float32),
        y=np.arange(13) % 5,
        val_x=generator.normal(size=(4, 3, 16, 16)).astype(np.float32),
        val_y=np.arange(4) % 5,
    )
    return folder


def train(*argv: str, epochs: tuple[int, int] = (1, 1)) -> int:
    n_distill, n_tune = map(str, epochs)
    return main(
        ["train", "model.py:build", "--out", "out", "--distill-epochs", n_distill,
         "--tune-epochs", n_tune, "--batch-size", "4", *SMALL, *argv]
    )  # fmt: skip


def test_trains_both_stages_from_a_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--data", "images.npz", "--quiet") == 0
    out, err = capsys.readouterr()
    assert "distill: 3 steps" in out
    assert "tune: 3 steps" in out
    assert "mean scores from the cheapest range" in out
    assert f"wrote {Path('out') / 'supernet.safetensors'}" in out
    assert "printed on import" in err
    names = sorted(path.name for path in (data / "out").iterdir())
    assert names == ["checkpoints", "data.sha256", "log.jsonl", "supernet.safetensors"]
    events = [json.loads(line) for line in (data / "out" / "log.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in events if e["event"] == "epoch"] == ["distill", "tune"]


@pytest.mark.parametrize(("option", "expected"), [((), [1]), (("--threads", "2"), [2])])
def test_threads_are_those_that_the_option_names(
    data: Path, option: tuple[str, ...], expected: list[int]
) -> None:
    (data / "loss.py").write_text(
        "import torch\n"
        "def noted(result, target):\n"
        "    with open('threads', 'a') as file:\n"
        "        print(torch.get_num_threads(), file=file)\n"
        "    return torch.nn.functional.cross_entropy(result, target)\n"
    )
    argv = ("--data", "images.npz", "--quiet", "--loss", "loss.py:noted", *option)
    assert train(*argv, epochs=(0, 1)) == 0
    found = [int(line) for line in (data / "threads").read_text().splitlines()]
    assert sorted(set(found)) == expected
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_number_of_threads_below_1_is_refused(
    data: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--data", "images.npz", "--quiet", "--threads", number) == 2
    assert f"--threads: must be at least 1, got {number}" in capsys.readouterr().err


def test_what_was_trained_can_be_loaded(data: Path) -> None:
    assert train("--data", "data.py:both", "--quiet", epochs=(0, 2)) == 0
    sys.path.insert(0, str(data))
    try:
        torch.manual_seed(0)
        import model as models
    finally:
        sys.path.remove(str(data))
    supernet = fxelastic.expand(
        models.build(), 0.6, kinds=("merged",), example_inputs=torch.zeros(1, 3, 16, 16)
    )
    before = [p.clone() for p in supernet.parameters() if p.requires_grad]
    try:
        supernet.load(data / "out" / "supernet.safetensors")
    finally:
        sys.modules.pop("model", None)
    after = [p for p in supernet.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_export_takes_the_inputs_that_the_weights_are_for(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training has the shapes of its data, and an export alone would guess others."""
    small = SMALL[:-2]
    argv = ["--data", "images.npz", "--tune-epochs", "0", "--distill-epochs", "1", "--quiet"]
    assert main(["train", "model.py:build", "--out", "out", *small, *argv]) == 0
    weights = "--supernet-weights=out/supernet.safetensors"
    assert main(["export", "model.py:build", "bundle", *small, weights, "--no-verify"]) == 0
    assert "input as the trained branches need it: x=1x3x16x16" in capsys.readouterr().err
    other = [*small, "--example-input", "1x3x24x24"]
    assert main(["export", "model.py:build", "other", *other, weights, "--no-verify"]) == 2
    assert "instead of x=1x3x24x24" in capsys.readouterr().err


def test_the_same_command_goes_on(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An instance has the same weights in both runs, which a run's checkpoints insist on.
    argv = ["train", "model.py:instance", "--out", "out", "--data", "data.py:pair", *SMALL]
    argv += ["--distill-epochs", "1", "--tune-epochs", "1", "--json", "--quiet"]
    script = f"import torch; torch.manual_seed(0); from fxelastic.cli import main; main({argv})"
    (data / "run.py").write_text(script)
    reports = []
    for _ in range(2):
        found = warm.run(str(data / "run.py"), cwd=data)
        assert found.returncode == 0, found.stderr
        reports.append(json.loads(found.stdout))
    first, second = reports
    assert first["schema"] == "fxelastic.train/1"
    assert [stage["resumed_at"] for stage in first["stages"]] == [0, 0]
    assert [stage["resumed_at"] for stage in second["stages"]] == [3, 3]
    for a, b in zip(first["stages"], second["stages"], strict=True):
        assert a["coverage"] == b["coverage"]
        assert a["epochs"] == b["epochs"]


def test_a_run_keeps_to_its_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--data", "images.npz", "--quiet")
    assert train(*command, epochs=(1, 0)) == 0
    weights = (data / "out" / "supernet.safetensors").read_bytes()
    arrays = dict(np.load(data / "images.npz"))
    np.savez(data / "images.npz", **{**arrays, "y": arrays["y"][::-1]})
    capsys.readouterr()
    assert train(*command, epochs=(1, 0)) == 2
    assert "started with other data" in capsys.readouterr().err
    assert (data / "out" / "supernet.safetensors").read_bytes() == weights


def test_options_reach_the_stages(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    for stage in ("distill", "tune"):
        real = getattr(fxelastic, stage)

        def spy(*args: Any, _real: Any = real, **options: Any) -> Any:
            calls.append(options)
            return _real(*args, **options)

        monkeypatch.setattr(fxelastic, stage, spy)
    argv = ["--data", "data.py:train", "--mode", "chained", "--sampling", "sandwich"]
    argv += ["--soft", "0.25", "--distill-lr", "0.002", "--tune-lr", "0.001", "--seed", "3"]
    argv += ["--accumulate", "2", "--precision", "bf16", "--checkpoint-every", "1"]
    assert train(*argv, "--loss", "data.py:loss", "--json", "--quiet") == 0
    distilling, tuning = calls
    assert distilling["mode"] == "chained"
    assert (distilling["lr"], tuning["lr"]) == (0.002, 0.001)
    assert type(tuning["sampling"]).__name__ == "Sandwich"
    assert tuning["soft"] == 0.25
    assert tuning["loss"].__name__ == "loss"
    for options in calls:
        assert options["accumulate"] == 2
        assert options["precision"] == "bf16"
        assert options["seed"] == 3
        assert options["checkpoint_every"] == 1
    report = json.loads(capsys.readouterr().out)
    assert [stage["steps"] for stage in report["stages"]] == [2, 2]


def test_attentive_sampling_takes_the_errors_of_the_distillation(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data", "data.py:train", "--sampling", "attentive", "--quiet"]
    assert train(*argv, "--distill-epochs", "0") == 2
    assert "at least one epoch of distillation" in capsys.readouterr().err
    assert train(*argv) == 0
    assert "tune: 3 steps" in capsys.readouterr().out


def test_labels_are_not_needed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--data", "data.py:unlabelled", "--quiet") == 0
    assert "tune: 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--data", "nothing.npz"], "can't be read"),
        (["--data", "model.py:absent"], "has no 'absent'"),
        (["--data", "data.py:broken"], "RuntimeError: no disk"),
        (["--data", "data.py:three"], "a tuple of 3"),
        (["--data", "text.npz"], "can't be read"),
        (["--data", "uneven.npz"], "different lengths"),
        (["--data", "empty.npz"], "no arrays to train on"),
        (["--data", "images.npz", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (
            ["--data", "images.npz", "--tune-epochs", "-1"],
            "--tune-epochs: must be at least 0, got -1",
        ),
        (["--data", "images.npz", "--device", "toaster"], "--device toaster can't be used"),
        (["--data", "none.npz"], "has no samples"),
        (["--data", "images.npz", "--out", "model.py"], "--out model.py is a file"),
        (["--data", "images.npz", "--distributed"], "found no other processes"),
    ],
)
def test_bad_arguments_are_usage_errors(
    data: Path,
    argv: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    (data / "text.npz").write_text("no arrays")
    np.savez(data / "uneven.npz", x=np.zeros((3, 1)), y=np.zeros(2))
    np.savez(data / "none.npz", x=np.zeros((0, 1)))
    np.savez(data / "empty.npz", val_x=np.zeros((3, 1)))
    assert train(*argv, "--quiet") == 2
    assert expected in capsys.readouterr().err


def test_two_processes_train_together(data: Path) -> None:
    argv = ["train", "model.py:build", "--out", "out", "--data", "images.npz", "--distributed"]
    argv += ["--distill-epochs", "1", "--tune-epochs", "1", "--batch-size", "3", "--quiet"]
    first, other = warm.run_together(2, "fxelastic.cli", *argv, "--json", *SMALL, cwd=data)
    for done in (first, other):
        assert done.returncode == 0, done.stderr
    assert not other.stdout
    report = json.loads(first.stdout)
    assert [stage["steps"] for stage in report["stages"]] == [2, 2]
    assert os.listdir(data / "out" / "checkpoints")


STAGED = ["train", "model.py:build", "--data", "images.npz", "--out", "out", "--gamma", "0.6",
          "--example-input", "1x3x16x16", "--batch-size", "4", "--stage-epochs", "2"]  # fmt: skip


def test_stages_train_the_model_and_its_weights_can_be_used(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*STAGED, "--stages", "auto", "--until", "0", "--json", "--quiet"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    stages = [stage["stage"] for stage in report["stages"]]
    assert stages == [f"stage-{i + 1}" for i in range(len(stages))]
    assert len(stages) >= 2
    assert all(len(stage["epochs"]) == 1 for stage in report["stages"])
    # The same command finds that all is done.
    assert main([*argv[:-2]]) == 0
    out = capsys.readouterr().out
    assert "resumed at step 3" in out
    for name in ("model", "supernet"):
        assert f"wrote {Path('out') / f'{name}.safetensors'}" in out
    # What was trained is what another command loads.
    weights = ["--weights", "out/model.safetensors"]
    exits = ["--kind", "exit", "--supernet-weights", "out/supernet.safetensors"]
    again = ["--out", "again", "--distill-epochs", "0", "--tune-epochs", "0", "--quiet"]
    assert main([*STAGED[:4], *again, *STAGED[6:10], *weights, *exits]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kinds", "merged"), "--kinds has no meaning with --stages"),
        (("--until", "high"), "--until"),
    ],
)
def test_stages_take_no_other_branches(
    data: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    try:
        code = main([*STAGED, "--stages", "auto", *options])
    except SystemExit as e:
        code = int(str(e.code))
    assert code == 2
    assert message in capsys.readouterr().err
