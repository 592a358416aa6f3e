"""Branches are compared with the original on the original's own features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fxelastic.edge.searching import distortion
from fxelastic.edge.searching.distortion import measure
from fxelastic.edge.searching.surrogates import Prior
from fxelastic.errors import BundleError
from fxelastic.spec import SearchSpace
from tests.edge.fake_executor import FakeExecutor, dataset
from tests.spec.spaces import chain

SPACE = chain(4)
DATA = dataset(60)


class Shifted(FakeExecutor):
    """Originals pass the values on; each other branch adds a known multiple of the spread."""

    def __init__(self, space: SearchSpace, broken: str = "", everywhere: bool = False) -> None:
        super().__init__(space)
        self.most_states = 0
        self._broken, self._everywhere = broken, everywhere

    def shift(self, branch: str) -> float:
        new = [spec.id for spec in self.bundle.space.branches if spec.kind != "original"]
        return 0.1 * (1 + new.index(branch)) if branch in new else 0.0

    def advance(self, branch: str, state: Mapping[str, Any]) -> dict[str, Any]:
        value = state["v"] + self.shift(branch) * DATA.inputs["x"].std() * np.sign(state["v"])
        if branch == self._broken or self._everywhere:
            value = np.where(np.arange(value.size).reshape(value.shape) == 7, np.nan, value)
        return {"v": value}


def test_errors_are_relative_to_the_features() -> None:
    runner = Shifted(SPACE)
    found = measure(runner, DATA, batch_size=60)
    assert found.branches == tuple(s.id for s in SPACE.branches if s.kind != "original")
    wanted = [runner.shift(branch) ** 2 for branch in found.branches]
    assert found.errors == pytest.approx(wanted, rel=0.01)


def test_branches_that_err_alike_are_told_from_those_that_do_not() -> None:
    found = measure(Shifted(SPACE), DATA, batch_size=20)
    roots = np.sqrt(found.errors)
    assert found.products == pytest.approx(np.outer(roots, roots), rel=0.01)
    other = measure(FakeExecutor(SPACE), DATA, batch_size=20)
    roots = np.sqrt(other.errors)
    alike = (other.products / np.outer(roots, roots))[~np.eye(len(roots), dtype=bool)]
    assert np.abs(alike).max() < 0.9
    assert np.linalg.eigvalsh(other.products).min() > -1e-9


def test_some_samples_are_enough() -> None:
    class Counting(FakeExecutor):
        samples = 0

        def start(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            self.samples += len(inputs["x"])
            return super().start(inputs)

    runner = Counting(SPACE)
    measure(runner, DATA, batch_size=20, n_samples=30)
    assert runner.samples == 40


def test_large_features_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = measure(FakeExecutor(SPACE, width=6), DATA, batch_size=60)
    n_new = len(exact.branches)
    monkeypatch.setattr(distortion, "_NUMBERS", 3 * n_new * 60)
    sampled = measure(FakeExecutor(SPACE, width=6), DATA, batch_size=60)
    assert not np.array_equal(sampled.errors, exact.errors)
    assert np.corrcoef(sampled.errors, exact.errors)[0, 1] > 0.5
    again = measure(FakeExecutor(SPACE, width=6), DATA, batch_size=60)
    assert np.array_equal(again.errors, sampled.errors)


def test_nan_of_a_branch_is_an_error() -> None:
    with pytest.raises(BundleError, match=r"'merged@1-3' returns NaN"):
        measure(Shifted(SPACE, broken="merged@1-3"), DATA, batch_size=20)


def test_nan_of_the_original_is_not() -> None:
    found = measure(Shifted(SPACE, everywhere=True), DATA, batch_size=60)
    assert np.isfinite(found.errors).all()


class Given(FakeExecutor):
    """Every branch gives the same features, and those that are new the negated ones, or zeros."""

    def __init__(self, value: np.ndarray[Any, Any], second: Any = None) -> None:
        super().__init__(SPACE)
        self._value, self._second = value, second

    def start(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"v": None}

    def advance(self, branch: str, state: Mapping[str, Any]) -> dict[str, Any]:
        new = not branch.startswith("original")
        value = -self._value if new and self._value.dtype.kind == "f" else self._value.copy()
        return {"v": value} if self._second is None else {"v": value, "w": self._second.copy()}


NORMAL = np.random.default_rng(0).standard_normal((20, 50))
FILLED = np.where(np.arange(50) < 5, -1e9, NORMAL).astype(np.float32)
LEAST = np.where(np.arange(50) < 5, np.finfo(np.float32).min, NORMAL).astype(np.float32)


@pytest.mark.parametrize(
    "value",
    [(400 * NORMAL).astype(np.float16), FILLED, LEAST, np.full((20, 50), 0.1, np.float32)],
    ids=["half", "filled", "least", "constant"],
)
def test_scales_are_of_the_features_that_tell(value: np.ndarray[Any, Any]) -> None:
    """The negated features have 4 times the variance; fills and rounding do not count."""
    found = measure(Given(value), DATA, batch_size=20)
    assert found.errors == pytest.approx(4.0, rel=0.1)
    assert not found.unknown.any()


@pytest.mark.parametrize(
    "value", [np.arange(40).reshape(20, 2), np.zeros((20, 0), np.float32), np.full((20, 3), np.inf)]
)
def test_what_can_not_be_compared_is_unknown(value: np.ndarray[Any, Any]) -> None:
    found = measure(Given(value), DATA, batch_size=20)
    assert found.unknown.all()
    assert (found.errors > 0).all()


def test_batch_sizes_may_be_folded_into_others() -> None:
    folded = np.random.default_rng(1).standard_normal((64 * 20, 50))
    found = measure(Given(NORMAL, folded), DATA, batch_size=20)
    assert set(found.groups.tolist()) == {0}
    assert found.errors.max() < 4.0


def test_it_ends_when_told_to() -> None:
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 4

    found = measure(FakeExecutor(SPACE), DATA, batch_size=20, stop=stop)
    assert found.unknown.tolist() == [False] * 3 + [True] * (len(found.branches) - 3)
    assert found.errors[3] == pytest.approx(np.median(found.errors[:3]))


def test_wherever_it_ends_a_prior_follows() -> None:
    """Also amid a batch: branches that were run on more samples than others have no products."""
    for n in range(1, 80):
        asked = iter(range(n))
        found = measure(
            FakeExecutor(SPACE), DATA, batch_size=1, stop=lambda a=asked: next(a, None) is None
        )
        known = found.products[np.ix_(~found.unknown, ~found.unknown)]
        assert not known.size or np.linalg.eigvalsh(known).min() > -1e-6
        assert np.isfinite(Prior(found).root(0.2, 40.0)).all()


def test_a_space_without_new_branches() -> None:
    originals = tuple(spec for spec in SPACE.branches if spec.kind == "original")
    found = measure(FakeExecutor(SearchSpace(4, originals)), DATA, batch_size=20)
    assert found.branches == ()
    assert found.errors.shape == (0,)
    assert found.products.shape == (0, 0)
