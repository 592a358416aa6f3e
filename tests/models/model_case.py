"""What a test model is: how to build it, what to feed it, and what is special about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

#: Every tag a case may carry, and what it promises.
TAGS: dict[str, str] = {
    # what the model is made of
    "conv": "built on convolutions",
    "transformer": "built on attention",
    "rnn": "built on recurrent layers",
    "mlp": "built on linear layers only",
    "real": "the published architecture at its published widths",
    "slow": "much larger than the others: leave it out of exhaustive sweeps",
    # signature
    "multi-input": "takes several tensors",
    "kwargs": "takes keyword arguments",
    "multi-output": "returns more than one tensor",
    "nested-output": "returns a dict, a dataclass, or a nested structure",
    "int-input": "its first input holds integers",
    "batch-dim-1": "the batch is dimension 1 of inputs and outputs, not dimension 0",
    # hazards
    "side-exits": "an interior value also leaves through an output or a far connection",
    "context": "computes values that depend on no parametrised operator (masks, tables)",
    "inplace": "mutates intermediate values in place",
    "mutates-input": "mutates its own input",
    "shared": "uses a parameter in more than one place",
    "unused-params": "owns parameters that eval never uses",
    "functional": "owns parameters but no submodules that use them",
    "hooks": "has forward hooks",
    "no-symbolic-trace": "torch.fx.symbolic_trace fails on it",
    "no-plain-export": "torch.export.export fails on it without help",
    "no-dynamic-export": "torch.export.export refuses a dynamic batch without help",
    "higher-order": "torch.export gives a graph that holds subgraphs",
}


@dataclass(frozen=True)
class ModelCase:
    """One model under test.

    Attributes:
        name: unique, snake case.
        build: makes a fresh model in eval mode; equal weights at every call.
        inputs: batch size to fresh ``(args, kwargs)``; equal values at every call.
        tags: see ``TAGS``.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    tags: frozenset[str]


def make_case(
    name: str,
    make_model: Callable[[], nn.Module],
    make_inputs: Callable[[int, torch.Generator], Inputs],
    tags: Iterable[str],
) -> ModelCase:
    """Wrap plain factories so that both are deterministic and leave the global generator alone."""
    tags = frozenset(tags)
    if unknown := tags - TAGS.keys():
        raise ValueError(f"case {name!r} has unknown tags {sorted(unknown)}")

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make_model()
            randomise_affine(model)
            calibrate_batch_norms(model, make_inputs(4, torch.Generator().manual_seed(7)))
        return model.eval()

    def inputs(batch: int) -> Inputs:
        return make_inputs(batch, torch.Generator().manual_seed(1000 + batch))

    return ModelCase(name, build, inputs, tags)


def randomise_affine(model: nn.Module) -> None:
    """Give every normalisation layer weights, so that none is an identity."""
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.7, 1.3)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1)


def calibrate_batch_norms(model: nn.Module, inputs: Inputs) -> None:
    """Set running statistics from one batch, then disturb them, as training would leave them.

    Without it the signal dies in a deep network, and any two inputs give the same output.
    """
    norms = [m for m in model.modules() if getattr(m, "running_mean", None) is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    args, kwargs = inputs
    with torch.no_grad():
        model(*args, **kwargs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_mean.add_(
                norm.running_var.sqrt() * torch.randn_like(norm.running_mean) / 8
            )
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.2)).add_(1e-3)


def images(channels: int = 3, size: int = 32) -> Callable[[int, torch.Generator], Inputs]:
    """Inputs of one image tensor ``(N, channels, size, size)``."""

    def make(batch: int, generator: torch.Generator) -> Inputs:
        return (torch.randn(batch, channels, size, size, generator=generator),), {}

    return make


def features(*shape: int) -> Callable[[int, torch.Generator], Inputs]:
    """Inputs of one float tensor ``(N, *shape)``."""

    def make(batch: int, generator: torch.Generator) -> Inputs:
        return (torch.randn(batch, *shape, generator=generator),), {}

    return make


def token_ids(batch: int, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Random token ids ``(N, length)``."""
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def tokens(length: int, vocabulary: int) -> Callable[[int, torch.Generator], Inputs]:
    """Inputs of one tensor of token ids ``(N, length)``."""

    def make(batch: int, generator: torch.Generator) -> Inputs:
        return (token_ids(batch, length, vocabulary, generator),), {}

    return make


def padding_mask(batch: int, length: int) -> Tensor:
    """A 0/1 mask ``(N, length)``: sample ``i`` has ``i % 3`` padded positions at its end."""
    lengths = length - torch.arange(batch) % 3
    return (torch.arange(length)[None, :] < lengths[:, None]).long()
