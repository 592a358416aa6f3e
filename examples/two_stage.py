"""Elastic segmentation and detection: a backbone trained on one data set, used on another.

As in AdaptiveNet §6, the backbone's new branches are distilled without labels, on the data that the
backbone was pretrained on; then the whole model is tuned on the task. The data is generated. A run
takes a few minutes on a laptop.

    python examples/two_stage.py segmentation
    python examples/two_stage.py detection
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from data.scenes import N_CLASSES, SHAPES, SIZE, STRIDE, centres, scenes, single_shapes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fxelastic
from fxelastic import Supernet
from fxelastic.train import range_accuracy


def conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
    )


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Backbone(nn.Module):
    """Three stages, which return features at strides 4, 8 and 16."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48)) -> None:
        super().__init__()
        self.stem = conv(3, widths[0], 2)
        self.stages = nn.ModuleList()
        n_in = widths[0]
        for width in widths:
            self.stages.append(
                nn.Sequential(conv(n_in, width, 2), Residual(width), Residual(width))
            )
            n_in = width

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Classifier(nn.Module):
    """The model that pretrains the backbone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(48, len(SHAPES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


class FeaturePyramid(nn.Module):
    """Adds coarse features to fine ones, and computes maps at stride 4."""

    def __init__(self, backbone: Backbone, outputs: dict[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList(nn.Conv2d(width, 32, 1) for width in (16, 32, 48))
        self.smooth = conv(32, 32)
        self.heads = nn.ModuleDict({name: nn.Conv2d(32, n, 1) for name, n in outputs.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        top: Tensor | None = None
        for feature, lateral in zip(reversed(features), reversed(self.lateral), strict=True):
            own = lateral(feature)
            top = own if top is None else own + F.interpolate(top, scale_factor=2.0)
        assert top is not None
        y = self.smooth(top)
        return {name: head(y) for name, head in self.heads.items()}


def segmentation_loss(output: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Cross-entropy of the pixels."""
    logits = F.interpolate(output["logits"], size=mask.shape[1:], mode="bilinear")
    return F.cross_entropy(logits, mask)


def mean_iou(output: dict[str, Tensor], mask: Tensor) -> float:
    """Mean intersection over union of the classes."""
    logits = F.interpolate(output["logits"], size=mask.shape[1:], mode="bilinear")
    found = logits.argmax(1)
    ious = []
    for kind in range(N_CLASSES):
        both = ((found == kind) & (mask == kind)).sum()
        either = ((found == kind) | (mask == kind)).sum()
        ious.append(float(both / either) if either else 1.0)
    return sum(ious) / len(ious)


