"""Subnets run branch after branch give what ONNX's reference implementation gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.errors import BundleError, UsageError
from tests.edge.serving.tiny_bundle import reference, write_bundle

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_bundle(tmp_path_factory.mktemp("execution") / "bundle")


def image(n: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": RNG.standard_normal((n, 8, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("n", [1, 3])
def test_every_subnet_gives_what_the_reference_gives(bundle: edge.Bundle, n: int) -> None:
    with edge.Executor(bundle) as executor:
        for arch in (bundle.space.original, *bundle.space.sample(6, seed=1)):
            inputs = image(n)
            (found,) = executor.run(arch, inputs)
            np.testing.assert_allclose(found, reference(bundle, arch, inputs), rtol=1e-4, atol=1e-4)


def test_values_of_a_prefix_serve_several_subnets(bundle: edge.Bundle) -> None:
    inputs = image()
    with edge.Executor(bundle) as executor:
        state = executor.advance("original@0", executor.start(inputs))
        kept = {name: value.numpy().copy() for name, value in state.items()}
        for kind in ("original", "pruned50"):
            after = state
            for branch in (f"{kind}@1", "original@2", "original@3", "original@4"):
                after = executor.advance(branch, after)
            if kind == "original":
                np.testing.assert_array_equal(
                    executor.results(after)[0], executor.run(bundle.space.original, inputs)[0]
                )
        assert {name: value.numpy().tolist() for name, value in state.items()} == {
            name: value.tolist() for name, value in kept.items()
        }


def test_sessions_keep_the_memory_allowed(bundle: edge.Bundle) -> None:
    sizes = [bundle.segment(spec.id).weight_bytes for spec in bundle.space.branches]
    limit = 2 * max(sizes)
    inputs = image()
    with edge.Executor(bundle, memory_bytes=limit) as bounded, edge.Executor(bundle) as free:
        for arch in bundle.space.sample(10, seed=2):
            np.testing.assert_array_equal(bounded.run(arch, inputs)[0], free.run(arch, inputs)[0])
            assert bounded.resident_bytes <= limit
        assert bounded.n_loaded > free.n_loaded
        free.close()
        assert free.resident_bytes == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "x"),
        ({"x": np.zeros((1, 8, 8, 8))}, "float32"),
        ({"x": np.zeros((1, 8, 8, 9), np.float32)}, r"\[N, 8, 8, 8\]"),
        ({"x": np.zeros((1, 8, 8, 8), np.float32), "y": np.zeros(1)}, "y"),
    ],
)
def test_wrong_inputs_are_refused(
    bundle: edge.Bundle, inputs: dict[str, Any], message: str
) -> None:
    with edge.Executor(bundle) as executor, pytest.raises(UsageError, match=message):
        executor.run(bundle.space.original, inputs)


@pytest.mark.parametrize(
    "options",
    [{"threads": -1}, {"memory_bytes": 0}, {"providers": ("NoProvider",)}, {"providers": ()}],
)
def test_wrong_options_are_refused(bundle: edge.Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        edge.Executor(bundle, **options)


@pytest.mark.parametrize("damage", ["remove", "truncate", "forge"])
def test_a_damaged_branch_is_named(bundle: edge.Bundle, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    file = copy / "branches" / "original@2.onnx"
    opened = edge.load(copy)
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file.write_bytes(bytes(file.stat().st_size))
    with edge.Executor(opened) as executor, pytest.raises(BundleError, match="original@2"):
        executor.run(opened.space.original, image())
