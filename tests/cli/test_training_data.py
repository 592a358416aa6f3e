from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fxelastic.cli.training_data import load_data
from fxelastic.errors import UsageError


def _loaders(path: Path, **arrays: int) -> tuple[object, object]:
    """The inputs' names and the target's values of the first batches of both loaders."""
    np.savez(path, **{name: np.full((2, 3), value) for name, value in arrays.items()})
    found = []
    for loader in load_data(str(path), 2, distributed=False)(()):
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
