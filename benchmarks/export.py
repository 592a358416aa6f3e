"""Measure the export: against one conversion for each branch, and the size of the bundle.

ResNet-50 at γ = 0.25 with the paper's branches {B0, B1, B2, B-1, B-2}. Prints, in one run,

- the time to write a bundle, without the comparison with torch, and the time to convert each
  branch with ``torch.onnx.export``: their ratio (bar: 4; aim: 8);
- the bundle's bytes over those of the model as one ONNX file.

The new branches' weights are disturbed first, as training would: untrained copies of the model's
own weights would be stored once.

Only ratios mean something. Both ways run on one core, and the ratio is of processor times: these
equal wall times on an idle machine, and are more reliable on a shared one. Both are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.partition_models import resnet50
from fxelastic import edge
from fxelastic.backends.onnxruntime.conversion import quiet
from fxelastic.backends.onnxruntime.pieces import Piece, branch_pieces
from fxelastic.backends.onnxruntime.teacher import make_inputs, teacher_values
from fxelastic.branches import branch_kinds
from fxelastic.ir.supernet import Supernet

RATIO_BAR, RATIO_AIM = 4.0, 8.0
KINDS = ("merged", "pruned")


def build(kinds: tuple[str, ...], gamma: float) -> Supernet:
    """The paper's supernet, with the kinds that this version has."""
    model, example = resnet50()
    supernet = fxelastic.expand(model, gamma, example_inputs=example, kinds=kinds)
    with torch.no_grad():
        for branch in supernet.branches.values():
            if not branch.frozen:
                for parameter in branch.module.parameters():
                    parameter.add_(1e-3 * torch.randn_like(parameter))
    return supernet


def export_alone(piece: Piece, path: Path) -> None:
    """Export one branch as a user would."""
    dynamic = tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in piece.dynamic)
    with quiet():
        torch.onnx.export(
            piece.module, piece.examples, path, dynamo=True, dynamic_shapes=dynamic, verbose=False
        )


def measure(supernet: Supernet, folder: Path, limit: int | None) -> dict[str, Any]:
    """Export the supernet in both ways.

    Args:
        supernet: The supernet to export.
        folder: An empty folder.
        limit: The most branches to convert alone, to extrapolate from; all if None.
    """
    values = teacher_values(supernet, make_inputs(supernet.partition, 2, 0))
    pieces = branch_pieces(supernet, values)
    # The first export of a process also loads the exporter.
    export_alone(pieces[0], folder / "warm-up.onnx")
    start, start_cpu = time.perf_counter(), time.process_time()
    bundle = fxelastic.export(supernet, folder / "bundle", verify=False)
    at_once_s, at_once_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    step = 1 if limit is None else -(-len(pieces) // limit)
    alone = pieces[::step]
    start, start_cpu = time.perf_counter(), time.process_time()
    for i, piece in enumerate(alone):
        export_alone(piece, folder / f"{i}.onnx")
    share = len(alone) / len(pieces)
    alone_s, alone_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    model = edge.assemble(bundle, bundle.space.original, folder / "model.onnx")
    bundle_bytes = sum(file.size_bytes for file in bundle.files.values())
    return {
        "branches": len(pieces),
        "converted_alone": len(alone),
        "at_once_s": at_once_s,
        "alone_s": alone_s / share,
        "wall_ratio": alone_s / share / at_once_s,
        "at_once_cpu_s": at_once_cpu_s,
        "alone_cpu_s": alone_cpu_s / share,
        "ratio": alone_cpu_s / share / at_once_cpu_s,
        "conversion": bundle.manifest.backend.conversion,
        "bundle_bytes": bundle_bytes,
        "model_bytes": model.stat().st_size,
        "size_ratio": bundle_bytes / model.stat().st_size,
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gamma", type=float, default=0.25)
    parser.add_argument("--limit", type=int, help="most branches to convert alone")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kinds = tuple(kind for kind in KINDS if kind in branch_kinds())
    supernet = build(kinds, options.gamma)
    with tempfile.TemporaryDirectory() as name:
        row = {"kinds": kinds, **measure(supernet, Path(name), options.limit)}
    if options.json:
        print(json.dumps(row, indent=1))
        return 0
    print(f"ResNet-50, {row['branches']} branches (originals, {', '.join(kinds)})")
    print(
        f"  processor   at once {row['at_once_cpu_s']:6.1f} s   each alone "
        f"{row['alone_cpu_s']:6.1f} s   ratio {row['ratio']:.1f} "
        f"(bar {RATIO_BAR:g}, aim {RATIO_AIM:g})"
    )
    print(
        f"  wall        at once {row['at_once_s']:6.1f} s   each alone "
        f"{row['alone_s']:6.1f} s   ratio {row['wall_ratio']:.1f}"
    )
    print(
        f"  bundle {row['bundle_bytes'] / 1e6:.1f} MB   model {row['model_bytes'] / 1e6:.1f} MB   "
        f"ratio {row['size_ratio']:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