def detection_loss(output: dict[str, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Loss of the classes of cells, few of which are centres, and of the sizes at centres."""
    classes, sizes = target
    weight = torch.tensor([0.04, *[1.0] * len(SHAPES)], device=classes.device)
    centre = (classes > 0)[:, None]
    error = ((output["sizes"] - sizes).abs() * centre).sum() / (2 * centre.sum()).clamp_min(1)
    return F.cross_entropy(output["logits"], classes, weight) + 2 * error


def f1_at_half(output: dict[str, Tensor], target: tuple[Tensor, Tensor]) -> float:
    """F1 of the boxes found; a box is right if its class is, and its IoU is above 0.5."""
    classes, sizes = target
    scores, found = output["logits"].softmax(1)[:, 1:].max(1)
    peaks = (scores == F.max_pool2d(scores[:, None], 5, 1, 2)[:, 0]) & (scores > 0.5)
    truth = [
        (i, int(classes[i, v, u]) - 1, box_at(sizes, i, v, u))
        for i, v, u in (classes > 0).nonzero().tolist()
    ]
    n_truth, n_found, right = len(truth), 0, 0
    for i, v, u in peaks.nonzero().tolist():
        n_found += 1
        mine = i, int(found[i, v, u]), box_at(output["sizes"], i, v, u)
        match = next((t for t in truth if t[:2] == mine[:2] and iou(t[2], mine[2]) > 0.5), None)
        if match is not None:
            right += 1
            truth.remove(match)
    return 2 * right / max(1, n_found + n_truth)


def box_at(sizes: Tensor, i: int, v: int, u: int) -> tuple[float, ...]:
    """The box at a cell: left, top, right and bottom, in pixels."""
    w, h = (sizes[i, :, v, u] * SIZE).tolist()
    x, y = (u + 0.5) * STRIDE, (v + 0.5) * STRIDE
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    w, h = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return w * h / max(1e-9, sum(areas) - w * h)


@dataclass(frozen=True)
class Task:
    """A task on scenes.

    Attributes:
        outputs: Channels of each of the model's results.
        loss: Function of (result, target).
        metric: Function of (result, target).
        name: Name of the metric.
    """

    outputs: dict[str, int]
    loss: Callable[[Any, Any], Tensor]
    metric: Callable[[Any, Any], float]
    name: str

    def batches(self, n: int, seed: int) -> list[Any]:
        """Scenes with targets, in batches of 20."""
        images, masks, boxes = scenes(n, seed)
        targets = (masks,) if "sizes" not in self.outputs else centres(boxes)
        batches = []
        for part in torch.arange(n).split(20):
            target = tuple(t[part] for t in targets)
            batches.append((images[part], target if len(target) > 1 else target[0]))
        return batches


TASKS = {
    "segmentation": Task({"logits": N_CLASSES}, segmentation_loss, mean_iou, "mean IoU"),
    "detection": Task(
        {"logits": N_CLASSES, "sizes": 2}, detection_loss, f1_at_half, "F1 at IoU 0.5"
    ),
}


def fit(model: nn.Module, batches: Any, loss: Any, epochs: int) -> None:
    """Train a model in the usual way, without this package."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=epochs * len(batches)
    )
    for _ in range(epochs):
        for inputs, target in batches:
            optimizer.zero_grad()
            loss(model(inputs), target).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def elastic_backbone(model: nn.Module) -> Supernet:
    """The model as a supernet in which only the backbone has new branches."""
    full = fxelastic.expand(model, gamma=0.25, example_inputs=torch.zeros(2, 3, SIZE, SIZE))
    blocks = full.partition.blocks

    def in_backbone(start: int, stop: int) -> bool:
        return all(block.name.startswith("backbone") for block in blocks[start:stop])

    kept = [b for b in full.branches.values() if b.frozen or in_backbone(b.start, b.stop)]
    return Supernet(full.partition, kept)


def run(task: Task, *, n: int = 1000, epochs: int = 15, seed: int = 0) -> list[list[float | None]]:
    """Run both stages and print the scores of subnets after each.

    Args:
        task: The task of the model.
        n: Number of images in each data set.
        epochs: Epochs of each training.
        seed: Seed of the weights and the data.

    Returns:
        For each stage, the mean scores of subnets from the cheapest range to the most expensive.
    """
    torch.manual_seed(seed)
    backbone = Backbone()
    d1 = DataLoader(TensorDataset(*single_shapes(n, seed)), 20, shuffle=True)
    fit(Classifier(backbone), d1, F.cross_entropy, epochs)
    model = FeaturePyramid(backbone, task.outputs)
    d2, test = task.batches(n, seed + 1), task.batches(max(50, n // 5), seed + 2)
    fit(model, d2, task.loss, epochs)

    supernet = elastic_backbone(model)
    print(supernet)
    original = supernet.space.original
    score = fxelastic.evaluate(supernet, [original], test, metric=task.metric)[original]
    print(f"\noriginal: {task.name} {score:.3f}\nsubnets, the cheapest range of FLOPs first:")
    stages = []

    def measure(name: str) -> None:
        buckets = range_accuracy(supernet, test[:5], metric=task.metric, n_subnets=6)
        stages.append([bucket.mean for bucket in buckets])
        means = " ".join("    -" if b.mean is None else f"{b.mean:.3f}" for b in buckets)
        print(f"  {name:22} {means}", flush=True)

    measure("untrained")
    fxelastic.distill(supernet, [x for x, _ in d1], epochs=epochs, lr=2e-3, seed=seed)
    measure("distilled on D1")
    fxelastic.tune(supernet, d2, loss=task.loss, epochs=epochs, lr=1e-3, seed=seed)
    measure("tuned on D2")
    return stages


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    run(TASKS[args.task], n=args.images, epochs=args.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
