"""Models in which data choose how many rows a part of them gets: none, one, or many.

Each reads ``(N, 8)``. `routed` gives inputs of which any number of rows goes to the part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 8


def _expert() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))


class TopOne(nn.Module):
    """Each row goes to one of two experts, by ``where`` and ``index_add``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(_expert() for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        chosen = (x[:, 0] > 0).long()
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = torch.where(chosen == k)[0]
            out = out.index_add(0, rows, expert(x[rows]))
        return self.head(out)


class TopTwo(nn.Module):
    """Each row goes to two of three experts, weighted, by ``nonzero``."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(_expert() for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        # The second expert is in both choices; the sign of the first number tells the other.
        scores = torch.stack([-x[:, 0], x[:, 0].abs() + 1, x[:, 0]], 1)
        weights, chosen = scores.softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows, place = (chosen == k).nonzero(as_tuple=True)
            given = expert(x[rows]) * weights[rows, place][:, None]
            out = out.index_add(0, rows, given)
        return self.head(out)


class Masked(nn.Module):
    """Rows that a mask selects pass through a part, and go back by the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.head = nn.Linear(WIDTH, WIDTH), _expert(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        mask = x[:, 0] > 0
        features = self.first(x)
        out = features.clone()
        out[mask] = self.part(features[mask])
        return self.head(out)


class Filtered(nn.Module):
    """A detector's end: rows above a threshold, for each class, refined and scored."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.refine, self.head = nn.Linear(WIDTH, WIDTH), _expert(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Any:
        scores = torch.stack([x[:, 0], -x[:, 0] - 100], 1)
        keep, label = torch.nonzero(scores > 0, as_tuple=True)
        return self.head(self.refine(self.first(x)[keep])), label


class Selected(nn.Module):
    """Numbers that ``masked_select`` gives, each through a part, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(1, 16), nn.GELU(), nn.Linear(16, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        found = torch.masked_select(x[:, 0], x[:, 0] > 0)
        return self.head(x + self.part(found[:, None]).sum(0))


class Convolved(nn.Module):
    """Rows that a mask selects, as signals, through convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 1, 1))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        rows = torch.where(x[:, 0] > 0)[0]
        given = self.part(x[rows][:, None])[:, 0]
        return self.head(x.index_add(0, rows, given))


class Grouped(nn.Module):
    """Rows that a mask selects, through a norm of groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 1), nn.GroupNorm(2, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        rows = (x[:, 0] > 0).nonzero()[:, 0]
        return self.head(x.index_add(0, rows, self.part(x[rows][:, :, None]).sum(2)))


class Unique(nn.Module):
    """A row of a table for each class among the samples, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.part = nn.Embedding(9, WIDTH), _expert()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Any:
        ids = (x[:, 0].abs() * 4).long().clamp(max=8)
        found = torch.unique(ids[torch.where(x[:, 0] > 0)[0]])
        return self.head(x + self.part(self.table(found)).sum(0))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "top_one": TopOne,
    "top_two": TopTwo,
    "masked": Masked,
    "filtered": Filtered,
    "selected": Selected,
    "convolved": Convolved,
    "grouped": Grouped,
    "unique": Unique,
}


def build(name: str) -> nn.Module:
    """A model in eval mode, the same each time."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def routed(n: int, n_samples: int = 6, seed: int = 0) -> Tensor:
    """Inputs of which exactly ``n`` rows go to the part that data choose rows for."""
    x = torch.randn(n_samples, WIDTH, generator=torch.Generator().manual_seed(seed))
    sign = torch.where(torch.arange(n_samples) < n, 1.0, -1.0)
    return torch.cat([(x[:, :1].abs() + 0.1) * sign[:, None], x[:, 1:]], 1)
