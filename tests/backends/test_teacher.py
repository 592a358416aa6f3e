"""Files of models in which data choose how many rows a part gets hold for none, one, and many."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, edge
from fxelastic.backends.onnxruntime.teacher import (
    inputs_with_rows,
    teacher_values,
    without_special_sizes,
)
from fxelastic.edge.assembling import assemble
from fxelastic.edge.executor import Executor
from fxelastic.errors import ExportError
from fxelastic.ir.values import data_dims
from tests.routed_models import MODELS, WIDTH, build, routed

#: Random inputs with the example's mean and spread send hardly any row to the part.
SHIFT = 4 * torch.eye(WIDTH)[0]


class Rare(nn.Module):
    """A model whose router sends few rows to a part unless inputs are like the example."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x - SHIFT)


@cache
def supernet(name: str) -> Supernet:
    model = Rare(build(name)).eval()
    return fxelastic.expand(model, 0.6, example_inputs=routed(3) + SHIFT, kinds=["pruned", "skip"])


@cache
def bundle(name: str) -> edge.Bundle:
    folder = tempfile.mkdtemp(prefix="fxelastic-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return fxelastic.export(supernet(name), Path(folder) / "bundle", n_subnets=1)


@pytest.mark.parametrize("name", MODELS)
def test_files_hold_for_no_row_one_row_and_many(name: str, tmp_path: Path) -> None:
    made = supernet(name)
    archs = dict.fromkeys((made.space.original, *made.space.sample(2, 0)))
    with Executor(bundle(name)) as executor:
        for arch in archs:
            path = assemble(bundle(name), arch, tmp_path / "subnet.onnx")
            whole = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for n_rows, n_samples in ((0, 6), (1, 6), (5, 6), (0, 1), (1, 1)):
                x = routed(n_rows, n_samples) + SHIFT
                expected = made(x, arch=arch)
                expected = expected if isinstance(expected, tuple) else (expected,)
                paged = executor.run(arch, {"x": x.numpy()})
                for found in (paged, whole.run(None, {"x": x.numpy()})):
                    for array, tensor in zip(found, expected, strict=True):
                        assert array.shape == tuple(tensor.shape)
                        np.testing.assert_allclose(array, tensor.detach().numpy(), 1e-4, 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_drawn_that_send_rows_to_every_part(name: str) -> None:
    partition = supernet(name).partition
    inputs = inputs_with_rows(partition, 6, seed=3)
    assert inputs["x"].shape == (6, WIDTH)
    assert torch.equal(inputs["x"], inputs_with_rows(partition, 6, seed=3)["x"])
    values = teacher_values(supernet(name), inputs)
    for node in partition.graph.nodes:
        for dim in data_dims(node.meta.get("val")) if node.name in values else ():
            # No sample of Filtered's example is of its second class.
            assert values[node.name].shape[dim] >= 2


def test_sizes_of_none_and_one_are_replaced_and_stay_in_proportion() -> None:
    made = fxelastic.expand(build("top_one"), 0.3, example_inputs=routed(3), kinds=())
    partition = made.partition
    for n_rows in (0, 1, 5, 6):
        values = teacher_values(made, {"x": routed(n_rows)})
        found = without_special_sizes(partition, values)
        sizes: dict[str, set[int]] = {}
        for node in partition.graph.nodes:
            if node.name in found:
                dims = data_dims(node.meta["val"])
                for dim, size in enumerate(found[node.name].shape):
                    expected = values[node.name].shape[dim]
                    assert size == expected or (dim in dims and expected < 2)
                    if dim in dims:
                        sizes.setdefault(str(node.meta["val"].shape[dim]), set()).add(size)
        assert all(len(same) == 1 and min(same) >= 2 for same in sizes.values())
        assert len(set(map(min, sizes.values()))) == len(sizes) == 2


class Unreached(nn.Module):
    """A part that no row of any likely input reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        rows = torch.where(x[:, 0] > 1e9)[0]
        return self.head(x.index_add(0, rows, self.part(x[rows])))


def test_branches_that_no_row_reaches_are_converted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = fxelastic.expand(Unreached().eval(), 0.6, example_inputs=routed(3))
    with caplog.at_level(logging.WARNING):
        exported = fxelastic.export(made, tmp_path / "bundle")
    (text,) = [r.getMessage() for r in caplog.records if "not compared" in r.getMessage()]
    assert all(f"original@{i}" in text for i in (1, 2))
    x = routed(3)
    x[:2, 0] = 2e9
    with Executor(exported) as executor:
        for arch in (made.space.original, *made.space.sample(2, 0)):
            found = executor.run(arch, {"x": x.numpy()})[0]
            np.testing.assert_allclose(found, made(x, arch=arch).detach().numpy(), 1e-3)


def test_the_seed_reaches_what_draws_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxelastic.backends.onnxruntime import export, teacher

    seen: list[int] = []
    make = teacher.make_inputs

    def make_inputs(partition: Any, n_samples: int, seed: int, **options: Any) -> dict[str, Any]:
        seen.append(seed)
        return make(partition, n_samples, seed, **options)

    for module in (teacher, export):
        monkeypatch.setattr(module, "make_inputs", make_inputs)
    made = fxelastic.expand(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), example_inputs=routed(3))
    fxelastic.export(made, tmp_path / "bundle", seed=40)
    assert seen
    assert min(seen) >= 40


def test_a_file_that_ignores_rows_is_still_reported(tmp_path: Path) -> None:
    from fxelastic.backends.onnxruntime.parity import Parity

    made = supernet("filtered")
    paths = {
        s.id: bundle("filtered").model_path(s.id) for s in bundle("filtered").manifest.segments
    }
    linear = next(b for b in made.branches.values() if b.kind == "pruned" and b.outputs)
    wrong = dict(paths)
    wrong[linear.id] = paths[made.space.original.branches[linear.start]]
    sample = teacher_values(made, inputs_with_rows(made.partition, 6, 0))
    with pytest.raises(ExportError, match="compute other results"):
        Parity(made, [sample]).check_files(wrong)


def test_a_part_that_no_sample_of_a_small_batch_reaches_is_compared_in_a_larger_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = fxelastic.expand(build("top_one"), 0.6, example_inputs=routed(1, 1), kinds=())
    with caplog.at_level(logging.WARNING):
        exported = fxelastic.export(made, tmp_path / "bundle", n_subnets=0)
    assert exported.manifest.verification is not None
    assert exported.manifest.verification.batch_sizes == (1, 2, 8)
    assert "not compared" not in caplog.text
