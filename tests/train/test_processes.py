"""Two processes with half of each batch do what one does with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import fxelastic
from fxelastic import UsageError
from tests import warm
from tests.cli.commands import ROOT
from tests.models.compare import assert_same_output
from tests.train.supernets import linear_supernet, moved, vector_batches
from tests.train.two_processes import stages, train


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes wrote to."""
    folder = tmp_path_factory.mktemp("two")
    for found in warm.run_together(2, "tests.train.two_processes", str(folder), cwd=ROOT):
        assert found.returncode == 0, found.stderr
    return folder


def read(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def test_half_batches_add_up(out: Path) -> None:
    two, whole = read(out / "weights-0.safetensors"), train(0, 1)
    assert two.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)
    supernet = linear_supernet()
    # All new branches learned, so that equality is not that of what nobody touched.
    assert moved(two, supernet) == {n for n, b in supernet.branches.items() if not b.frozen}


def test_half_batches_of_stages_add_up(out: Path) -> None:
    two, whole = read(out / "stages-0.safetensors"), stages(0, 1)
    assert two.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert len(list((out / "stages").glob("stage-*"))) >= 3
    assert not list((out / "stages").glob("*features*"))


def test_a_process_alone_with_half_batches_does_not(out: Path) -> None:
    half = [(x[::2], y[::2]) for x, y in vector_batches(4)]
    supernet = linear_supernet()
    fxelastic.distill(supernet, half, epochs=2)
    two = read(out / "weights-0.safetensors")
    name = "student@0/heads.0.layer.0.weight"
    own = supernet.branches["student@0"].module.get_parameter("heads.0.layer.0.weight")
    assert not torch.allclose(two[name], own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("what", ["weights", "statistics", "stages"])
def test_both_processes_end_with_the_same(out: Path, what: str) -> None:
    assert_same_output(read(out / f"{what}-0.safetensors"), read(out / f"{what}-1.safetensors"))


def test_a_nan_in_one_process_stops_both(out: Path) -> None:
    assert "at step 2" in (out / "error-0").read_text()
    assert "another process stopped" in (out / "error-0").read_text()
    assert "of input in batch 1 are NaN" in (out / "error-1").read_text()


def test_distributed_without_a_process_group_says_how() -> None:
    with pytest.raises(UsageError, match="there is no process group") as raised:
        fxelastic.tune(linear_supernet(), vector_batches(), distributed=True)
    assert "torchrun" in str(raised.value)
