"""From a model to a device that serves its best subnet, on real handwritten digits.

Run it with `make demo`. Stages: train a small ResNet, expand it to a supernet, distil and tune the
new branches, export a bundle; then, without torch: measure this device, search the best subnets for
ten latency budgets, run them, serve while the load changes, and write a report.

Each stage writes its result to build/demo. A stage with a result is not run again, and training
resumes from its last checkpoint, so the demo can be interrupted at any time.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from data.digits import N_CLASSES, SIZE, load
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fxelastic
from fxelastic import edge
from fxelastic.spec.latency_table import LatencyTable

HERE = Path(__file__).resolve().parent
GAMMA = 0.3
N_BUDGETS, LEAST, STEP = 10, 35, 5  # budgets, in percent of the original's latency
THREADS = 1
TRIES = 6  # attempts to measure a device whose speed changes meanwhile
COMMAND = [sys.executable, "-m", "fxelastic.cli"]
NOISE = 1.2  # standard deviations of the images
COPIES = 2  # of each validation and test image, each with its own shift and noise


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem of stride 2, followed by nine residual blocks."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        sizes = [width for width in widths for _ in range(depth)]
        strides = [2 if i and i % depth == 0 else 1 for i in range(len(sizes))]
        self.blocks = nn.Sequential(
            *[
                Block(n_in, n_out, stride)
                for n_in, n_out, stride in zip([widths[0], *sizes], sizes, strides, strict=False)
            ]
        )
        self.head = nn.Linear(widths[-1], N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Spoilt(Dataset[Any]):
    """Images shifted by up to four pixels, with noise: clean digits are too easy to compare models.

    With a seed, the shift and noise of an item are always the same; without one, they are drawn
    again in each epoch.
    """

    def __init__(self, data: TensorDataset, seed: int | None = None) -> None:
        self.data = data
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        chance = None
        if self.seed is not None:
            chance = torch.Generator().manual_seed(1000 * self.seed + index)
        image, digit = self.data[index]
        rows, columns = torch.randint(-4, 5, (2,), generator=chance).tolist()
        moved = image.roll((rows, columns), (1, 2))
        return moved + NOISE * torch.randn(moved.shape, generator=chance), digit


def main() -> int:
    """Run every stage without a result; print the table and the report's path."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument(
        "--quick", action="store_true", help="a smaller model and little data, for tests"
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
        self.began = time.monotonic()

    def run(self) -> None:
        """Run every stage without a result."""
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        data = load()
        if self.quick:
            kept = {"train": 100, "validation": 50, "test": 50}
            data = {name: TensorDataset(*data[name][:n]) for name, n in kept.items()}
        self.stage("data", "data.npz", lambda: self.data(data))
        self.stage("train the model", "model.safetensors", lambda: self.train(data))
        self.stage("expand, distil, tune, export", "bundle", lambda: self.supernet(data))
        self.find_winners()
        device = [sys.executable, str(HERE / "demo_device.py"), str(self.out)]
        seconds = "1" if self.quick else "6"
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
            if self.quick or abs(speed - 1) <= 0.05:
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
        threads = ["--threads", str(THREADS)]
        quick = ["--samples", "5", "--subnets", "6", "--held-out", "4"] if self.quick else []
        self.stage(
            "measure the device",
            "bundle.latency.json",
            lambda: run([*COMMAND, "profile", bundle, *threads, *quick]),
        )
        budgets = [part for budget in self.budgets() for part in ("--budget", budget)]
        options = ["--data", str(self.out / "search.npz"), "--held-out", "0", *threads]
        n_subnets = "12" if self.quick else "60"
        self.stage(
            f"search at {N_BUDGETS} budgets",
            "search.json",
            lambda: run(
                # --force: runs of a small model are too short for an exact table on a busy machine,
                # and the subnets found are measured afterwards.
                [*COMMAND, "search", bundle, *options, *budgets, "--json", "--force"]
                + ["--max-subnets", n_subnets],
                self.out / "search.json",
            ),
        )
        device = [sys.executable, str(HERE / "demo_device.py"), str(self.out), "measure"]
        self.stage("run the winners", "measured.json", lambda: run(device))

    def budgets(self) -> list[str]:
        """Shares of the original's latency; the least is enough for the quickest subnet."""
        bundle = edge.load(self.out / "bundle")
        table = LatencyTable.load(self.out / "bundle.latency.json")
        quickest = bundle.space.min_cost_arch(table.costs("assembled"))
        share = table.predict_ms(quickest) / table.predict_ms(bundle.space.original)
        least = max(LEAST, STEP * math.ceil(100 * share / STEP))
        shares = (min(least + STEP * i, 100) for i in range(N_BUDGETS))
        return [f"{share}%" for share in dict.fromkeys(shares)]

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
            copies = [Spoilt(data[part], seed) for seed in range(1, COPIES + 1)]
            images, digits = zip(*(item for copy in copies for item in copy), strict=True)
            x, targets = torch.stack(images).numpy(), torch.stack(digits).numpy()
            write_npz(self.out / f"{name}.npz", x=x, targets=targets)
        write_npz(self.out / "data.npz", n=np.array([len(part) for part in data.values()]))

    def model(self) -> ResNet:
        """The model, untrained."""
        return ResNet(depth=2 if self.quick else 3)

    def train(self, data: dict[str, TensorDataset]) -> None:
        """Train the model in the usual way."""
        model, batches = self.model(), loader(data)
        epochs = 1 if self.quick else 20
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 4e-3, total_steps=epochs * len(batches)
        )
        for epoch in range(epochs):
            model.train()
            for images, digits in batches:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images), digits)
                loss.backward()
                optimizer.step()
                schedule.step()
            self.say(f"  epoch {epoch + 1} of {epochs}: loss {float(loss):.3f}")
        temporary = self.out / "model.tmp"
        safetensors.torch.save_model(model, temporary)
        temporary.replace(self.out / "model.safetensors")

    def supernet(self, data: dict[str, TensorDataset]) -> None:
        """The compiler's part: from the model to a bundle."""
        model = self.model()
        safetensors.torch.load_model(model, self.out / "model.safetensors")
        example = torch.zeros(2, 1, SIZE, SIZE)
        kinds = ["merged", "pruned"]
        supernet = fxelastic.expand(model.eval(), GAMMA, example_inputs=example, kinds=kinds)
        print(supernet, file=sys.stderr)
        options: dict[str, Any] = {"checkpoints": self.out / "checkpoints", "warmup": 0.05}
        options["progress"] = True
        epochs = (1, 1) if self.quick else (16, 10)
        batches = loader(data)
        fxelastic.distill(supernet, batches, epochs=epochs[0], lr=4e-3, **options)
        fxelastic.tune(supernet, batches, epochs=epochs[1], lr=5e-4, soft=0.9, **options)
        fxelastic.export(supernet, self.out / "bundle")
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)


def loader(data: dict[str, TensorDataset]) -> DataLoader[Any]:
    """Batches to train on."""
    return DataLoader(Spoilt(data["train"]), 50, shuffle=True, drop_last=True)


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
    """The measured subnets as text."""
    original = measured["original"]
    lines = [
        "",
        f"original: {original['measured_ms']:.3f} ms, {original['accuracy']:.1%} of test images",
        "",
        "budget   predicted   measured    accuracy   blocks replaced",
    ]
    for row in measured["subnets"]:
        lines.append(
            f"{row['budget']:>6}   {row['predicted_ms']:6.3f} ms   {row['measured_ms']:6.3f} ms"
            f"   {row['accuracy']:8.1%}   {row['n_replaced']} of {measured['n_blocks']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
