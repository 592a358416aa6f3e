"""Text encoders: BERT-like with an attention mask, ALBERT-like with one layer used many times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .model_case import Inputs, make_case, padding_mask, token_ids

VOCABULARY = 101
LENGTH = 12


class BertEmbeddings(nn.Module):
    """Word, position and token type embeddings."""

    def __init__(self, hidden: int, max_length: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(max_length, hidden)
        self.token_type_embeddings = nn.Embedding(2, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        ids = torch.arange(max_length).expand((1, -1))
        self.register_buffer("position_ids", ids, persistent=False)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        position_ids = self.position_ids[:, : input_ids.size(1)]
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        embeddings += self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))


class BertSelfAttention(nn.Module):
    """Attention written out: matmul, mask, softmax, matmul."""

    def __init__(self, hidden: int, n_heads: int) -> None:
        super().__init__()
        self.num_attention_heads = n_heads
        self.attention_head_size = hidden // n_heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(0.1)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        shape = x.size()[:-1] + (self.num_attention_heads, self.attention_head_size)
        return x.view(shape).permute(0, 2, 1, 3)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        query = self.transpose_for_scores(self.query(hidden_states))
        key = self.transpose_for_scores(self.key(hidden_states))
        value = self.transpose_for_scores(self.value(hidden_states))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        probs = self.dropout(nn.functional.softmax(scores + attention_mask, dim=-1))
        context = torch.matmul(probs, value).permute(0, 2, 1, 3).contiguous()
        return context.view(context.size()[:-2] + (-1,))


class BertOutput(nn.Module):
    """Projection, dropout, residual, norm."""

    def __init__(self, n_in: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)


class BertAttention(nn.Module):
    """Self-attention and its output layer."""

    def __init__(self, hidden: int, n_heads: int) -> None:
        super().__init__()
        self.self = BertSelfAttention(hidden, n_heads)
        self.output = BertOutput(hidden, hidden)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        return self.output(self.self(hidden_states, attention_mask), hidden_states)


class BertIntermediate(nn.Module):
    """The widening half of the feed-forward network."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, intermediate)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(hidden_states))


class BertLayer(nn.Module):
    """One post-norm encoder layer."""

    def __init__(self, hidden: int, n_heads: int) -> None:
        super().__init__()
        self.attention = BertAttention(hidden, n_heads)
        self.intermediate = BertIntermediate(hidden, 4 * hidden)
        self.output = BertOutput(4 * hidden, hidden)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        attended = self.attention(hidden_states, attention_mask)
        return (self.output(self.intermediate(attended), attended),)


class BertEncoder(nn.Module):
    """The layers; each returns a tuple, as the original's do."""

    def __init__(self, hidden: int, n_heads: int, depth: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(hidden, n_heads) for _ in range(depth))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        for layer in self.layer:
            hidden_states = layer(hidden_states, attention_mask)[0]
        return hidden_states


class BertPooler(nn.Module):
    """The first token through a dense layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_states[:, 0]))


def extended_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A 0/1 mask ``(N, L)`` as an additive one ``(N, 1, 1, L)``."""
    mask = attention_mask[:, None, None, :].to(dtype)
    return (1.0 - mask) * torch.finfo(dtype).min


class Bert(nn.Module):
    """Devlin et al. 2018, scaled down; returns the hidden states, the pooled token, the logits."""

    def __init__(self, hidden: int = 32, n_heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(hidden, 32)
        self.encoder = BertEncoder(hidden, n_heads, depth)
        self.pooler = BertPooler(hidden)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(hidden, 3)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        embedded = self.embeddings(input_ids, token_type_ids)
        hidden_states = self.encoder(embedded, extended_mask(attention_mask, embedded.dtype))
        pooled = self.pooler(hidden_states)
        return hidden_states, pooled, self.classifier(self.dropout(pooled))


class AlbertEncoder(nn.Module):
    """The same layer, ``depth`` times."""

    def __init__(self, hidden: int, n_heads: int, depth: int) -> None:
        super().__init__()
        self.embedding_hidden_mapping_in = nn.Linear(hidden // 2, hidden)
        self.shared_layer = BertLayer(hidden, n_heads)
        self.depth = depth

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding_hidden_mapping_in(x)
        for _ in range(self.depth):
            x = self.shared_layer(x, attention_mask)[0]
        return x


class Albert(nn.Module):
    """Lan et al. 2019, scaled down: factorised embeddings, one layer shared by all depths."""

    def __init__(self, hidden: int = 32, n_heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(hidden // 2, 32)
        self.encoder = AlbertEncoder(hidden, n_heads, depth)
        self.pooler = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embedded = self.embeddings(input_ids, torch.zeros_like(input_ids))
        hidden = self.encoder(embedded, extended_mask(attention_mask, embedded.dtype))
        return self.classifier(torch.tanh(self.pooler(hidden[:, 0])))


def _bert_inputs(batch: int, generator: torch.Generator) -> Inputs:
    types = (torch.arange(LENGTH) >= LENGTH // 2).long().repeat(batch, 1)
    return (), {
        "input_ids": token_ids(batch, LENGTH, VOCABULARY, generator),
        "attention_mask": padding_mask(batch, LENGTH),
        "token_type_ids": types,
    }


def _masked_inputs(batch: int, generator: torch.Generator) -> Inputs:
    ids = token_ids(batch, LENGTH, VOCABULARY, generator)
    return (ids, padding_mask(batch, LENGTH)), {}


CASES = (
    make_case(
        "bert",
        Bert,
        _bert_inputs,
        {
            "transformer",
            "multi-input",
            "kwargs",
            "int-input",
            "multi-output",
            "context",
            "inplace",
            "no-symbolic-trace",
        },
    ),
    make_case(
        "albert",
        Albert,
        _masked_inputs,
        {
            "transformer",
            "multi-input",
            "int-input",
            "shared",
            "context",
            "inplace",
            "no-symbolic-trace",
        },
    ),
)
