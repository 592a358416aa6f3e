"""An elastic transformer: two inputs, one of them a mask, from training to a search on its bundle.

    python examples/text_classification.py

trains a small encoder on generated texts (`data/bracelets.py`), expands it, trains its branches,
exports a bundle, and finds the best subnets for three latency budgets without torch. It takes a few
minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data.bracelets import LENGTH, N_COLOURS, N_TOKENS, bracelets
from torch import Tensor, nn
from torch.nn import functional as F

import fxelastic
from fxelastic import edge

Batches = list[tuple[dict[str, Tensor], Tensor]]


class Layer(nn.Module):
    """Self-attention without padding, and an MLP."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, length, 3, self.n_heads, width // self.n_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class Classifier(nn.Module):
    """An encoder with a mean over all tokens except padding."""

    def __init__(self, width: int = 64, depth: int = 6, n_heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_TOKENS, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, N_COLOURS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids) + self.position
        for layer in self.layers:
            x = layer(x, attention_mask)
        weights = attention_mask[..., None].to(x.dtype)
        return self.head((self.norm(x) * weights).sum(1) / weights.sum(1))


def batches(n: int, seed: int, size: int = 100) -> Batches:
    """Texts as batches for training: inputs by name, and the target."""
    tokens, mask, classes = bracelets(n, seed)
    return [
        ({"input_ids": tokens[part], "attention_mask": mask[part]}, classes[part])
        for part in torch.arange(n).split(size)
    ]


def fit(model: nn.Module, data: Batches, epochs: int) -> None:
    """Train the model in the usual way, without this package."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(data))
    for _ in range(epochs):
        for inputs, target in data:
            optimizer.zero_grad()
            F.cross_entropy(model(**inputs), target).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> int:
    """Run all steps, and print the accuracy of each budget's subnet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/text"))
    parser.add_argument("--texts", type=int, default=12_000)
    parser.add_argument(
        "--epochs", type=int, default=12, help="epochs of the model; a third for each stage"
    )
    parser.add_argument("--layers", type=int, default=6, help="layers of the model")
    parser.add_argument("--subnets", type=int, default=60, help="subnets that the search evaluates")
    parser.add_argument("--seconds", type=float, default=10, help="seconds to measure the device")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Classifier(depth=args.layers)
    data = batches(args.texts, seed=0)
    fit(model, data, args.epochs)

    inputs, _ = data[0]
    supernet = fxelastic.expand(model, gamma=0.25, example_inputs=inputs)
    print(supernet)
    stage = max(1, args.epochs // 3)
    fxelastic.distill(supernet, data, epochs=stage, progress=True)
    fxelastic.tune(supernet, data, epochs=stage, soft=0.9, progress=True)
    args.out.mkdir(parents=True, exist_ok=True)
    bundle = fxelastic.export(supernet, args.out / "bundle", force=True)

    # The rest runs on a device; arrays are named after the model's inputs.
    tokens, mask, classes = (array.numpy() for array in bracelets(500, seed=1))
    local = {"input_ids": tokens, "attention_mask": mask, "targets": classes}
    table = edge.profile(bundle, time_budget_s=args.seconds)
    budgets = ["60%", "80%", "100%"]
    # force: runs of such a small model are too short for an exact table on a busy machine.
    result = edge.search(bundle, table, local, budget=budgets, max_subnets=args.subnets, force=True)
    print(f"{'budget':>8} {'predicted':>10} {'accuracy':>9}   replaced")
    for budget, best in zip(budgets, result.bests, strict=True):
        replaced = sum(not branch.startswith("original@") for branch in best.arch)
        print(
            f"{budget:>8} {best.latency_ms:>7.2f} ms {best.held_out_accuracy:>9.1%}   "
            f"{replaced} of {len(best.arch)} branches"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
