"""Small supernets whose new branches are made from the shapes alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxelastic
from fxelastic import Partition, Supernet
from fxelastic.branches import branch_kind
from fxelastic.ir.branch import Branch
from fxelastic.ir.liveness import Liveness
from fxelastic.spec import BranchSpec, branch_id


class Student(nn.Module):
    """One layer for each output, of the right shape: a convolution or a linear layer."""

    def __init__(self, given: Tensor, wanted: Sequence[Tensor], dropout: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(given, like) for like in wanted)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *others: Any) -> Any:
        results = tuple(self.dropout(head(x)) for head in self.heads)
        return results if len(results) > 1 else results[0]


class Head(nn.Module):
    """Maps images, sequences or vectors to images, sequences or vectors."""

    def __init__(self, given: Tensor, like: Tensor) -> None:
        super().__init__()
        self.pooled = given.dim() > 2 and like.dim() == 2
        self.size = tuple(map(int, like.shape[2:])) if like.dim() == 4 else ()
        self.tokens = given.dim() == 4 and like.dim() == 3
        n_in = int(given.shape[1] if given.dim() == 4 else given.shape[-1])
        n_out = int(like.shape[1] if like.dim() == 4 else like.shape[-1])
        if like.dim() == 4:
            self.layer: nn.Module = nn.Sequential(
                nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out)
            )
        else:
            self.layer = nn.Sequential(nn.Linear(n_in, n_out), nn.LayerNorm(n_out))
        self.length = int(like.shape[1]) if self.tokens else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.pooled:
            x = x.mean((2, 3)) if x.dim() == 4 else x.mean(1)
        if self.tokens:
            x = F.adaptive_avg_pool1d(x.flatten(2), self.length).transpose(1, 2)
        if self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        return self.layer(x)


def _head(given: Tensor, like: Tensor) -> nn.Module:
    return Head(given, like)


def supernet_of(
    model: nn.Module,
    example: Any,
    *,
    gamma: float = 0.25,
    spans: tuple[int, ...] = (1, 2),
    dropout: float = 0.0,
    seed: int = 0,
) -> Supernet:
    """A supernet with one student for each interval of these lengths."""
    partition = fxelastic.partition(model, gamma, example)
    originals = [b for b in branch_kind("original")().make(partition) if isinstance(b, Branch)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        students = [
            made
            for span in spans
            for start in range(len(partition.blocks) - span + 1)
            if (made := _student(partition, start, start + span, dropout)) is not None
        ]
    return Supernet(partition, originals + students)


def _student(partition: Partition, start: int, stop: int, dropout: float) -> Branch | None:
    if any(block.kind == "context" for block in partition.blocks[start:stop]):
        return None
    liveness = Liveness(partition)
    live, outputs = liveness.live(start), liveness.outputs(start, stop)
    inputs = [name for name in partition.blocks[start].inputs if name in live][:1]
    values = {node.name: node.meta.get("val") for node in partition.graph.nodes}
    tensors = [values[name] for name in (*inputs, *outputs)]
    if not inputs or any(not t.is_floating_point() or t.dim() < 2 for t in tensors):
        return None
    if tensors[0].dim() < 4 and any(t.dim() > tensors[0].dim() for t in tensors[1:]):
        return None
    if any(t.dim() == 3 and t.shape[:2] != tensors[0].shape[:2] for t in tensors[1:]):
        return None
    module = Student(tensors[0], tensors[1:], dropout)
    n_params = sum(p.numel() for p in module.parameters())
    flops = sum(block.flops for block in partition.blocks[start:stop]) // (1 + stop - start)
    spec = BranchSpec(branch_id("student", start, stop), "student", start, stop, n_params, flops)
    return Branch(spec, module, tuple(inputs), outputs)


class ConvNet(nn.Module):
    """Convolutions with batch norm and dropout, and a classifier."""

    def __init__(self, width: int = 8, n_classes: int = 4) -> None:
        super().__init__()
        self.stem = _conv(1, width)
        self.layers = nn.Sequential(*[_conv(width, width) for _ in range(3)])
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.layers(self.stem(x)).mean((2, 3))))


def _conv(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())


class Perceptron(nn.Module):
    """Linear layers: no statistics, so that half batches add up to whole ones."""

    def __init__(self, width: int = 8, n_classes: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(4)]
        )
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def conv_supernet(dropout: float = 0.0) -> Supernet:
    return _fresh("conv", dropout)


def linear_supernet(dropout: float = 0.0) -> Supernet:
    return _fresh("linear", dropout)


def _fresh(name: str, dropout: float) -> Supernet:
    """A copy, which takes a tenth of the time, with the random numbers that follow the first."""
    supernet, state = _made(name, dropout)
    torch.set_rng_state(state)
    return copy.deepcopy(supernet)


@functools.cache
def _made(name: str, dropout: float) -> tuple[Supernet, Tensor]:
    torch.manual_seed(0)
    if name == "conv":
        supernet = supernet_of(ConvNet().eval(), torch.zeros(2, 1, 8, 8), dropout=dropout)
    else:
        supernet = supernet_of(Perceptron().eval(), torch.zeros(2, 8), dropout=dropout)
    return supernet, torch.get_rng_state()


def image_batches(n: int = 4, size: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 1, 8, 8, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for _ in range(n)
    ]


def vector_batches(n: int = 4, size: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 8, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for _ in range(n)
    ]


def weights(supernet: Supernet) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, by branch."""
    return {
        f"{name}/{inner}": value.detach().clone()
        for name, branch in supernet.branches.items()
        for inner, value in (*branch.module.named_parameters(), *branch.module.named_buffers())
    }


def moved(before: dict[str, Tensor], supernet: Supernet) -> set[str]:
    """Ids of the branches of which a parameter or buffer changed."""
    after = weights(supernet)
    return {
        name.partition("/")[0]
        for name, value in before.items()
        if not torch.equal(value, after[name])
    }


def copied(batches: list[Any]) -> list[Any]:
    return copy.deepcopy(batches)
