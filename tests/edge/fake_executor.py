"""An executor without files: each branch is a fixed function of numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from fxelastic.edge.searching.data import Dataset
from fxelastic.spec import Arch, SearchSpace

N_CLASSES = 4


class FakeExecutor:
    """Branches mix the values in an order that matters; some subnets classify better."""

    def __init__(self, space: SearchSpace, width: int = 6) -> None:
        self.bundle = SimpleNamespace(
            space=space,
            manifest=SimpleNamespace(model=SimpleNamespace(dynamic_batch=True, batch_size=1)),
        )
        self._width = width
        self.executed = 0
        self.n_loaded = 0

    def make_room(self, n_bytes: int) -> None:
        assert n_bytes >= 0

    def start(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"v": np.asarray(inputs["x"], np.float64)}

    def advance(self, branch: str, state: Mapping[str, Any]) -> dict[str, Any]:
        self.executed += 1
        weight = _weight(branch, self._width)
        return {"v": np.tanh(state["v"] @ weight + 0.1)}

    def results(self, state: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
        return [state["v"][:, :N_CLASSES]]

    def run(self, arch: Arch, inputs: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
        state = self.start(inputs)
        for branch in arch:
            state = self.advance(branch, state)
        return self.results(state)


class AdditiveExecutor(FakeExecutor):
    """Each branch takes something off the score; neighbours that are both new take more."""

    def start(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"v": np.zeros((len(inputs["x"]), 1)), "new": np.zeros(1)}

    def advance(self, branch: str, state: Mapping[str, Any]) -> dict[str, Any]:
        self.executed += 1
        new = np.full(1, not branch.startswith("original"), float)
        drop = new * abs(_weight(branch, 1)[0]) * (1 + 0.5 * state["new"])
        return {"v": state["v"] - drop, "new": new}

    def results(self, state: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
        return [state["v"]]


def dataset(n: int, width: int = 6, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    return Dataset(
        {"x": random.standard_normal((n, width))}, random.integers(0, N_CLASSES, n, dtype=np.int64)
    )


def _weight(branch: str, width: int) -> np.ndarray[Any, Any]:
    seed = int.from_bytes(hashlib.sha256(branch.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal((width, width))
