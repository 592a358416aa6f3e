"""Capture a ResNet-50 and a ViT-B/16, cut them into blocks, and check that results stay the same.

It prints the blocks of both models and writes a report to build/partition.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from models import ResNet50, VisionTransformer
from torch import Tensor, nn

import fxelastic


@dataclass(frozen=True)
class Cut:
    """A model's partition, and whether its blocks give the model's results."""

    partition: fxelastic.Partition
    equal: bool

    @property
    def row(self) -> tuple[str, ...]:
        blocks = self.partition.blocks
        largest = max(block.n_params for block in blocks) / self.partition.n_params
        kinds = [block.kind for block in blocks]
        return (
            self.partition.model_name,
            f"{self.partition.n_params:,}",
            f"{self.partition.gamma:g}",
            str(len(blocks)),
            str(kinds.count("oversize")),
            str(kinds.count("glue")),
            f"{largest:.1%}",
            "yes" if self.equal else "NO",
        )


HEADER = ("model", "parameters", "gamma", "blocks", "oversize", "glue", "largest", "same output")


def cut(model: nn.Module, gamma: float, images: Tensor) -> Cut:
    """Partition a model, verify the result, and compare its output with the model's."""
    print(f"capturing {type(model).__name__} ...", file=sys.stderr, flush=True)
    partition = fxelastic.partition(model, gamma=gamma)
    partition.verify()
    with torch.no_grad():
        equal = torch.equal(partition(images), model(images))
    return Cut(partition, equal)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def write_report(cuts: Sequence[Cut], plot: Path | None, path: Path) -> None:
    rows = [HEADER, tuple("---" for _ in HEADER), *(c.row for c in cuts)]
    lines = ["# Two models as blocks", ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    if plot is not None:
        lines += ["", f"![Share of the parameters in each block]({plot.name})"]
    for c in cuts:
        lines += ["", f"## {c.partition.model_name}", "", "```text", str(c.partition), "```"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_plot(cuts: Sequence[Cut], path: Path) -> None:
    """Draw each block's share of its model's parameters, and the cap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4 * len(cuts)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cuts), squeeze=False)[:, 0]
    for axes, c in zip(panels, cuts, strict=True):
        partition = c.partition
        names = [block.name for block in partition.blocks]
        shares = [100 * block.n_params / partition.n_params for block in partition.blocks]
        axes.bar(range(len(names)), shares, color="#4878a8")
        axes.axhline(100 * partition.gamma, color="#c44e52", linestyle="--", label="cap (gamma)")
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_ylabel("% of the parameters")
        axes.set_title(partition.model_name)
        axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python partition.py --out x"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/partition"), help="folder to write to"
    )
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    # gamma is the largest share of the parameters that a block may hold: 0.25 admits ResNet-50's
    # largest bottleneck, 0.1 an encoder layer of ViT-B.
    cuts = []
    for model, gamma in ((ResNet50(), 0.25), (VisionTransformer(), 0.1)):
        cuts.append(cut(model.eval(), gamma, images))
        print(f"\n{cuts[-1].partition}\n", flush=True)

    print(aligned([HEADER, *(c.row for c in cuts)]))
    plot = out / "blocks.png" if find_spec("matplotlib") else None
    if plot is not None:
        write_plot(cuts, plot)
    report = out / "report.md"
    write_report(cuts, plot, report)
    print(f"\nreport: {report}")
    print(f"plot:   {plot}" if plot else "plot:   not drawn; install matplotlib to draw it")
    return 0 if all(c.equal for c in cuts) else 1


if __name__ == "__main__":
    sys.exit(main())
