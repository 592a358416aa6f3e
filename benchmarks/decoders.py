"""Greedy generation with GPT-2 and Llama of transformers, through every way to run a subnet.

Small configurations with random weights. The assembled original is compared with transformers'
own ``generate``, and sampled subnets with the same subnets in torch, assembled and paged. Tokens
may differ from the first step on at which two logits are nearly equal.

    python benchmarks/decoders.py                       # both families
    python benchmarks/decoders.py --family llama --layers 6 --subnets 10

It needs transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from fxelastic import Supernet, edge
from fxelastic.edge.executor import Executor
from fxelastic.spec import Arch

VOCABULARY = 500
# Logits whose difference is below this share of their spread are nearly equal.
_NEAR = 1e-4

Past = list[tuple[Tensor, Tensor]]
Run = Callable[[dict[str, Any]], list[np.ndarray[Any, Any]]]


class Step(nn.Module):
    """One step of a decoder of transformers, with its cache as tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: Past) -> tuple[Tensor, Past]:
        """The logits ``(N, new, vocabulary)``, and the keys and values of all tokens."""
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(past),
            use_cache=True,
        )
        return result.logits, [(x.keys, x.values) for x in result.past_key_values.layers]


def gpt2(n_layers: int) -> nn.Module:
    """GPT-2 of width 64."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=256, n_embd=64, n_layer=n_layers, n_head=8
    )
    return GPT2LMHeadModel(config)


def llama(n_layers: int) -> nn.Module:
    """Llama of width 64, with two query heads for each head of keys and values."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config)


FAMILIES = {"gpt2": gpt2, "llama": llama}


def built(family: str, n_layers: int, seed: int) -> Step:
    """A model whose weights are large enough that its tokens vary."""
    torch.manual_seed(seed)
    model = FAMILIES[family](n_layers).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    model.generation_config.eos_token_id = None
    return Step(model).eval()


def example(step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    """Example inputs of a step, and what may vary."""
    config = step.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shape = (2, heads, 5, config.hidden_size // config.num_attention_heads)
    n_layers = config.num_hidden_layers
    inputs = {
        "input_ids": torch.randint(0, VOCABULARY, (2, 3)),
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
        "past": [(torch.randn(shape), torch.randn(shape)) for _ in range(n_layers)],
    }
    cache = {0: "batch", 2: "past"}
    shapes = {
        "input_ids": {0: "batch", 1: "new"},
        "attention_mask": {0: "batch", 1: "past + new"},
        "past": [(cache, cache)] * n_layers,
    }
    return inputs, shapes


def generated(
    bundle: edge.Bundle, arch: Arch, prompt: np.ndarray[Any, Any], n_tokens: int, run: Run
) -> tuple[list[int], list[float]]:
    """The tokens of a greedy generation, and how far the best logit leads at each of them."""
    past, ids, tokens, margins = bundle.first_cache(arch), prompt, [], []
    for _ in range(n_tokens):
        length = ids.shape[1] + next(iter(past.values())).shape[2]
        mask = np.ones((1, length), np.int64)
        results = run({"input_ids": ids, "attention_mask": mask, **past})
        past, logits = bundle.next_cache(results), np.asarray(results[0])[0, -1]
        second, best = np.partition(logits, -2)[-2:]
        margins.append(float((best - second) / max(logits.std(), 1e-12)))
        ids = logits.argmax()[None, None]
        tokens.append(int(ids[0, 0]))
    return tokens, margins


def in_torch(supernet: Supernet, arch: Arch) -> Run:
    """Steps of a subnet in torch."""
    subnet = supernet.subnet(arch)

    def run(feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
        given = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in feeds.items()}
        ids, mask = given.pop("input_ids"), given.pop("attention_mask")
        flat = list(given.values())
        past = [(flat[2 * i], flat[2 * i + 1]) for i in range(len(flat) // 2)]
        with torch.no_grad():
            logits, present = subnet(input_ids=ids, attention_mask=mask, past=past)
        return [logits.numpy(), *(part.numpy() for pair in present for part in pair)]

    return run


def agree(found: list[int], expected: list[int], margins: list[float]) -> tuple[bool, int]:
    """Whether tokens agree up to the first near-tie, and how many are equal from the start."""
    equal = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), len(expected)
    )
    return equal == len(expected) or min(margins[: equal + 1]) < _NEAR, equal


def compared(family: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each subnet, the original first."""
    step = built(family, args.layers, args.seed)
    inputs, shapes = example(step)
    begin_s = time.perf_counter()
    supernet = fxelastic.expand(
        step, gamma=1.2 / args.layers, example_inputs=inputs, dynamic_shapes=shapes
    )
    expanded_s = time.perf_counter()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = fxelastic.export(supernet, Path(folder) / "bundle")
        exported_s = time.perf_counter()
        print(
            f"{family}: {len(supernet.partition.blocks)} blocks, {supernet.space}; "
            f"expanded in {expanded_s - begin_s:.0f} s, exported in {exported_s - expanded_s:.0f} s"
        )
        prompt = np.random.default_rng(args.seed).integers(0, VOCABULARY, (1, args.prompt))
        archs = [bundle.space.original, *bundle.space.sample(args.subnets, args.seed)]
        with Executor(bundle, threads=1) as executor:
            for arch in archs:
                path = edge.assemble(bundle, arch, Path(folder) / "subnet.onnx")
                session = onnxruntime.InferenceSession(path)
                runs: dict[str, Run] = {
                    "assembled": lambda feeds, session=session: session.run(None, feeds),
                    "paged": lambda feeds, arch=arch: executor.run(arch, feeds),
                }
                expected, margins = generated(
                    bundle, arch, prompt, args.tokens, in_torch(supernet, arch)
                )
                row: dict[str, Any] = {"family": family, "arch": str(arch)}
                for name, run in runs.items():
                    found, _ = generated(bundle, arch, prompt, args.tokens, run)
                    row[name], row[f"{name}_equal"] = agree(found, expected, margins)
                if arch == bundle.space.original:
                    with torch.no_grad():
                        ids = torch.from_numpy(prompt)
                        whole = step.model.generate(
                            ids, max_new_tokens=args.tokens, do_sample=False, pad_token_id=0
                        )
                    own = whole[0, prompt.shape[1] :].tolist()
                    found, _ = generated(bundle, arch, prompt, args.tokens, runs["assembled"])
                    row["transformers"], row["transformers_equal"] = agree(found, own, margins)
                row["n_tokens"], row["n_different"] = args.tokens, len(set(expected))
                rows.append(row)
    return rows


def main() -> int:
    """Print a row for each subnet; exit with 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--subnets", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=7, help="tokens of the prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = [row for family in args.family or FAMILIES for row in compared(family, args)]
    for row in rows:
        kept = {k: v for k, v in row.items() if k not in ("family", "arch")}
        print(row["family"], row["arch"], *(f"{k}={v}" for k, v in kept.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    same = all(row[k] for row in rows for k in ("assembled", "paged", "transformers") if k in row)
    print("all agree" if same else "some differ")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
