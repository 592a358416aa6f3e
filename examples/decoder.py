"""Make a decoder of transformers elastic, and generate tokens with several of its subnets.

The model is a small GPT-2 with random weights, so the tokens mean nothing.

    python examples/decoder.py --out build/decoder
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

import fxelastic
from fxelastic import edge

N_LAYERS, HEADS, HEAD_DIM = 4, 4, 8


class Step(nn.Module):
    """A step of a causal language model, with its cache as an argument and a result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Compute the logits of the new tokens, and the keys and values of all tokens."""
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(past),
            use_cache=True,
        )
        return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]


def generate(bundle: edge.Bundle, arch: Any, prompt: Any, n_tokens: int) -> list[int]:
    """Generate tokens greedily."""
    past, ids, tokens = bundle.first_cache(arch), prompt, []
    with edge.Executor(bundle) as executor:
        for _ in range(n_tokens):
            n_past = next(iter(past.values())).shape[2]
            mask = np.ones((1, n_past + ids.shape[1]), np.int64)
            results = executor.run(arch, {"input_ids": ids, "attention_mask": mask, **past})
            past = bundle.next_cache(results)
            ids = results[0][:, -1:].argmax(-1)
            tokens.append(int(ids[0, 0]))
    return tokens


def main(argv: list[str] | None = None) -> int:
    """Expand, export, and generate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/decoder"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=100, n_positions=128, n_embd=HEADS * HEAD_DIM, n_layer=N_LAYERS, n_head=HEADS
    )
    step = Step(GPT2LMHeadModel(config)).eval()
    past = torch.randn(2, HEADS, 5, HEAD_DIM)
    cache = {0: "batch", 2: "past"}
    supernet = fxelastic.expand(
        step,
        gamma=0.25,
        example_inputs={
            "input_ids": torch.randint(0, 100, (2, 3)),
            "attention_mask": torch.ones(2, 8, dtype=torch.int64),
            "past": [(past, past) for _ in range(N_LAYERS)],
        },
        dynamic_shapes={
            "input_ids": {0: "batch", 1: "new"},
            "attention_mask": {0: "batch", 1: "past + new"},
            "past": [(cache, cache)] * N_LAYERS,
        },
    )
    print(supernet)
    bundle = fxelastic.export(supernet, args.out)
    prompt = np.array([[1, 2, 3]])
    for arch in (bundle.space.original, *bundle.space.sample(3)):
        print(arch, *generate(bundle, arch, prompt, 16))
    return 0


if __name__ == "__main__":
    sys.exit(main())
