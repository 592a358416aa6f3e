"""Measure the partitioner: its share of the capture time, and how it grows with the model.

Prints, in one run,

- for ResNet-50, ViT-B/16 and a Llama-like model: the time to partition as a ratio to the time to
  capture (bar: at most 0.15; aim: 0.05);
- for synthetic chains of 1k, 4k and 16k operators, plain and residual: the time to partition and
  its growth (bar: 16 times the operators in at most 24 times the time).

Only ratios mean something: the machine may be shared.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.partition_models import chain_graph, llama_like, resnet50, vit_b16
from fxelastic.backends import fusion_rules
from fxelastic.passes import capture, partition_graph

RATIO_BAR, RATIO_AIM, GROWTH_BAR = 0.15, 0.05, 24.0
SIZES = (1_000, 4_000, 16_000)


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Median seconds of several calls, with garbage collected before each."""
    seconds = []
    for _ in range(repeats):
        gc.collect()
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_ratio(name: str, model: nn.Module, example: Any, repeats: int) -> dict[str, Any]:
    """Time capture and partition of one model, alternately."""
    rules = fusion_rules("onnxruntime")
    traced = capture(model, example)
    partition_graph(traced, 0.1, rules)
    capture_s, partition_s = [], []
    for _ in range(repeats):
        capture_s.append(timed(lambda: capture(model, example), 1))
        partition_s.append(timed(lambda: partition_graph(traced, 0.1, rules), 1))
    ratio = statistics.median(partition_s) / statistics.median(capture_s)
    operators = sum(node.op.startswith("call") for node in traced.graph.nodes)
    return {
        "model": name,
        "operators": operators,
        "capture_s": statistics.median(capture_s),
        "partition_s": statistics.median(partition_s),
        "ratio": ratio,
    }


def measure_growth(kind: str, repeats: int) -> list[dict[str, Any]]:
    """Time the partition of synthetic chains of growing length."""
    rules = fusion_rules("onnxruntime")
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        traced = chain_graph(size, kind)
        seconds = timed(lambda traced=traced: partition_graph(traced, 0.01, rules), repeats)
        first = rows[0]["partition_s"] if rows else seconds
        rows.append(
            {"chain": kind, "operators": size, "partition_s": seconds, "growth": seconds / first}
        )
    return rows


def main() -> int:
    """Run both measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    torch.manual_seed(0)
    ratios = [
        measure_ratio(name, *build(), options.repeats)
        for name, build in (("resnet50", resnet50), ("vit_b16", vit_b16), ("llama", llama_like))
    ]
    growth = [row for kind in ("plain", "residual") for row in measure_growth(kind, 3)]
    if options.json:
        print(json.dumps({"ratios": ratios, "growth": growth}, indent=1))
        return 0
    print(f"partition / capture (bar {RATIO_BAR}, aim {RATIO_AIM})")
    for row in ratios:
        print(
            f"  {row['model']:9s} {row['operators']:5d} operators   "
            f"capture {row['capture_s']:6.2f} s   partition {row['partition_s']:6.3f} s   "
            f"ratio {row['ratio']:.3f}"
        )
    print(f"growth on chains (bar: {SIZES[-1] // SIZES[0]}x the operators in {GROWTH_BAR:.0f}x)")
    for row in growth:
        print(
            f"  {row['chain']:9s} {row['operators']:6d} operators   partition "
            f"{row['partition_s']:7.3f} s   {row['growth']:5.1f}x"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
