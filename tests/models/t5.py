"""T5-like encoder-decoder: one relative bias table per stack, read by every layer of the stack."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .llama import RMSNorm
from .model_case import Inputs, make_case, padding_mask, token_ids

VOCABULARY = 83


class T5Attention(nn.Module):
    """Unscaled attention; the first layer of a stack owns the relative bias."""

    def __init__(self, width: int, n_heads: int, has_bias: bool, bidirectional: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.bidirectional = bidirectional
        self.n_buckets = 8
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.has_bias = has_bias
        if has_bias:
            self.relative_attention_bias = nn.Embedding(self.n_buckets, n_heads)

    def _bucket(self, relative: Tensor) -> Tensor:
        n_buckets, max_distance = self.n_buckets, 16
        buckets = torch.zeros_like(relative)
        if self.bidirectional:
            n_buckets //= 2
            buckets += (relative > 0).to(torch.long) * n_buckets
            relative = torch.abs(relative)
        else:
            relative = -torch.min(relative, torch.zeros_like(relative))
        exact = n_buckets // 2
        far = exact + (
            torch.log(relative.float() / exact)
            / math.log(max_distance / exact)
            * (n_buckets - exact)
        ).to(torch.long)
        far = torch.min(far, torch.full_like(far, n_buckets - 1))
        buckets += torch.where(relative < exact, relative, far)
        return buckets

    def compute_bias(self, query_length: int, key_length: int) -> Tensor:
        """The bias ``(1, heads, query_length, key_length)``: no user input matters to it."""
        device = self.relative_attention_bias.weight.device
        rows = torch.arange(query_length, dtype=torch.long, device=device)[:, None]
        columns = torch.arange(key_length, dtype=torch.long, device=device)[None, :]
        values = self.relative_attention_bias(self._bucket(columns - rows))
        return values.permute([2, 0, 1]).unsqueeze(0)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor) -> Tensor:
        batch, length = x.shape[:2]

        def split(states: Tensor) -> Tensor:
            return states.view(batch, -1, self.n_heads, states.size(-1) // self.n_heads).transpose(
                1, 2
            )

        query, key, value = split(self.q(x)), split(self.k(source)), split(self.v(source))
        scores = torch.matmul(query, key.transpose(3, 2))
        scores += bias
        weights = nn.functional.softmax(scores.float(), dim=-1).type_as(scores)
        out = torch.matmul(weights, value).transpose(1, 2).contiguous().view(batch, length, -1)
        return self.o(out)


class T5LayerSelfAttention(nn.Module):
    """Norm, self-attention, residual."""

    def __init__(self, width: int, n_heads: int, has_bias: bool, bidirectional: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(width, n_heads, has_bias, bidirectional)
        self.layer_norm = RMSNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.layer_norm(x)
        return x + self.SelfAttention(normed, normed, bias)


class T5LayerCrossAttention(nn.Module):
    """Norm, attention over the encoder's states, residual."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.EncDecAttention = T5Attention(width, n_heads, has_bias=False, bidirectional=True)
        self.layer_norm = RMSNorm(width)

    def forward(self, x: Tensor, encoded: Tensor, bias: Tensor) -> Tensor:
        return x + self.EncDecAttention(self.layer_norm(x), encoded, bias)


class T5LayerFF(nn.Module):
    """Norm, gated feed-forward network, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(width, 2 * width, bias=False)
        self.wi_1 = nn.Linear(width, 2 * width, bias=False)
        self.wo = nn.Linear(2 * width, width, bias=False)
        self.layer_norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer_norm(x)
        hidden = nn.functional.gelu(self.wi_0(hidden), approximate="tanh") * self.wi_1(hidden)
        return x + self.wo(hidden)


class T5Block(nn.Module):
    """Self-attention, in the decoder cross-attention, feed-forward."""

    def __init__(self, width: int, n_heads: int, has_bias: bool, is_decoder: bool) -> None:
        super().__init__()
        self.is_decoder = is_decoder
        layers: list[nn.Module] = [
            T5LayerSelfAttention(width, n_heads, has_bias, bidirectional=not is_decoder)
        ]
        if is_decoder:
            layers.append(T5LayerCrossAttention(width, n_heads))
        layers.append(T5LayerFF(width))
        self.layer = nn.ModuleList(layers)

    def forward(
        self, x: Tensor, bias: Tensor, encoded: Tensor | None, cross_bias: Tensor | None
    ) -> Tensor:
        x = self.layer[0](x, bias)
        if self.is_decoder:
            x = self.layer[1](x, encoded, cross_bias)
        return self.layer[-1](x)


class T5Stack(nn.Module):
    """Encoder or decoder."""

    def __init__(self, shared: nn.Embedding, n_heads: int, depth: int, is_decoder: bool) -> None:
        super().__init__()
        width = shared.embedding_dim
        self.embed_tokens = shared
        self.is_decoder = is_decoder
        self.block = nn.ModuleList(
            T5Block(width, n_heads, index == 0, is_decoder) for index in range(depth)
        )
        self.final_layer_norm = RMSNorm(width)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        encoded: Tensor | None = None,
        encoded_mask: Tensor | None = None,
    ) -> Tensor:
        x = self.embed_tokens(ids)
        lowest = torch.finfo(x.dtype).min
        length = ids.shape[1]
        bias = self.block[0].layer[0].SelfAttention.compute_bias(length, length)
        bias = bias + (1.0 - mask[:, None, None, :].to(x.dtype)) * lowest
        if self.is_decoder:
            future = torch.ones(length, length, device=ids.device).triu(1)
            bias = (bias + future * lowest).clamp(min=lowest)
        cross_bias = None
        if encoded_mask is not None:
            cross_bias = (1.0 - encoded_mask[:, None, None, :].to(x.dtype)) * lowest
        for block in self.block:
            x = block(x, bias, encoded, cross_bias)
        return self.final_layer_norm(x)


class T5(nn.Module):
    """Raffel et al. 2019 (v1.1 feed-forward), scaled down; embeddings shared by both stacks."""

    def __init__(self, width: int = 32, n_heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.shared = nn.Embedding(VOCABULARY, width)
        self.encoder = T5Stack(self.shared, n_heads, depth, is_decoder=False)
        self.decoder = T5Stack(self.shared, n_heads, depth, is_decoder=True)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.shared.weight
        self.model_dim = width

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor,
    ) -> dict[str, Tensor]:
        encoded = self.encoder(input_ids, attention_mask)
        decoded = self.decoder(decoder_input_ids, decoder_attention_mask, encoded, attention_mask)
        logits = self.lm_head(decoded * (self.model_dim**-0.5))
        return {"logits": logits, "encoder_last_hidden_state": encoded}


def _inputs(batch: int, generator: torch.Generator) -> Inputs:
    return (), {
        "input_ids": token_ids(batch, 10, VOCABULARY, generator),
        "attention_mask": padding_mask(batch, 10),
        "decoder_input_ids": token_ids(batch, 7, VOCABULARY, generator),
        "decoder_attention_mask": padding_mask(batch, 7),
    }


CASES = (
    make_case(
        "t5",
        T5,
        _inputs,
        {
            "transformer",
            "multi-input",
            "kwargs",
            "int-input",
            "multi-output",
            "nested-output",
            "side-exits",
            "shared",
            "context",
            "inplace",
            "no-symbolic-trace",
        },
    ),
)
