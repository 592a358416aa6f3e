"""Measure that serving tells long inputs from a load of the device.

    python benchmarks/serve_sizes.py --out result.json

A text encoder with random weights is exported with a sequence length that varies, profiled at
several lengths, and served with requests of 16 to 256 tokens in random order:

- on the idle machine (bar: no switch);
- beside as many competing processes as the machine has cores, and one more (bar: a switch).

The budget is 1.3 times the best subnet's mean latency over these lengths. Beside the ratio r of
both phases, the result has the ratio to the mean, which would be r without estimates at the
requests' own sizes. Takes about two minutes. The machine must be otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fxelastic
from benchmarks.competitors import competitors
from fxelastic import edge
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.edge.serving.monitor import Observation
from fxelastic.edge.serving.runtime import Runtime
from fxelastic.edge.synthetic_inputs import random_inputs

CORES = os.cpu_count() or 1
SHORTEST, LONGEST = 16, 256
BUDGET = 1.3
WORDS, WIDTH, LAYERS = 1000, 256, 6


class Encoder(nn.Module):
    """A text encoder that returns a vector for each text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.randn(2 * LONGEST, WIDTH))
        layers = [
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True)
            for _ in range(LAYERS)
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        return self.layers(x).mean(1)


def make(folder: Path) -> edge.Bundle:
    """Export the encoder."""
    torch.manual_seed(0)
    supernet = fxelastic.expand(
        Encoder().eval(),
        0.2,
        example_inputs=torch.randint(0, WORDS, (1, 64)),
        dynamic_shapes={"ids": {0: "batch", 1: "seq"}},
    )
    return fxelastic.export(supernet, folder, verify=False)


def pool_of(
    bundle: edge.Bundle, table: edge.LatencyTable, lengths: Sequence[int], n: int = 60
) -> SubnetPool:
    """Subnets with their mean latency; the slower, the more accurate."""
    sizes = [{"seq": length} for length in lengths]
    mean = table.mean_over(sizes)
    archs = dict.fromkeys([bundle.space.original, *bundle.space.sample(n, 0)])
    costs = {arch: mean.predict(arch) for arch in archs}
    entries = [PoolEntry(a, c["latency_ms"], c["latency_ms"], costs=c) for a, c in costs.items()]
    return SubnetPool.of(bundle.digest, entries, sizes=sizes)


def phase(
    bundle: edge.Bundle,
    runtime: Runtime,
    lengths: Sequence[int],
    seconds: float,
    seen: list[Observation],
) -> dict[str, Any]:
    """Send requests for some time."""
    inputs = {n: random_inputs(bundle, 1, sizes={"seq": n}) for n in sorted(set(lengths))}
    before, n_seen = runtime.status().n_switches, len(seen)
    end_s = time.monotonic() + seconds
    i = 0
    while time.monotonic() < end_s:
        runtime.infer(**inputs[lengths[i % len(lengths)]])
        i += 1
    time.sleep(0.2)
    found = [o for o in seen[n_seen:] if not o.first and o.estimated_ms]
    ratios = [o.actual_ms / o.estimated_ms for o in found if o.estimated_ms]
    return {
        "n_requests": i,
        "n_switches": runtime.status().n_switches - before,
        "median_r": median(ratios),
        "r_of_lengths": _by_length(found, ratios),
        "r_to_the_mean_of_lengths": _by_length(
            found, [o.actual_ms / o.candidate.ms for o in found]
        ),
    }


def _by_length(found: Sequence[Observation], ratios: Sequence[float]) -> dict[str, float]:
    """The median ratio of requests of some lengths."""
    edges = np.linspace(SHORTEST, LONGEST + 1, 5).astype(int)
    groups: dict[str, list[float]] = {}
    for low, high in pairwise(edges):
        groups[f"{low} to {high - 1}"] = [
            ratio
            for observation, ratio in zip(found, ratios, strict=True)
            if low <= (observation.sizes or {}).get("seq", 0) < high
        ]
    return {name: median(values) for name, values in groups.items() if values}


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make and profile the bundle, and serve both phases."""
    bundle = make(work / "bundle")
    table = edge.profile(
        bundle,
        sizes={"seq": (SHORTEST, 64, LONGEST)},
        threads=args.threads,
        time_budget_s=args.profile_seconds,
    )
    rng = random.Random(args.seed)
    lengths = [rng.randint(SHORTEST, LONGEST) for _ in range(1000)]
    pool = pool_of(bundle, table, lengths)
    best = max(pool, key=lambda entry: entry.accuracy)
    seen: list[Observation] = []
    edge.prepare(bundle, pool, table, mode="assembled")
    phases: dict[str, Any] = {}
    with edge.serve(
        *(bundle, table, pool),
        budget_ms=BUDGET * best.latency_ms,
        mode="assembled",
        threads=args.threads,
        check_every_s=None,
        on_tick=lambda situation, decision: seen.extend(situation.load.fresh),
    ) as runtime:
        phases["idle"] = phase(bundle, runtime, lengths, args.seconds, seen)
        with competitors() as load:
            load.set(CORES + 1)
            phases["loaded"] = phase(bundle, runtime, lengths, args.seconds, seen)
        events = [str(event) for event in runtime.events if event.kind == "switched"]
    error = table.error("assembled")
    return {
        "budget_ms": BUDGET * best.latency_ms,
        "n_processes": CORES + 1,
        "table_error": None if error is None else error.to_json(),
        "phases": phases,
        "switches": events,
        "met": phases["idle"]["n_switches"] == 0 and phases["loaded"]["n_switches"] > 0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each phase")
    parser.add_argument("--profile-seconds", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="the file for the result, as JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        result = measure(args, Path(work))
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
