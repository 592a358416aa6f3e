"""Grad-mode and autocast regions, and masks that take many operators to build."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .model_case import Inputs, features, make_case, padding_mask, token_ids


class GradModeRegions(nn.Module):
    """A frozen stem under ``no_grad``, and a norm with autocast switched off."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.frozen = nn.Linear(10, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.gain = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 4)

    def _norm(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = x.float()
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.gain

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.tanh(self.frozen(x))
        for layer in self.layers:
            x = x + torch.relu(layer(self._norm(x)))
        return self.head(x)


class MaskedLayer(nn.Module):
    """Pre-norm attention under an additive mask."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.n_heads = n_heads

    def forward(self, x: Tensor, mask: Tensor, local: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            part.view(n, length, self.n_heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        scores = q @ k.mT / math.sqrt(width // self.n_heads) + local
        scores = scores.masked_fill(~mask, float("-inf"))
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.ffn(self.norm2(x))


class PrefixSlidingWindow(nn.Module):
    """A visible prefix, a sliding window, documents, global tokens, padding and ALiBi slopes."""

    def __init__(self, width: int = 24, n_heads: int = 4, depth: int = 3, window: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(53, width)
        self.layers = nn.ModuleList(MaskedLayer(width, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 53)
        self.window = window
        slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1) / n_heads)
        self.register_buffer("slopes", slopes.view(1, n_heads, 1, 1))
        self.register_buffer("global_tokens", torch.tensor([0, 5]))

    def _mask(self, documents: Tensor, padding: Tensor, prefix: Tensor) -> Tensor:
        length = documents.shape[1]
        positions = torch.arange(length, device=documents.device)
        distance = positions[:, None] - positions[None, :]
        window = (distance >= 0) & (distance < self.window)
        visible = (positions[None, None, :] < prefix[:, None, None]) | window[None]
        same = documents[:, :, None] == documents[:, None, :]
        allowed = torch.logical_and(visible, same)
        allowed = allowed.index_fill(2, self.global_tokens, True)
        allowed = allowed & padding[:, None, :].bool()
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=documents.device)
        return allowed[:, None]

    def forward(
        self, input_ids: Tensor, documents: Tensor, padding: Tensor, prefix: Tensor
    ) -> Tensor:
        mask = self._mask(documents.cumsum(1), padding, prefix)
        length = input_ids.shape[1]
        positions = torch.arange(length, dtype=torch.float32, device=input_ids.device)
        local = -(positions[:, None] - positions[None, :]).abs() * self.slopes
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, mask, local)
        return self.head(self.norm(x))


class EinsumAttention(nn.Module):
    """Multi-head attention written in ``einsum`` with parameters shaped by head."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        size = width // n_heads
        for name in ("wq", "wk", "wv"):
            setattr(self, name, nn.Parameter(torch.randn(width, n_heads, size) / width**0.5))
        self.wo = nn.Parameter(torch.randn(n_heads, size, width) / width**0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q = torch.einsum("nld,dhk->nhlk", y, self.wq)
        k = torch.einsum("nld,dhk->nhlk", y, self.wk)
        v = torch.einsum("nld,dhk->nhlk", y, self.wv)
        weights = torch.einsum("nhqk,nhmk->nhqm", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        return x + torch.einsum("nhqm,nhmk,hkd->nqd", weights, v, self.wo)


class EinsumTransformer(nn.Module):
    """Attention layers and position-wise ``einsum`` feed-forward layers."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.inp = nn.Linear(9, width)
        self.attention = nn.ModuleList(EinsumAttention(width, 3) for _ in range(depth))
        self.mix = nn.ParameterList(torch.randn(width, width) / width**0.5 for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for attention, mix in zip(self.attention, self.mix, strict=True):
            x = attention(x)
            x = x + torch.einsum("...i,ij->...j", x, mix).tanh()
        return self.head(x.mean(-2))


def _packed(batch: int, generator: torch.Generator) -> Inputs:
    length = 12
    starts = (torch.arange(length)[None, :] == 4 + torch.arange(batch)[:, None] % 4).long()
    prefix = torch.arange(batch) % 4
    ids = token_ids(batch, length, 53, generator)
    return (ids, starts, padding_mask(batch, length), prefix), {}


CASES = (
    make_case(
        "grad_mode_regions", GradModeRegions, features(10), {"mlp", "shared", "higher-order"}
    ),
    make_case(
        "prefix_sliding_window",
        PrefixSlidingWindow,
        _packed,
        {"transformer", "multi-input", "int-input", "context", "no-symbolic-trace"},
    ),
    make_case("einsum_attention", EinsumTransformer, features(7, 9), {"transformer"}),
)
