"""Time a distillation step alone and beside another process, with torch's threads and ours.

A convolutional model's step of about 0.3 s with one thread is timed

- with torch's own number of threads, which spin while they wait;
- as `fxelastic.distill` chooses, in a process whose environment does not set threads;
- the same with ``OMP_WAIT_POLICY=PASSIVE``, as the Makefile sets it;

each alone, beside a loop of plain Python, and beside torch's product of matrices with two threads.
Bar: beside one process, a step of the last two takes at most 2.5 times as long as alone. The time
of a step is the median after the choice; the trials do not count, since they hardly matter in a run
of hours.

    python benchmarks/train_threads.py                 # about 3 minutes on 2 cores
    python benchmarks/train_threads.py --out result.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BAR = 2.5
WAYS = {
    "torch's threads": ("torch", {}),
    "chosen": ("chosen", {}),
    "chosen, passive": ("chosen", {"OMP_WAIT_POLICY": "PASSIVE"}),
}
BESIDE = {
    "alone": None,
    "a Python loop": "while True: pass",
    "products with 2 threads": (
        "import torch; torch.set_num_threads(2); a = torch.randn(512, 512)\nwhile True: a @ a"
    ),
}
# Environment variables that a user may have set, which would make the ways equal.
_SETTINGS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Earlier steps are trials of two numbers of threads, with some margin.
_SETTLED = 16


def main() -> int:
    """Time all, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6, help="seconds of each run")
    parser.add_argument("--batch", type=int, default=20, help="images of a step")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    parser.add_argument("--way", choices=sorted({w for w, _ in WAYS.values()}), help="internal")
    args = parser.parse_args()
    if args.way is not None:
        print(json.dumps(steps(args.way, args.batch, args.seconds)))
        return 0
    result = {name: compare(name, args) for name in WAYS}
    met = all(
        row["ratio"] <= BAR
        for name, rows in result.items()
        if WAYS[name][0] == "chosen"
        for row in rows.values()
    )
    print(f"bar: at most {BAR:g} times as long as alone where chosen: {'met' if met else 'missed'}")
    if args.out is not None:
        args.out.write_text(json.dumps({"rows": result, "bar": BAR, "met": met}, indent=1) + "\n")
    return 0 if met else 1


def compare(name: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Time one way, alone and beside each process."""
    way, settings = WAYS[name]
    outside = {k: v for k, v in os.environ.items() if k not in _SETTINGS}
    argv = ["--way", way, "--batch", str(args.batch), "--seconds", str(args.seconds)]
    rows: dict[str, dict[str, Any]] = {}
    for company, code in BESIDE.items():
        with running(code, outside):
            done = subprocess.run(
                [sys.executable, __file__, *argv],
                env={**outside, **settings},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        found = json.loads(done.stdout.splitlines()[-1])
        found["ratio"] = found["median_s"] / rows.get("alone", found)["median_s"]
        rows[company] = found
        print(
            f"{name:16} {company:24} {found['median_s']:7.3f} s a step (least "
            f"{found['least_s']:.3f}, most {found['most_s']:.3f}, {found['n_steps']} steps), "
            f"{found['threads']} threads, {found['ratio']:5.2f} x alone",
            flush=True,
        )
    return rows


@contextlib.contextmanager
def running(code: str | None, environment: dict[str, str]) -> Iterator[None]:
    """Another process, for a while."""
    if code is None:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        time.sleep(2)
        yield
    finally:
        other.kill()
        other.wait()


def steps(way: str, batch: int, seconds: float) -> dict[str, Any]:
    """Distil for a while, and time steps after the number of threads is chosen."""
    import torch

    import fxelastic
    from benchmarks.train_models import SmallResNet
    from fxelastic import threads
    from fxelastic.train import Callback, StepReport

    class Clock(Callback):
        """Records the end of each step, and stops the run when the time is over."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.threads = 0

        def on_step(self, report: StepReport) -> None:
            self.times.append(time.perf_counter())
            self.threads = torch.get_num_threads()
            settled = self.times[skipped:]
            if len(settled) > 2 and settled[-1] - settled[0] > seconds:
                raise KeyboardInterrupt

    skipped = 1 if way == "torch" else _SETTLED
    if way == "torch":
        # torch's own number of threads, which spin.
        threads._waiting_asleep = lambda _: contextlib.nullcontext()
    torch.manual_seed(0)
    images = torch.randn(batch, 1, 32, 32)
    supernet = fxelastic.expand(
        SmallResNet(widths=(32, 64, 96)).eval(), 0.3, example_inputs=images[:2]
    )
    clock = Clock()
    options: dict[str, Any] = {"steps": 10**6, "callbacks": (clock,)}
    if way == "torch":
        options["threads"] = torch.get_num_threads()
    with contextlib.suppress(KeyboardInterrupt):
        fxelastic.distill(supernet, [(images,)], **options)
    settled = [b - a for a, b in pairwise(clock.times[skipped:])]
    return {
        "median_s": statistics.median(settled),
        "least_s": min(settled),
        "most_s": max(settled),
        "n_steps": len(settled),
        "threads": clock.threads,
    }


if __name__ == "__main__":
    raise SystemExit(main())
