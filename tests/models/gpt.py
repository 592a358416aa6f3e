"""GPT-2-like causal language model with a tied head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import make_case, tokens

VOCABULARY = 97


class Conv1D(nn.Module):
    """A linear layer with a transposed weight, computed by ``addmm`` on a flattened view."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.weight = nn.Parameter(torch.empty(n_in, n_out).normal_(std=0.15))
        self.bias = nn.Parameter(torch.zeros(n_out).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        size_out = x.size()[:-1] + (self.n_out,)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class GPT2Attention(nn.Module):
    """Causal attention with its mask in a buffer."""

    def __init__(self, width: int, n_heads: int, max_length: int) -> None:
        super().__init__()
        mask = torch.tril(torch.ones(max_length, max_length, dtype=torch.bool))
        self.register_buffer("bias", mask.view(1, 1, max_length, max_length), persistent=False)
        self.n_heads = n_heads
        self.split_size = width
        self.c_attn = Conv1D(3 * width, width)
        self.c_proj = Conv1D(width, width)
        self.attn_dropout = nn.Dropout(0.1)
        self.resid_dropout = nn.Dropout(0.1)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(x.size()[:-1] + (self.n_heads, -1)).permute(0, 2, 1, 3)

    def forward(self, hidden_states: Tensor) -> Tensor:
        query, key, value = self.c_attn(hidden_states).split(self.split_size, dim=2)
        query, key, value = map(self._split_heads, (query, key, value))
        weights = torch.matmul(query, key.transpose(-1, -2)) / (value.size(-1) ** 0.5)
        length = query.size(-2)
        causal = self.bias[:, :, :length, :length]
        lowest = torch.full([], torch.finfo(weights.dtype).min, dtype=weights.dtype)
        weights = torch.where(causal, weights, lowest)
        weights = self.attn_dropout(nn.functional.softmax(weights, dim=-1))
        merged = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous()
        merged = merged.view(merged.size()[:-2] + (self.split_size,))
        return self.resid_dropout(self.c_proj(merged))


class GPT2MLP(nn.Module):
    """Feed-forward network with the tanh form of GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * width, width)
        self.c_proj = Conv1D(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class GPT2Block(nn.Module):
    """One pre-norm layer."""

    def __init__(self, width: int, n_heads: int, max_length: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = GPT2Attention(width, n_heads, max_length)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = GPT2MLP(width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.attn(self.ln_1(hidden_states)) + hidden_states
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class GPT2Model(nn.Module):
    """Embeddings, layers, final norm."""

    def __init__(self, width: int, n_heads: int, depth: int, max_length: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.wpe = nn.Embedding(max_length, width)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList(GPT2Block(width, n_heads, max_length) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        position_ids = torch.arange(0, input_ids.size(-1), device=input_ids.device).unsqueeze(0)
        hidden_states = self.drop(self.wte(input_ids) + self.wpe(position_ids))
        for block in self.h:
            hidden_states = block(hidden_states)
        return self.ln_f(hidden_states)


class GPT2LMHeadModel(nn.Module):
    """Radford et al. 2019, scaled down; the head shares the word embedding's weight."""

    def __init__(self, width: int = 32, n_heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.transformer = GPT2Model(width, n_heads, depth, max_length=24)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.transformer(input_ids))


CASES = (
    make_case(
        "gpt2",
        GPT2LMHeadModel,
        tokens(10, VOCABULARY),
        {"transformer", "int-input", "shared", "context", "no-symbolic-trace"},
    ),
)
