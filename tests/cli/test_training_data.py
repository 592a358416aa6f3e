from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic.cli.training_data import load_data
from fxelastic.edge.searching.columns import SampleShapes
from fxelastic.errors import UsageError


def _loaders(path: Path, **arrays: int) -> tuple[object, object]:
    """The inputs' names and the target's values of the first batches of both loaders."""
    np.savez(path, **{name: np.full((2, 3), value) for name, value in arrays.items()})
    found = []
    for loader in load_data(str(path), 2, distributed=False)(SampleShapes()):
        if loader is None:
            found.append(None)
            continue
        inputs, target = next(iter(loader))
        names = sorted(inputs) if isinstance(inputs, dict) else "x"
        found.append((names, None if target is None else int(target[0, 0])))
    return found[0], found[1]


def test_an_input_may_be_called_as_the_targets_are(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert _loaders(path, x=1, y=2) == (("x", 2), None)
    assert _loaders(path, x=1, y=2, targets=3) == ((["x", "y"], 3), None)
    assert _loaders(path, x=1, val_x=4, y=2, val_y=5) == (("x", 2), ("x", 5))


def test_an_input_may_begin_as_the_validations_arrays_do(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    assert _loaders(path, x=1, val_len=2, y=3) == ((["val_len", "x"], 3), None)
    both = _loaders(path, x=1, val_len=2, y=3, val_x=4, val_val_len=5, val_y=6)
    assert both == ((["val_len", "x"], 3), (["val_len", "x"], 6))


def test_validation_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no arrays to train on"):
        _loaders(tmp_path / "data.npz", val_x=1, val_y=2)


def test_samples_are_in_the_dimension_in_which_the_model_takes_them(tmp_path: Path) -> None:
    x, classes = np.arange(24.0).reshape(2, 4, 3), np.arange(8).reshape(2, 4)
    np.savez(tmp_path / "data.npz", x=x, table=np.zeros(5), targets=classes)
    loaders = load_data(str(tmp_path / "data.npz"), 3, distributed=False)
    train, _ = loaders(SampleShapes(dims={"x": 1, "table": None}, result_dim=1))
    inputs, targets = next(iter(train))
    assert inputs["x"].shape == (2, 3, 3)
    assert inputs["table"].shape == (5,)
    assert targets.shape == (2, 3)
    assert inputs["x"][:, 0, 0].tolist() == [x[0, targets[0, 0], 0], x[1, targets[0, 0], 0]]
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(4))
    (inputs, targets), *_ = loaders_of(tmp_path, {"seq": 1}, 1)
    assert (inputs.shape, targets.shape) == ((2, 3, 3), (3,))


def loaders_of(folder: Path, dims: dict[str, int | None], result_dim: int) -> list[Any]:
    shapes = SampleShapes(dims=dims, result_dim=result_dim)
    return list(load_data(str(folder / "data.npz"), 3, distributed=False)(shapes)[0])


def test_a_process_with_less_than_a_batch_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: no batch in any process where all samples are more than a batch."""
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.is_available", lambda: True)
    np.savez(tmp_path / "data.npz", x=np.zeros((10, 3)), y=np.arange(10))
    (train, _) = load_data(str(tmp_path / "data.npz"), 8, distributed=True)(SampleShapes())
    assert [len(targets) for _, targets in train] == [5]
