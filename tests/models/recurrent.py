"""Recurrent networks: LSTM, bidirectional GRU, sequence-first GRU, a cell in a loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .model_case import Inputs, features, make_case, tokens


class LSTMClassifier(nn.Module):
    """Embedding, two-layer LSTM, its last hidden state, a linear head."""

    def __init__(self, vocabulary: int = 61, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True, dropout=0.2)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(hidden, 5)

    def forward(self, ids: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(ids))
        return self.fc(self.dropout(hidden[-1]))


class GRUTagger(nn.Module):
    """Bidirectional GRU; returns a label per position and the final states."""

    def __init__(self, width: int = 12, hidden: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.rnn = nn.GRU(width, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * hidden)
        self.tag = nn.Linear(2 * hidden, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        states, last = self.rnn(x)
        return self.tag(self.norm(states)), last.transpose(0, 1)


class SequenceFirstGRU(nn.Module):
    """Time is dimension 0 and the batch dimension 1, the default of ``nn.GRU``."""

    def __init__(self, width: int = 10, hidden: int = 16) -> None:
        super().__init__()
        self.encoder = nn.GRU(width, hidden)
        self.decoder = nn.GRU(hidden, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        encoded, state = self.encoder(x)
        decoded, _ = self.decoder(encoded, state)
        return x + self.out(decoded)


class CellLoop(nn.Module):
    """A GRU cell unrolled by a Python loop over time: one set of weights, many calls."""

    def __init__(self, width: int = 10, hidden: int = 14) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, hidden)
        self.hidden = hidden
        self.head = nn.Sequential(nn.Linear(hidden, 20), nn.Tanh(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.hidden)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state)


def _sequence_first(batch: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(9, batch, 10, generator=generator),), {}


CASES = (
    make_case("lstm_classifier", LSTMClassifier, tokens(9, 61), {"rnn", "int-input"}),
    make_case("gru_tagger", GRUTagger, features(11, 12), {"rnn", "multi-output", "side-exits"}),
    make_case("gru_sequence_first", SequenceFirstGRU, _sequence_first, {"rnn", "batch-dim-1"}),
    make_case("gru_cell_loop", CellLoop, features(6, 10), {"rnn", "shared", "no-symbolic-trace"}),
)
