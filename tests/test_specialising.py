"""A specialised subnet is a plain module that has learned as a whole."""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.ir import trees
from fxelastic.ir.branch import cut_cache
from fxelastic.spec import Arch
from fxelastic.train import Callback, History
from tests import decoders
from tests.models import case
from tests.train.supernets import conv_supernet, image_batches, weights


class Ended(Callback):
    """Keeps the history of a run."""

    def on_end(self, history: History | None) -> None:
        self.history = history


def unit(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


@functools.cache
def every_kind() -> Supernet:
    """A small network with a branch of every kind that fits it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        *(unit(16) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return fxelastic.expand(model.eval(), 0.35, example_inputs=x, kinds="all", calibration=[x])


def arch_with(supernet: Supernet, kind: str) -> Arch:
    """The subnet of the first branch of a kind and originals."""
    space = supernet.space
    spec = next(spec for spec in space.branches if spec.kind == kind)
    before = [b for b in space.original if space.by_id[b].stop <= spec.start]
    after = [b for b in space.original if space.by_id[b].start >= spec.stop]
    return Arch((*before, spec.id, *after))


def untrained(supernet: Supernet, arch: Arch, batch: Any) -> Any:
    """The specialised subnet after a step that changes nothing."""
    return fxelastic.specialise(
        supernet, arch, [batch], steps=1, lr=0.0, norm_statistics="frozen", keep_best=False
    )


KINDS = ("original", "merged", "pruned", "skip", "lowrank", "separable", "ghost", "dense", "exit")


@pytest.mark.parametrize("kind", KINDS)
def test_a_subnet_with_a_branch_of_any_kind_becomes_a_module(kind: str) -> None:
    supernet = every_kind()
    arch = arch_with(supernet, kind)
    x = torch.randn(3, 3, 8, 8)
    module = untrained(supernet, arch, x)
    torch.testing.assert_close(module(x), supernet(x, arch=arch))
    own = {t.untyped_storage().data_ptr() for t in module.state_dict().values() if t.numel()}
    others = {t.untyped_storage().data_ptr() for t in supernet.state_dict().values() if t.numel()}
    assert not own & others
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_there_are_branches_of_all_these_kinds() -> None:
    assert {spec.kind for spec in every_kind().space.branches} >= set(KINDS)


def decoder() -> tuple[Supernet, Arch, Any]:
    """A subnet with fewer heads in its caches."""
    supernet = decoders.supernet_of("llama")
    arch = next(a for a in supernet.space.sample(50, 0) if supernet.space.cache_of(a))
    return supernet, arch, decoders.inputs_of("llama", 2, 6, 4)


def model(name: str) -> tuple[Supernet, Arch, Any]:
    """The originals of a test model, whose copies keep what its parts share."""
    args, kwargs = case(name).inputs(2)
    supernet = fxelastic.expand(case(name).build(), 0.3, example_inputs=(args, kwargs), kinds=())
    return supernet, supernet.space.original, (args, kwargs)


class DictOfTwo(nn.Module):
    """Takes two inputs, one of them in a dict, and returns a dict without logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, input: Tensor, scale: Tensor | None = None, *, more: Any) -> Any:
        x = self.norm(self.first(input).relu())
        x = self.second(x + more["shift"])
        return {"box": x[:, :4], "rest": (x[:, 4:].tanh(), x.mean())}


def dict_of_two() -> tuple[Supernet, Arch, Any]:
    batch = (torch.randn(4, 6),), {"more": {"shift": torch.randn(4, 8)}}
    supernet = fxelastic.expand(DictOfTwo().eval(), 0.6, example_inputs=batch, kinds=("skip",))
    return supernet, supernet.space.original, batch


MODELS = ("shared_parameter", "routed", "gru_tagger")
AWKWARD = {
    "decoder": decoder,
    "dict_of_two": dict_of_two,
    **{name: functools.partial(model, name) for name in MODELS},
}


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_model_is_specialised_saved_captured_and_exported(name: str) -> None:
    supernet, arch, batch = AWKWARD[name]()
    given = batch if isinstance(batch, tuple) else ((), batch)
    module = untrained(supernet, arch, (given, None))
    args, kwargs = cut_caches(supernet, arch, *given)
    expected = supernet(*args, arch=arch, **kwargs)
    assert_close(module(*args, **kwargs), expected)

    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    assert_close(torch.load(saved, weights_only=False)(*args, **kwargs), expected)
    assert_close(torch.export.export(module, args, kwargs).module()(*args, **kwargs), expected)
    if name in MODELS:
        # The capture of the others shows as much.
        return
    found = fxelastic.partition(module, 0.5, (args, kwargs))
    assert found.signature.names == supernet.partition.signature.names
    assert found.batch_dims == supernet.partition.batch_dims
    assert_close(found(*args, **kwargs), expected)


