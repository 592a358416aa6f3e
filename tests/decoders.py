"""Steps of small causal language models, with the keys and values of earlier tokens.

`Gpt` is like GPT-2 and takes a mask of the past and the new tokens. `Llama` has rotary positions,
grouped-query attention, RMS norms and gates, and begins each cache from an empty tensor, as
transformers does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxelastic import Supernet, expand
from fxelastic.branches import DEFAULT_KINDS
from fxelastic.ir.branch import cut_cache
from fxelastic.spec import Arch

VOCABULARY = 50
WIDTH = 16
HEADS = 4
KV_HEADS = 2
HEAD_DIM = WIDTH // HEADS
N_LAYERS = 2

Past = list[tuple[Tensor, Tensor]]


def causal(n_new: int, n_past: int) -> Tensor:
    """The tokens that each new token attends to: ``(new, past + new)``."""
    return torch.arange(n_past + n_new) <= (torch.arange(n_new) + n_past)[:, None]


class GptLayer(nn.Module):
    """A pre-norm layer with fused projections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH)
        )

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]) -> Any:
        parts = self.qkv(self.norm(x)).split(WIDTH, dim=2)
        shape = (*x.shape[:2], -1, HEAD_DIM)
        query, key, value = (part.view(shape).transpose(1, 2) for part in parts)
        key = torch.cat([past[0], key], dim=2)
        value = torch.cat([past[1], value], dim=2)
        scores = query @ key.transpose(2, 3) / HEAD_DIM**0.5
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(*x.shape[:2], -1))
        return x + self.mlp(x), (key, value)


class Gpt(nn.Module):
    """Learned positions, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleList([GptLayer() for _ in range(N_LAYERS)])

    def forward(self, ids: Tensor, mask: Tensor, past: Past) -> tuple[Tensor, Past]:
        n_new, n_past = ids.shape[1], past[0][0].shape[2]
        x = self.embed(ids) + self.positions(torch.arange(n_new) + n_past)
        seen = causal(n_new, n_past) & mask[:, None, None, :].bool()
        present = []
        for layer, own in zip(self.layers, past, strict=True):
            x, grown = layer(x, seen, own)
            present.append(grown)
        return F.linear(x, self.embed.weight), present


class LlamaLayer(nn.Module):
    """A pre-norm layer with separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.value = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, 32, bias=False) for _ in range(2))
        self.down = nn.Linear(32, WIDTH, bias=False)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor, past: tuple[Tensor, Tensor]) -> Any:
        shape = (*x.shape[:2], -1, HEAD_DIM)
        read = self.norm(x)
        query = rotated(self.query(read).view(shape).transpose(1, 2), angles)
        key = rotated(self.key(read).view(shape).transpose(1, 2), angles)
        value = self.value(read).view(shape).transpose(1, 2)
        key, value = (
            torch.cat([torch.cat([torch.tensor([]), before], dim=-2), new], dim=-2)
            for before, new in zip(past, (key, value), strict=True)
        )
        groups = HEADS // KV_HEADS
        keys, values = (repeated(part, groups) for part in (key, value))
        found = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = x + self.out(found.transpose(1, 2).reshape(*x.shape[:2], -1))
        read = self.norm2(x)
        return x + self.down(F.silu(self.gate(read)) * self.up(read)), (key, value)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions."""
    one, other = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-other, one], dim=-1) * angles.sin()


def repeated(x: Tensor, groups: int) -> Tensor:
    """Each head of keys or values, for every query head of its group."""
    n, heads, length, dim = x.shape
    return x[:, :, None].expand(n, heads, groups, length, dim).reshape(n, -1, length, dim)


class Llama(nn.Module):
    """Rotary positions, computed once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([LlamaLayer() for _ in range(N_LAYERS)])
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("frequencies", 100.0 ** -torch.linspace(0, 1, HEAD_DIM // 2))

    def forward(self, ids: Tensor, past: Past) -> tuple[Tensor, Past]:
        n_new, n_past = ids.shape[1], past[0][0].shape[2]
        angles = (torch.arange(n_new) + n_past)[:, None] * self.frequencies.repeat(2)
        x, mask, present = self.embed(ids), causal(n_new, n_past), []
        for layer, own in zip(self.layers, past, strict=True):
            x, grown = layer(x, angles, mask, own)
            present.append(grown)
        return self.head(self.norm(x)), present


CACHE: Any = {0: "batch", 2: "past"}
SHAPES: dict[str, Any] = {
    "ids": {0: "batch", 1: "new"},
    "past": [(CACHE, CACHE)] * N_LAYERS,
}

#: For each decoder its class, its key-value heads, and its dynamic shapes.
DECODERS: dict[str, tuple[type[nn.Module], int, dict[str, Any]]] = {
    "gpt": (Gpt, HEADS, {**SHAPES, "mask": {0: "batch", 1: "past + new"}}),
    "llama": (Llama, KV_HEADS, SHAPES),
}


def inputs_of(name: str, n: int = 2, new: int = 3, past: int = 5, seed: int = 0) -> dict[str, Any]:
    """Inputs of a step of a decoder."""
    random = torch.Generator().manual_seed(seed)
    shape = (n, DECODERS[name][1], past, HEAD_DIM)
    inputs: dict[str, Any] = {
        "ids": torch.randint(0, VOCABULARY, (n, new), generator=random),
        "past": [
            (torch.randn(shape, generator=random), torch.randn(shape, generator=random))
            for _ in range(N_LAYERS)
        ],
    }
    return {**inputs, "mask": torch.ones(n, past + new)} if name == "gpt" else inputs


def decoder(name: str, seed: int = 0) -> nn.Module:
    """A decoder with random weights, wide enough that its logits differ."""
    torch.manual_seed(seed)
    model = DECODERS[name][0]().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    return model


@cache
def supernet_of(name: str) -> Supernet:
    """A supernet of a decoder, which tests share and must not change."""
    return expand(
        decoder(name),
        0.5,
        example_inputs=inputs_of(name),
        dynamic_shapes=DECODERS[name][2],
        kinds=DEFAULT_KINDS,
    )


def cut(past: Past, arch: Arch, supernet: Supernet) -> Past:
    """The part of a model's past that a subnet keeps."""
    kept = {part.past: part for part in supernet.space.cache_of(arch)}
    flat = [[(f"past_{i}_{j}", part) for j, part in enumerate(pair)] for i, pair in enumerate(past)]
    return [tuple(cut_cache(v, kept[k]) if k in kept else v for k, v in pair) for pair in flat]
