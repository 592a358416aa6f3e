"""Run every benchmark and write benchmarks/RESULTS.md from what they print.

    python benchmarks/run_all.py                    # all, some hours on 2 cores
    python benchmarks/run_all.py --only partition expand
    python benchmarks/run_all.py --page             # the page alone, from benchmarks/results

Each result is kept in ``benchmarks/results/NAME.json`` with its command and the machine's facts.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import facts
from benchmarks.results_page import page

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
BUNDLES = "build/bundles"

# Name -> commands; the last one prints JSON, or writes it to {out}.
COMMANDS: dict[str, tuple[str, ...]] = {
    "partition": ("partition.py --json",),
    "expand": ("expand.py --out {out}",),
    "export": ("export.py --json",),
    "latency_model": (
        f"make_bundle.py mobilenet_v2 {BUNDLES}/mobilenet_v2",
        f"make_bundle.py resnet50 {BUNDLES}/resnet50",
        f"latency_model.py {BUNDLES}/mobilenet_v2 {BUNDLES}/resnet50 --out {{out}}",
    ),
    "train": ("train.py --seeds 0 1 2 --summary {out}",),
    "search": (
        "trained_bundle.py build/glyphs",
        "search.py build/glyphs --threads 1 --out {out}",
    ),
    "serve": ("serve.py --json {out}",),
    "tradeoff": ("tradeoff.py --seeds 0 1 2 --out {out}",),
}


def main() -> int:
    """Run what was asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument(
        "--keep", nargs=2, metavar=("NAME", "FILE"), help="take the result of a run made before"
    )
    parser.add_argument("--note", default="", help="how that run differed from the command")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if args.keep is not None:
        keep(args.keep[0], json.loads(Path(args.keep[1]).read_text()), args.note)
    elif not args.page:
        for name in args.only:
            print(f"== {name}", file=sys.stderr, flush=True)
            run(name)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    (FOLDER / "RESULTS.md").write_text(page(found))
    return 0


def run(name: str) -> None:
    """Run one benchmark and keep its result; a bar that is missed is no failure of the run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        stdout = ""
        for command in COMMANDS[name]:
            script, *arguments = shlex.split(command.format(out=out))
            done = subprocess.run(
                [sys.executable, str(FOLDER / script), *arguments],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            stdout = done.stdout
            print(stdout, flush=True)
        keep(name, json.loads(out.read_text() if out.exists() else stdout))


def keep(name: str, result: Any, note: str = "") -> None:
    """Write a result with its command and the machine's facts."""
    commands = [f"python benchmarks/{c}".replace("{out}", "OUT") for c in COMMANDS[name]]
    value = {"commands": commands, "machine": facts(), "note": note, "result": result}
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
