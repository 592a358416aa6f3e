"""Generated texts about topics, and the small transformers that benchmarks on them start from.

A text of 16 to 32 words has words of eight topics, neutral words, and negations, each of one topic,
whose words don't count then, wherever they are in the text. The class of a text is the topic of
most words that count. A count of all words is right in about two of three texts; the rest needs
attention, and texts with a clear topic and no negation need little of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.fashion import Batches, Split, accuracy, train

LENGTH, N_CLASSES = 32, 8
N_OF_A_TOPIC, N_NEUTRAL = 12, 60
# Words in their order: padding, the negations of the topics, the words of the topics, neutral ones.
FIRST_NEGATION = 1
FIRST_TOPICAL = FIRST_NEGATION + N_CLASSES
FIRST_NEUTRAL = FIRST_TOPICAL + N_CLASSES * N_OF_A_TOPIC
N_WORDS = FIRST_NEUTRAL + N_NEUTRAL
WIDTH, DEPTH, N_HEADS = 64, 6, 4
N_TRAIN, N_VALIDATION, N_TEST = 20_000, 20_000, 10_000
EPOCHS, BATCH = 6, 128


@dataclass(frozen=True)
class Topics:
    """The data: words ``(n, 32)``, padded with 0, and classes ``(n,)``."""

    train: Split
    validation: Split
    test: Split

    @classmethod
    def generate(cls) -> Topics:
        """Always the same texts."""
        sizes = (N_TRAIN, N_VALIDATION, N_TEST)
        return cls(*(texts(n, np.random.default_rng(seed)) for seed, n in enumerate(sizes)))


def texts(n: int, rng: np.random.Generator) -> Split:
    """Texts with one topic that has more words than any other.

    Args:
        n: Number of texts.
        rng: Random numbers.
    """
    words, classes = _texts(n + n // 2, rng)
    if len(words) < n:
        return texts(n, rng)
    return words[:n], classes[:n]


def _texts(n: int, rng: np.random.Generator) -> Split:
    shape = (n, LENGTH)
    inside = np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH + 1, (n, 1))
    mainly = rng.random(shape) < rng.uniform(0.15, 0.6, (n, 1))
    of = np.where(mainly, rng.integers(0, N_CLASSES, (n, 1)), rng.integers(0, N_CLASSES, shape))
    words = FIRST_NEUTRAL + rng.integers(0, N_NEUTRAL, shape)
    draws = rng.random(shape)
    topical, negating = draws < 0.5, draws >= 0.95
    of_topics = FIRST_TOPICAL + of * N_OF_A_TOPIC + rng.integers(0, N_OF_A_TOPIC, shape)
    words = np.where(topical, of_topics, words)
    words = np.where(negating, FIRST_NEGATION + of, words) * inside
    about = of[..., None] == np.arange(N_CLASSES)
    negated = (about & (negating & inside)[..., None]).any(1)
    totals = (about & (topical & inside)[..., None]).sum(1) * ~negated
    ordered = np.sort(totals, axis=1)
    clear = ordered[:, -1] > ordered[:, -2]
    return torch.from_numpy(words[clear]), torch.from_numpy(totals[clear].argmax(1))


class Encoder(nn.Module):
    """A transformer with a mean over all words except padding: 0.3 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_WORDS, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, N_HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, N_CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        padding = words == 0
        x = self.embedding(words) + self.position
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        weights = (~padding)[..., None].to(x.dtype)
        return self.head((self.norm(x) * weights).sum(1) / weights.sum(1))


def original(seed: int, data: Topics, folder: Path) -> Encoder:
    """The trained network of a seed; it is trained if the folder doesn't have its weights."""
    path = folder / f"topics-{seed}.safetensors"
    torch.manual_seed(seed)
    model = Encoder()
    if path.exists():
        safetensors.torch.load_model(model, path)
    else:
        train(model, Batches(data.train, BATCH, seed, augment=False), EPOCHS)
        safetensors.torch.save_model(model, path)
        print(f"trained {path.name}: {accuracy(model.eval(), data.validation):.2%}", flush=True)
    return model.eval()
