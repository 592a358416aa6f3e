"""``torch.nn``'s own transformer layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import Inputs, features, make_case, padding_mask, token_ids

VOCABULARY = 47


class EncoderClassifier(nn.Module):
    """``nn.TransformerEncoder`` over a projected sequence, sinusoidal positions in a buffer."""

    def __init__(self, width: int = 32, depth: int = 4, max_length: int = 32) -> None:
        super().__init__()
        self.project = nn.Linear(9, width)
        position = torch.arange(max_length)[:, None] * torch.logspace(0, -3, width // 2)
        table = torch.stack([position.sin(), position.cos()], dim=-1).flatten(1)
        self.register_buffer("pe", table[None])
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x) + self.pe[:, : x.size(1)]
        return self.head(self.norm(self.encoder(x)).mean(1))


class Seq2Seq(nn.Module):
    """Encoder and decoder layers with causal and padding masks."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.source = nn.Embedding(VOCABULARY, width)
        self.target = nn.Embedding(VOCABULARY, width)
        encoder = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        decoder = nn.TransformerDecoderLayer(width, 4, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, depth, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, depth)
        self.generator = nn.Linear(width, VOCABULARY)

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor) -> Tensor:
        ignore = src_mask == 0
        causal = torch.ones(tgt.size(1), tgt.size(1), dtype=torch.bool, device=tgt.device).triu(1)
        memory = self.encoder(self.source(src), src_key_padding_mask=ignore)
        out = self.decoder(
            self.target(tgt),
            memory,
            tgt_mask=causal,
            tgt_is_causal=True,
            memory_key_padding_mask=ignore,
        )
        return self.generator(out)


class DetectedCausalMask(nn.Module):
    """Leaves it to ``nn.TransformerDecoder`` to see that its mask is causal, by its values."""

    def __init__(self, width: int = 16, length: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.memory = nn.Linear(5, width)
        layer = nn.TransformerDecoderLayer(width, 2, 2 * width, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.decoder(self.embed(tokens), self.memory(memory), tgt_mask=self.causal)
        return self.head(x)


def _tokens_and_memory(batch: int, generator: torch.Generator) -> Inputs:
    ids = token_ids(batch, 6, VOCABULARY, generator)
    return (ids, torch.randn(batch, 4, 5, generator=generator)), {}


def _pair(batch: int, generator: torch.Generator) -> Inputs:
    source = token_ids(batch, 9, VOCABULARY, generator)
    target = token_ids(batch, 6, VOCABULARY, generator)
    return (source, target), {"src_mask": padding_mask(batch, 9)}


CASES = (
    make_case(
        "transformer_encoder",
        EncoderClassifier,
        features(10, 9),
        {"transformer", "no-symbolic-trace"},
    ),
    make_case(
        "transformer_seq2seq",
        Seq2Seq,
        _pair,
        {
            "transformer",
            "multi-input",
            "kwargs",
            "int-input",
            "context",
            "inplace",
            "no-symbolic-trace",
        },
    ),
    make_case(
        "transformer_detects_causal",
        DetectedCausalMask,
        _tokens_and_memory,
        {"transformer", "multi-input", "int-input", "context", "no-plain-export"},
    ),
)