def cut_caches(supernet: Supernet, arch: Arch, args: Any, kwargs: Any) -> Any:
    """A call with the caches that a subnet keeps."""
    signature, kept = supernet.partition.signature, supernet.space.cache_of(arch)
    if not kept:
        return args, kwargs
    leaves = signature.flatten_arguments(args, kwargs)
    parts = {part.past: part for part in kept}
    cut = [
        cut_cache(leaf, parts[name]) if name in parts else leaf
        for name, leaf in zip(signature.inputs, leaves, strict=True)
    ]
    return (), trees.unflatten(signature.arguments, cut)


def assert_close(found: Any, expected: Any) -> None:
    ours, tree = trees.flatten(found)
    theirs, like = trees.flatten(expected)
    assert trees.describe(tree) == trees.describe(like)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_training_a_subnet_changes_neither_the_supernet_nor_the_model() -> None:
    supernet = conv_supernet()
    before, state = weights(supernet), copy.deepcopy(supernet.partition.graph_module.state_dict())
    arch = supernet.space.sample(1, 1)[0]
    module = fxelastic.specialise(
        supernet, arch, image_batches(2), epochs=1, lr=0.1, keep_best=False
    )
    after = weights(supernet)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    graph = supernet.partition.graph_module.state_dict()
    assert all(torch.equal(graph[name], value) for name, value in state.items())
    x, _ = image_batches(1)[0]
    assert not torch.allclose(module(x), supernet(x, arch=arch))


@pytest.mark.parametrize(
    "options",
    [{}, {"soft": 1.0, "soft_loss": "alpha_divergence"}, {"soft": 0.0, "features": 0.0}],
    ids=["default", "without labels", "labels alone"],
)
def test_the_subnet_learns(options: dict[str, Any]) -> None:
    supernet, ended = conv_supernet(), Ended()
    batches = image_batches(4)
    arch = supernet.space.sample(1, 1)[0]
    validate = image_batches(2, seed=1)
    fxelastic.specialise(
        supernet,
        arch,
        batches,
        epochs=6,
        lr=0.02,
        validate=validate,
        held_out=batches,
        callbacks=(ended,),
        **options,
    )
    assert ended.history is not None
    assert ended.history.held_out is not None
    report = ended.history.held_out
    assert report.best["subnets"] < 0.99 * report.before["subnets"]
    # All of its branches learn, copies of the model's own blocks included.
    assert set(ended.history.coverage.values()) == {24}
    assert len(ended.history.coverage) == len(arch)
    # The one subnet is scored, not random ones that mix copies and originals.
    (bucket,) = ended.history.epochs[-1].ranges
    assert bucket.n == 1
    assert 0 <= (bucket.mean or 0) <= 1


def test_labels_are_not_needed() -> None:
    supernet = conv_supernet()
    arch, images = supernet.space.sample(1, 1)[0], [x for x, _ in image_batches(2)]
    labelled = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in images]
    options: dict[str, Any] = {"epochs": 1, "lr": 0.01, "soft": 1.0}
    alone = fxelastic.specialise(supernet, arch, images, **options)
    ignored = fxelastic.specialise(supernet, arch, labelled, **options)
    assert_close(alone(images[0]), ignored(images[0]))
    learned = fxelastic.specialise(supernet, arch, labelled, **{**options, "soft": 0.5})
    assert not torch.allclose(alone(images[0]), learned(images[0]))


def test_training_that_makes_the_subnet_worse_is_undone() -> None:
    supernet, arch = conv_supernet(), conv_supernet().space.sample(1, 1)[0]
    batches = image_batches(2)
    module = fxelastic.specialise(supernet, arch, batches, epochs=1, lr=50.0, features=0.0)
    torch.testing.assert_close(module(batches[0][0]), supernet(batches[0][0], arch=arch))


def test_checkpoints_of_a_subnet_with_other_weights_are_refused(tmp_path: Path) -> None:
    supernet = conv_supernet()
    arch = supernet.space.sample(1, 1)[0]
    options: dict[str, Any] = {"epochs": 1, "lr": 0.01, "checkpoints": tmp_path}
    first = fxelastic.specialise(supernet, arch, image_batches(2), **options)
    again = fxelastic.specialise(supernet, arch, image_batches(2), **options)
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in first.state_dict().items())
    with torch.no_grad():
        next(supernet.trainable_parameters(arch)).add_(1)
    with pytest.raises(fxelastic.TrainingError, match="specialise begins_with differs"):
        fxelastic.specialise(supernet, arch, image_batches(2), **options)


def test_subnets_that_cannot_be_specialised_are_refused() -> None:
    supernet = conv_supernet()
    original = str(supernet.space.original)
    quantised = "u8s8+" + original.replace(",", ",u8s8+")
    with pytest.raises(UsageError, match=f"8-bit branches(.|\n)*'{original}'"):
        fxelastic.specialise(supernet, quantised, [])
    with pytest.raises(UsageError, match="no branch"):
        fxelastic.specialise(supernet, "original@0,other@1-5", [])
    with pytest.raises(UsageError, match="must be a Supernet"):
        fxelastic.specialise(nn.Linear(2, 2), original, [])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="soft_loss"):
        fxelastic.specialise(supernet, original, [], soft_loss="kl")
    with pytest.raises(UsageError, match="features"):
        fxelastic.specialise(supernet, original, [], features=-1.0)
