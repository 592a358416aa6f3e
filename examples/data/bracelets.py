"""Generated texts of beads: which of eight colours is the most frequent inside clasps?

A text opens and closes a clasp some times; tokens outside clasps are distractors. To tell the
class, a model must relate each bead to the clasps before it, and must not look at padding. The
same seed gives the same texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

PADDING, OPEN, CLOSE = 0, 1, 2
N_COLOURS = 8
N_TOKENS = 3 + N_COLOURS
LENGTH = 32


def bracelets(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Texts of 16 to 32 tokens.

    Args:
        n: Number of texts.
        seed: Seed of the random numbers.

    Returns:
        Tokens ``(n, 32)``, padded with 0; whether each position holds one, ``(n, 32)``; and classes
        ``(n,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((n, LENGTH), PADDING)
    classes = torch.zeros(n, dtype=torch.int64)
    for i in range(n):
        classes[i] = _write(tokens[i], generator)
    return tokens, tokens != PADDING, classes


def _write(text: Tensor, generator: torch.Generator) -> int:
    """Fill one text, and return the only colour that is the most frequent inside clasps."""
    while True:
        length = int(torch.randint(LENGTH // 2, LENGTH + 1, (), generator=generator))
        draws = torch.randint(0, N_COLOURS, (length,), generator=generator)
        turns = torch.rand(length, generator=generator) < 0.25
        inside = False
        counts = torch.zeros(N_COLOURS, dtype=torch.int64)
        for k in range(length):
            if turns[k]:
                inside = not inside
                text[k] = OPEN if inside else CLOSE
            else:
                text[k] = 3 + draws[k]
                counts[draws[k]] += inside
        text[length:] = PADDING
        best = counts.topk(2)
        if best.values[0] > best.values[1]:
            return int(best.indices[0])
