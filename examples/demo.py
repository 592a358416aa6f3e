"""From a trained model to a device that serves its best subnet, on real handwritten digits.

Run it with `make demo`. The small ResNet beside this file is trained already
(`examples/train_demo_model.py`). Stages: expand it to a supernet with merged, pruned and exiting
branches, distil and tune these, and export a bundle with 8-bit branches; then, without torch:
measure this device, search the best subnets for some latency budgets and cascades of early exits,
run them, serve while other programs load the device, and write a report.

Each stage writes its result to build/demo. A stage with a result is not run again, and training
resumes from its last checkpoint, so the demo can be interrupted at any time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data.digits import SIZE
from demo_network import Spoilt, digits, trained
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fxelastic
from fxelastic import edge, kinds
from fxelastic.edge.int8_branches import used
from fxelastic.spec.latency_table import LatencyTable

HERE = Path(__file__).resolve().parent
GAMMA = 0.3
N_BUDGETS, LEAST = 6, 0.1  # the smallest budget is a share of the original's latency
THREADS = 1
BATCH = 64  # images in a request, as in demo_device.py
TRIES = 3  # attempts to measure a device whose speed changes meanwhile
COMMAND = [sys.executable, "-m", "fxelastic"]
HELD_OUT = 0.5  # of the images to search with: the loss of cascades is bounded on these
NOTE = (
    "This was a short run: {epochs} epochs of distillation and tuning, and {n_subnets} subnets "
    "tried for each budget. Longer ones find better subnets."
)


def main() -> int:
    """Run every stage without a result; print the table and the report's path."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument(
        "--quick", action="store_true", help="few branches and little data, for tests"
    )
    args = parser.parse_args()
    demo = Demo(args.out, quick=args.quick)
    try:
        demo.run()
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


class Demo:
    """The stages of the demo, with their results in a folder."""

    def __init__(self, out: Path, *, quick: bool) -> None:
        self.out = out
        self.quick = quick
        self.epochs = (1, 1) if quick else (3, 2)
        self.max_loss = "0.06" if quick else "0.02,0.05"  # of cascades
        self.n_subnets = 8 if quick else 30
        self.kinds = (
            (kinds.Merged(spans=(2,)), kinds.Exit(every=5))
            if quick
            else (kinds.Merged(), kinds.Pruned(), kinds.Exit())
        )
        self.began = time.monotonic()

    def run(self) -> None:
        """Run every stage without a result."""
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        data = digits()
        if self.quick:
            kept = {"train": 100, "validation": 120, "test": 50}
            data = {name: TensorDataset(*data[name][:n]) for name, n in kept.items()}
        self.stage("expand, distil, tune, export", "bundle", lambda: self.supernet(data))
        self.stage("data for the device", "test.npz", lambda: self.data(data))
        self.find_winners()
        device = [sys.executable, str(HERE / "demo_device.py"), str(self.out)]
        seconds = "1" if self.quick else "5"
        self.stage(
            "serve under load", "trace.jsonl", lambda: run([*device, "serve", "--seconds", seconds])
        )
        self.say("write the report")
        run([*COMMAND, "report", str(self.out), "--quiet"])
        print(table_of(json.loads((self.out / "measured.json").read_text())))
        print(f"\nreport: {self.out / 'report.html'}\nplot:   {self.out / 'tradeoff.png'}")

    def find_winners(self) -> None:
        """Measure, search and run; repeat if the device's speed has changed by the end."""
        for i in range(TRIES):
            self.measure_and_search()
            speed = self.speed()
            if self.quick or abs(speed - 1) <= 0.1:
                return
            self.say(f"  the device now takes {speed:.0%} of the time that was measured for it")
            if i % 2 == 0:
                # Perhaps only for a moment.
                (self.out / "measured.json").unlink()
            elif i < TRIES - 1:
                self.forget_the_device()
        self.measure_and_search()

    def measure_and_search(self) -> None:
        """The device's part: measure the branches, search, run the subnets found."""
        bundle = str(self.out / "bundle")
        threads, batch = ["--threads", str(THREADS)], ["--batch-size", str(BATCH)]
        counts = (5, 6, 4) if self.quick else (10, 16, 8)
        names = ("--samples", "--subnets", "--held-out")
        runs = [word for pair in zip(names, map(str, counts), strict=True) for word in pair]
        self.stage(
            "measure the device",
            "bundle.latency.json",
            lambda: run([*COMMAND, "profile", bundle, *threads, *batch, *runs]),
        )
        budgets = [part for budget in self.budgets() for part in ("--budget", budget)]
        options = ["--data", str(self.out / "search.npz"), "--held-out", str(HELD_OUT), *threads]
        options += ["--max-loss", self.max_loss, "--max-subnets", str(self.n_subnets)]
        self.stage(
            "search subnets and cascades",
            "search.json",
            lambda: run(
                # --force: runs of a small model are too short for an exact table on a busy machine,
                # and the subnets found are measured afterwards.
                [*COMMAND, "search", bundle, *options, *budgets, "--json", "--force"],
                self.out / "search.json",
            ),
        )
        note = NOTE.format(epochs=" and ".join(map(str, self.epochs)), n_subnets=self.n_subnets)
        device = [sys.executable, str(HERE / "demo_device.py"), str(self.out), "measure"]
        device += ["--note", note]
        self.stage("run the winners", "measured.json", lambda: run(device))

    def budgets(self) -> list[str]:
        """Shares of the original's latency; the least is enough for the quickest subnet."""
        table = LatencyTable.load(self.out / "bundle.latency.json")
        bundle = used(edge.load(self.out / "bundle"), table, "assembled")
        quickest = bundle.space.min_cost_arch(table.costs("assembled"))
        share = table.predict_ms(quickest) / table.predict_ms(bundle.space.original)
        shares = np.geomspace(min(1.0, max(LEAST, 1.02 * share)), 1.0, N_BUDGETS)
        return [f"{100 * share:.3g}%" for share in shares]

    def speed(self) -> float:
        """The original's latency when the winners ran, as a share of its latency in the table.

        The speed of a laptop on battery, or of a shared machine, may change within a minute.
        """
        original = json.loads((self.out / "measured.json").read_text())["original"]
        return float(original["measured_ms"] / original["predicted_ms"])

    def forget_the_device(self) -> None:
        """Delete the results that depend on its speed, the latest first."""
        last_first = ("trace.jsonl", "measured.json", "search.json", "bundle.pool.json")
        for name in (*last_first, "bundle.latency.json"):
            (self.out / name).unlink(missing_ok=True)
        for path in self.out.glob("subnet-*.onnx"):
            path.unlink()

    def stage(self, name: str, result: str, work: Callable[[], None]) -> None:
        """Run a stage unless its result exists."""
        if (self.out / result).exists():
            self.say(f"{name}: done already")
            return
        self.say(name)
        work()

    def say(self, text: str) -> None:
        """Print a line with the elapsed time."""
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"[{minutes}:{seconds:02}] {text}", file=sys.stderr, flush=True)

    def data(self, data: dict[str, TensorDataset]) -> None:
        """Write the device's data: images to search with, and others to test on."""
        for name, part in (("search", "validation"), ("test", "test")):
            images, classes = zip(*Spoilt(data[part], seed=1), strict=True)
            x, targets = torch.stack(images).numpy(), torch.stack(classes).numpy()
            write_npz(self.out / f"{name}.npz", x=x, targets=targets)

    def supernet(self, data: dict[str, TensorDataset]) -> None:
        """The compiler's part: from the model to a bundle."""
        calibration = typical(data["train"])
        supernet = fxelastic.expand(
            trained(),
            GAMMA,
            example_inputs=torch.zeros(2, 1, SIZE, SIZE),
            kinds=self.kinds,
            calibration=calibration,
        )
        print(f"{supernet.partition}\n\n{supernet}\n", file=sys.stderr)
        options: dict[str, Any] = {"checkpoints": self.out / "checkpoints", "warmup": 0.05}
        options["progress"] = True
        batches = loader(data)
        self.say("  distil: every branch learns what the blocks that it replaces compute")
        fxelastic.distill(supernet, batches, epochs=self.epochs[0], lr=4e-3, **options)
        self.say("  tune: subnets of several branches learn the classes")
        fxelastic.tune(supernet, batches, epochs=self.epochs[1], lr=5e-4, soft=0.9, **options)
        self.say("  export, with an 8-bit branch for each branch")
        int8 = fxelastic.Int8(calibration, formats=("u8s8",))
        fxelastic.export(supernet, self.out / "bundle", quantise=int8)
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)


