"""Supernets on a GPU; left out where there is none.

`tests/branches/test_new_branches.py` shows without one that every branch computes there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fxelastic
from fxelastic import Supernet, edge
from fxelastic.train import Sandwich
from tests.branches.expanded import NAMES, Expanded, shared
from tests.models import CASES
from tests.models.compare import assert_same_output, tensors
from tests.train.killed_runs import Stop
from tests.train.supernets import conv_supernet, image_batches, moved, weights

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

STAGES = ("teacher_forced", "chained", "tune")


def to(value: Any, device: str) -> Any:
    return pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, value)


def train(supernet: Supernet, stage: str, **options: Any) -> Any:
    if stage == "tune":
        return fxelastic.tune(supernet, image_batches(), soft=0.5, sampling=Sandwich(1), **options)
    return fxelastic.distill(supernet, image_batches(), mode=stage, **options)


@pytest.fixture(autouse=True, scope="module")
def _full_precision() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Expanded:
    return shared(request.param)


def test_a_supernet_that_was_moved_computes_the_same(case: Expanded) -> None:
    supernet, args = case.supernet, case.case.inputs(2)
    archs = [supernet.space.original, *supernet.space.sample(3, seed=0)]
    with torch.no_grad():
        expected = [supernet(*args[0], arch=arch, **args[1]) for arch in archs]
        supernet.to("cuda")
        for arch, wanted in zip(archs, expected, strict=True):
            args = to(case.case.inputs(2), "cuda")
            found = supernet(*args[0], arch=arch, **args[1])
            for a, b in zip(tensors(found), tensors(wanted), strict=True):
                assert a.device.type == "cuda"
                torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3, equal_nan=True)
        supernet.to("cpu")
        args = case.case.inputs(2)
        assert_same_output(supernet(*args[0], **args[1]), expected[0])


@pytest.mark.parametrize("name", ["resnet18", "gpt2", "t5", "lstm_classifier", "bag_of_words"])
def test_a_model_on_the_gpu_is_expanded_and_exported_there(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, (args, kwargs) = case.build().to("cuda"), to(case.inputs(2), "cuda")
    supernet = fxelastic.expand(model, 0.25, example_inputs=(args, kwargs))
    assert {p.device.type for p in supernet.parameters()} == {"cuda"}
    with torch.no_grad():
        assert_same_output(supernet(*args, **kwargs), model(*args, **kwargs))
    fxelastic.export(supernet, tmp_path / "bundle")
    bundle = edge.load(tmp_path / "bundle")
    assert len(bundle.space.branches) == len(supernet.branches)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_stages_train_what_is_new(stage: str, precision: str) -> None:
    supernet = conv_supernet(dropout=0.2).to("cuda")
    before = weights(supernet)
    history = train(supernet, stage, epochs=4, precision=precision, lr=0.02)
    assert history.epochs[-1].loss < history.epochs[0].loss
    changed = moved(before, supernet)
    assert changed
    assert not any(supernet.branches[name].frozen for name in changed)
    assert {p.device.type for p in supernet.parameters()} == {"cuda"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_goes_on_from_its_checkpoint(stage: str, tmp_path: Path) -> None:
    """Also on the other device: weights, moments and the generators' states are put back."""
    options: dict[str, Any] = {"epochs": 3, "checkpoints": tmp_path, "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train(conv_supernet(dropout=0.2).to("cuda"), stage, callbacks=[Stop(6)], **options)
    supernet = conv_supernet(dropout=0.2).to("cpu")
    history = train(supernet, stage, **options)
    assert history.resumed_at == 5
    assert history.steps == 12


def test_weights_go_from_device_to_device(tmp_path: Path) -> None:
    supernet = conv_supernet().to("cuda")
    train(supernet, "tune", epochs=2)
    supernet.save(tmp_path / "weights.safetensors")
    other = conv_supernet().load(tmp_path / "weights.safetensors")
    assert_same_output(weights(other), to(weights(supernet), "cpu"))
    archs = supernet.space.sample(5, seed=0)
    scores = [fxelastic.evaluate(net, archs, image_batches()) for net in (supernet, other)]
    for arch in archs:
        assert scores[0][arch] == pytest.approx(scores[1][arch], abs=0.1)
