"""The examples run, with little data; `tests/train/test_examples.py` has the two-stage ones."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fxelastic.cli import export_main, main
from tests import warm
from tests.cli.commands import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, *argv: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """An example in a process of its own."""
    return warm.run(str(EXAMPLES / name), *argv, cwd=Path.cwd(), timeout_s=timeout_s)


# What the demo says before it is interrupted.
MOMENTS = (
    "expand, distil, tune, export",
    "measure the device",
    "search subnets and cascades",
    "run the winners",
    " 0 other programs:",
    "write the report",
)


def test_the_demo_goes_all_the_way_though_interrupted_in_each_stage(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    for i, moment in enumerate(MOMENTS):
        said = interrupted_demo(tmp_path, moment, after_s=0.3 * (i % 3))
        assert "run the same command again to resume" in said, said
        # Python itself has one for a process that was only starting.
        if "other programs" in moment:
            assert "Traceback" not in said, said
    done = run("demo.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\s*\d+%.*$", done.stdout, re.MULTILINE)
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert len(rows) == len(measured["subnets"]) > 3, done.stdout
    assert str(tmp_path / "report.html") in done.stdout
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<img") >= 5
    assert "This was a short run" in page
    assert all(row["energy_mj"] > 0 for row in measured["subnets"])
    assert any(row["n_int8"] for row in measured["subnets"])
    assert (tmp_path / "trace.jsonl").exists()

    (tmp_path / "report.html").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    again = run("demo.py", "--quick", "--out", str(tmp_path), timeout_s=120)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == kept


def test_the_demo_network_is_trained_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from demo_network import WEIGHTS, Spoilt, digits, trained  # type: ignore[import-not-found]

    assert WEIGHTS.stat().st_size < 1_000_000
    images, classes = zip(*Spoilt(digits()["test"], seed=1), strict=True)
    with torch.no_grad():
        found = trained()(torch.stack(images)).argmax(1)
    assert (found == torch.stack(classes)).double().mean() > 0.94
    done = run("train_demo_model.py", "--epochs", "1", "--out", str(tmp_path / "w.safetensors"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^test: [\d.]+% of 400 images$", done.stdout, re.MULTILINE)
    assert (tmp_path / "w.safetensors").stat().st_size == WEIGHTS.stat().st_size


def interrupted_demo(folder: Path, moment: str, after_s: float) -> str:
    """Start the demo, and press Ctrl-C some time after it says something; what it said.

    As in a terminal, all processes of the demo get the signal.
    """
    reader, writer = os.pipe()
    demo = (str(EXAMPLES / "demo.py"), "--quick", "--out", str(folder))
    process = warm.start(*demo, cwd=Path.cwd(), stdout=writer, stderr=writer)
    os.close(writer)
    said = ""
    with open(reader) as lines:
        for line in lines:
            said += line
            if moment in line and not line.rstrip().endswith("done already"):
                break
        time.sleep(after_s)
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGINT)
        said += lines.read()
    process.join(120)
    assert process.exitcode == 130, said
    return said


@pytest.mark.parametrize(
    ("speeds", "measured"),
    [([1.03], [1]), ([1.2, 1.0], [2]), ([0.8, 0.8, 1.0], [2, 1]), ([2.0] * 4, [2, 2])],
)
def test_the_demo_measures_again_when_the_device_has_changed(
    speeds: list[float], measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from demo import Demo  # type: ignore[import-not-found]

    results = ("bundle.latency.json", "bundle.pool.json", "search.json")
    found: list[int] = []  # For each time that the device was measured, how often the winners were.
    left = iter(speeds)

    class OnADevice(Demo):  # type: ignore[misc]
        def measure_and_search(self) -> None:
            there = [(tmp_path / name).exists() for name in results]
            assert len(set(there)) == 1
            if not there[0]:
                found.append(0)
                for name in results:
                    (tmp_path / name).write_text("{}")
            if not (tmp_path / "measured.json").exists():
                found[-1] += 1
                original = {"predicted_ms": 2.0, "measured_ms": 2.0 * next(left)}
                (tmp_path / "measured.json").write_text(json.dumps({"original": original}))

    OnADevice(tmp_path, quick=False).find_winners()
    assert found == measured
    assert next(left, None) is None
    assert (tmp_path / "measured.json").exists()


def test_a_transformer_with_masks(tmp_path: Path) -> None:
    done = run(
        "text_classification.py",
        "--texts",
        "200",
        "--epochs",
        "1",
        "--layers",
        "3",
        "--subnets",
        "20",
        "--seconds",
        "1",
        "--out",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\s*\d+%.* ms .*%", done.stdout, re.MULTILINE)) == 3


def test_early_exits_of_real_images() -> None:
    pytest.importorskip("sklearn")
    done = run("early_exits.py", "--epochs", "1", "--images", "200")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^stage-\d: 1 epochs", done.stdout, re.MULTILINE)) == 4
    rows = re.findall(r"^\s*after \d+ blocks .* (\d+)%$", done.stdout, re.MULTILINE)
    shares = [int(row) for row in rows]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_images_of_published_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.data.idx import PARTS, read_split

    pixels = bytes(range(12))
    for part, head, data in zip(
        PARTS,
        (b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 2, 2)),
         b"\0\0\x08\x01" + (3).to_bytes(4, "big")),
        (pixels, b"\x05\x00\x09"),
        strict=True,
    ):  # fmt: skip
        (tmp_path / f"train-{part}.gz").write_bytes(gzip.compress(head + data))
    images, classes = read_split(tmp_path, "train")
    assert images.shape == (3, 2, 2)
    assert images.tobytes() == pixels
    assert classes.tolist() == [5, 0, 9]


def test_texts_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "data"))
    from bracelets import CLOSE, LENGTH, OPEN, bracelets  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "bracelets")
    tokens, mask, classes = bracelets(50, seed=3)
    again = bracelets(50, seed=3)
    assert all(torch.equal(a, b) for a, b in zip((tokens, mask, classes), again, strict=True))
    assert tokens.shape == mask.shape == (50, LENGTH)
    for text, present, colour in zip(tokens.tolist(), mask.tolist(), classes.tolist(), strict=True):
        inside, counts = False, dict.fromkeys(range(8), 0)
        for token, there in zip(text, present, strict=True):
            assert there == (token != 0)
            if token in (OPEN, CLOSE):
                inside = token == OPEN
            elif there and inside:
                counts[token - 3] += 1
        assert [c for c, n in counts.items() if n == max(counts.values())] == [colour]


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the file and of its CI job, as written."""
    folder = Path(shutil.copytree(EXAMPLES / "own_model", tmp_path / "own_model"))
    monkeypatch.chdir(folder)
    text = (folder / "net.py").read_text() + (folder / "partitions.yml").read_text()
    lines = re.findall(r"^(?: {4}|.*\brun: )(fxelastic\S* .*)$", text, re.MULTILINE)
    assert len(lines) == 6
    before = (folder / "blocks.txt").read_text()
    for line in lines:
        program, *argv = shlex.split(line)
        assert {"fxelastic": main, "fxelastic-export": export_main}[program](argv) == 0, line
    assert (folder / "blocks.txt").read_text() == before
    changed = (folder / "net.py").read_text().replace("nn.SiLU(),", "nn.ReLU(),")
    (folder / "net.py").write_text(changed)
    assert main(shlex.split("check net.py:build --golden blocks.txt")) == 1