def loader(data: dict[str, TensorDataset]) -> DataLoader[Any]:
    """Batches to train on."""
    return DataLoader(Spoilt(data["train"]), 50, shuffle=True, drop_last=True)


def typical(data: TensorDataset) -> list[Tensor]:
    """Batches to calibrate with, of at most 200 images."""
    images = [image for image, _ in Spoilt(TensorDataset(*data[:200]), seed=2)]
    return list(torch.stack(images).split(50))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to a file in one step."""
    temporary = path.with_name(f"tmp-{path.name}")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def run(command: list[str], stdout: Path | None = None) -> None:
    """Run a program, and exit if it fails."""
    if stdout is None:
        code = exit_code(command, subprocess.DEVNULL)
    else:
        temporary = stdout.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            code = exit_code(command, stream)
        if code == 0:
            temporary.replace(stdout)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def exit_code(command: list[str], stdout: Any) -> int:
    """Run a program; on Ctrl-C, which it gets, too, let it end by itself."""
    with subprocess.Popen(command, stdout=stdout) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.terminate()
            raise


def table_of(measured: dict[str, Any]) -> str:
    """The measured subnets and cascades as text."""
    whole = measured["original"]
    lines = [
        "",
        f"original: {whole['measured_ms']:.3f} ms, {whole['energy_mj']:.2f} mJ, "
        f"{whole['accuracy']:.1%} of test images",
        "",
        "budget   predicted   measured     energy   accuracy   blocks replaced",
    ]
    lines += [
        f"{row['budget']:>6}   {row['predicted_ms']:6.3f} ms   {row['measured_ms']:6.3f} ms"
        f"   {row['energy_mj']:5.2f} mJ   {row['accuracy']:8.1%}   {row['n_replaced']} of "
        f"{measured['n_blocks']}, {row['n_int8']} in 8 bits"
        for row in measured["subnets"]
    ]
    for row in measured["cascades"]:
        early = 1 - row["coverage"][-1]
        lines.append(
            f"cascade  {row['predicted_ms']:6.3f} ms           -   {row['energy_mj']:5.2f} mJ"
            f"   {row['accuracy']:8.1%}   {early:.0%} of the test images leave early"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
