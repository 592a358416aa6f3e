"""Train the network of `examples/demo.py`, and write its weights beside it, some minutes.

    python examples/train_demo_model.py

The weights have 16 bits, so that the file stays below 1 MB. The seed is fixed; another processor or
another version of torch may round differently, so that the weights are not the same bytes there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from demo_network import WEIGHTS, ResNet, Spoilt, digits, trained
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

BATCH = 50


def main() -> int:
    """Train, write the weights, and print the accuracy of what was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(0)
    data = digits()
    model = ResNet()
    batches = DataLoader(Spoilt(data["train"]), BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=args.epochs * len(batches)
    )
    for epoch in range(args.epochs):
        model.train()
        for images, classes in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), classes)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {args.epochs}: loss {loss.item():.3f}", flush=True)
    state = model.state_dict()
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in state.items()}, args.out
    )
    written = trained(args.out)
    for name in ("validation", "test"):
        images, classes = next(iter(DataLoader(Spoilt(data[name], seed=1), len(data[name]))))
        with torch.no_grad():
            right = (written(images).argmax(1) == classes).double().mean()
        print(f"{name}: {right:.1%} of {len(classes)} images")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
