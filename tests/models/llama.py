"""Llama-like: rotary embeddings, grouped-query attention, RMS norm, SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import Inputs, make_case, padding_mask, token_ids

VOCABULARY = 89


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).uniform_(0.7, 1.3))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)


class RotaryEmbedding(nn.Module):
    """Cosine and sine tables from positions; no input of the model matters but its shape."""

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        freqs = (inv_freq @ position_ids[:, None, :].float()).transpose(1, 2)
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos().to(x.dtype), emb.sin().to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """Swap the halves of the last dimension, the second negated."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """Repeat each key/value head ``n_rep`` times."""
    batch, n_heads, length, head_dim = x.shape
    x = x[:, :, None, :, :].expand(batch, n_heads, n_rep, length, head_dim)
    return x.reshape(batch, n_heads * n_rep, length, head_dim)


class LlamaAttention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, width: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = width // n_heads
        self.n_rep = n_heads // n_kv_heads
        self.q_proj = nn.Linear(width, n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(n_heads * self.head_dim, width, bias=False)

    def forward(
        self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        query = self.q_proj(x).view(shape).transpose(1, 2)
        key = self.k_proj(x).view(shape).transpose(1, 2)
        value = self.v_proj(x).view(shape).transpose(1, 2)
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)
        query = (query * cos) + (rotate_half(query) * sin)
        key = (key * cos) + (rotate_half(key) * sin)
        key, value = repeat_kv(key, self.n_rep), repeat_kv(value, self.n_rep)
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out = out.transpose(1, 2).contiguous().reshape(*x.shape[:-1], -1)
        return self.o_proj(out)


class LlamaMLP(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, width: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(width, n_heads, n_kv_heads)
        self.mlp = LlamaMLP(width, 3 * width)
        self.input_layernorm = RMSNorm(width)
        self.post_attention_layernorm = RMSNorm(width)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
    ) -> Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = residual + self.self_attn(
            hidden_states, position_embeddings, attention_mask
        )
        residual = hidden_states
        return residual + self.mlp(self.post_attention_layernorm(hidden_states))


class LlamaModel(nn.Module):
    """Embedding, layers, final norm; masks and rotary tables are made once."""

    def __init__(self, width: int, n_heads: int, n_kv_heads: int, depth: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(width, n_heads, n_kv_heads) for _ in range(depth)
        )
        self.norm = RMSNorm(width)
        self.rotary_emb = RotaryEmbedding(width // n_heads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        inputs_embeds = self.embed_tokens(input_ids)
        length = input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device)
        causal = positions[None, :] <= positions[:, None]
        allowed = causal[None, None] & attention_mask[:, None, None, :].bool()
        mask = torch.zeros(allowed.shape, dtype=inputs_embeds.dtype, device=input_ids.device)
        mask = mask.masked_fill(~allowed, torch.finfo(inputs_embeds.dtype).min)
        position_embeddings = self.rotary_emb(inputs_embeds, positions.unsqueeze(0))
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, position_embeddings)
        return self.norm(hidden_states)


class LlamaForCausalLM(nn.Module):
    """Touvron et al. 2023, scaled down."""

    def __init__(
        self, width: int = 32, n_heads: int = 4, n_kv_heads: int = 2, depth: int = 4
    ) -> None:
        super().__init__()
        self.model = LlamaModel(width, n_heads, n_kv_heads, depth)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.lm_head(self.model(input_ids, attention_mask))}


def _inputs(batch: int, generator: torch.Generator) -> Inputs:
    ids = token_ids(batch, 11, VOCABULARY, generator)
    return (ids,), {"attention_mask": padding_mask(batch, 11)}


CASES = (
    make_case(
        "llama",
        LlamaForCausalLM,
        _inputs,
        {
            "transformer",
            "multi-input",
            "kwargs",
            "int-input",
            "nested-output",
            "context",
            "no-symbolic-trace",
            "higher-order",
        },
    ),
)
