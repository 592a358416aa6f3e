"""Run every benchmark, and write benchmarks/RESULTS.md from the results.

    python benchmarks/run_all.py                    # all that need no GPU, some hours on 2 cores
    python benchmarks/run_all.py --only train_device    # on a machine with a GPU
    python benchmarks/run_all.py --only pretrained --images FOLDER    # see pretrained.py
    python benchmarks/run_all.py --only multi_stage --data FOLDER    # see fashion.py
    python benchmarks/run_all.py --only partition expand
    python benchmarks/run_all.py --page             # the page alone, from benchmarks/results

Each result is kept in ``benchmarks/results/NAME.json`` with its command, the commit and the
machine's facts. An interrupted run resumes where it stopped: intermediate files of each benchmark
stay in ``build/bench/NAME`` until the run is finished, and ``--fresh`` starts again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import commit, facts
from benchmarks.results_page import page
from fxelastic.files import replace_file

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
WORK = "build/bench"

# Name -> commands; the last one prints JSON, or writes it to {out}.
COMMANDS: dict[str, tuple[str, ...]] = {
    "partition": ("partition.py --json",),
    "expand": ("expand.py --out {out}",),
    "export": ("export.py --json",),
    "public_models": ("public_models.py --jobs 2 --out {out}",),
    "public_kinds": ("public_models.py --kinds all --jobs 2 --out {out}",),
    "public_sizes": ("public_sizes.py --out {out}",),
    "decoders": ("decoders.py --json {out}",),
    "operators": ("operators.py --images {images} --out {out}",),
    "latency_model": (
        f"make_bundle.py mobilenet_v2 {WORK}/latency_model/mobilenet_v2",
        f"make_bundle.py resnet50 {WORK}/latency_model/resnet50",
        f"latency_model.py {WORK}/latency_model/mobilenet_v2 {WORK}/latency_model/resnet50"
        " --out {out}",
    ),
    "busy_profile": (
        f"make_bundle.py mobilenet_v2 {WORK}/latency_model/mobilenet_v2",
        f"make_bundle.py resnet50 {WORK}/latency_model/resnet50",
        f"busy_profile.py {WORK}/latency_model/mobilenet_v2 {WORK}/latency_model/resnet50"
        " --out {out}",
    ),
    "sizes": (f"sizes.py {WORK}/sizes --out {{out}}",),
    "train": (f"train.py --seeds 0 1 2 --data {WORK}/data --out {WORK}/train --summary {{out}}",),
    "train_threads": ("train_threads.py --out {out}",),
    "train_device": ("train_device.py --devices cpu cuda --out {out}",),
    "int8": (f"int8.py {WORK}/int8 --out {{out}}",),
    "search": (
        f"trained_bundle.py {WORK}/search --data {WORK}/data",
        f"search.py {WORK}/search --threads 1 --out {{out}}",
    ),
    "search_time": (
        f"trained_bundle.py {WORK}/search --data {WORK}/data",
        f"search_time.py {WORK}/search/bundle {WORK}/search/latency.json {WORK}/search/search.npz"
        " --out {out}",
    ),
    "search_memory": (
        f"trained_bundle.py {WORK}/search --data {WORK}/data",
        f"make_bundle.py mobilenet_v2 {WORK}/latency_model/mobilenet_v2",
        f"search_memory.py {WORK}/search --larger {WORK}/latency_model/mobilenet_v2 --out {{out}}",
    ),
    "plan": (f"plan.py --data {{data}} --bundle {WORK}/plan/bundle --out {{out}}",),
    "serve": (f"serve.py --out {WORK}/serve --json {{out}}",),
    "serve_sizes": ("serve_sizes.py --out {out}",),
    "http_load": ("http_load.py --out {out}",),
    "ordered_table": ("ordered_table.py --out {out}",),
    "forecast": (f"forecast.py --out {WORK}/forecast --json {{out}}",),
    "contexts_simulated": (
        f"contexts.py --simulate --out {WORK}/contexts_simulated --json {{out}}",
    ),
    "contexts": (f"contexts.py --data {{data}} --out {WORK}/contexts --json {{out}}",),
    "contexts_text": (f"contexts.py --task topics --out {WORK}/contexts_text --json {{out}}",),
    "tradeoff": (
        f"tradeoff.py --seeds 0 1 2 --data {WORK}/data --work {WORK}/tradeoff --out {{out}}",
    ),
    "ensemble": (f"ensemble.py --data {{data}} --work {WORK}/ensemble/runs --out {{out}}",),
    "exits": (f"exits.py --data {{data}} --seeds 0 1 2 --work {WORK}/exits/runs --out {{out}}",),
    "exits_text": (
        f"exits.py --task topics --seeds 0 1 2 --work {WORK}/exits_text/runs --out {{out}}",
    ),
    "multi_stage": (
        f"multi_stage.py --data {{data}} --work {WORK}/multi_stage/runs --out {{out}}",
    ),
    "energy": ("energy.py --data {data} --out {out}",),
    "pretrained": (f"pretrained.py --images {{images}} --work {WORK}/pretrained --out {{out}}",),
    "pretrained_baselines": ("pretrained_baselines.py --images {images} --out {out}",),
}
_FASHION = "the files of Fashion-MNIST"
# What the folder of --data holds.
DATA = dict.fromkeys(("plan", "contexts", "ensemble", "exits", "multi_stage"), _FASHION)
DATA |= {"energy": "the profiles of CodeCarbon"}
# These need --images, and the packages of pretrained.py.
IMAGES = ("operators", "pretrained", "pretrained_baselines")
# Run only if they are named: they need a GPU, data, photographs, packages, or an hour.
BY_NAME = frozenset(("train_device", "decoders", "contexts_text", "exits_text", *DATA, *IMAGES))


def main() -> int:
    """Run the requested benchmarks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    usual = [name for name in COMMANDS if name not in BY_NAME]
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=usual)
    parser.add_argument(
        "--images", default="", help="folder of photographs, for " + " or ".join(IMAGES)
    )
    parser.add_argument("--data", default="", help="folder of data, for " + " or ".join(DATA))
    parser.add_argument("--fresh", action="store_true", help="discard an interrupted run")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument(
        "--keep", nargs=2, metavar=("NAME", "FILE"), help="take the result of an earlier run"
    )
    parser.add_argument("--note", default="", help="how that run differed from the command")
    args = parser.parse_args()
    for name in IMAGES:
        if name in args.only and not (args.images or args.page or args.keep):
            parser.error(f"{name} needs --images FOLDER, with folders train and test in it")
    for name, what in DATA.items():
        if name in args.only and not (args.data or args.page or args.keep):
            parser.error(f"{name} needs --data FOLDER, with {what} in it")
    RESULTS.mkdir(exist_ok=True)
    if args.keep is not None:
        name, path = args.keep
        keep(name, described(name, json.loads(Path(path).read_text()), args.note))
    elif not args.page:
        try:
            run_all(args.only, fresh=args.fresh, images=args.images, data=args.data)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            return 130
    write_page()
    return 0


def run_all(names: list[str], *, fresh: bool = False, images: str = "", data: str = "") -> None:
    """Run benchmarks, except those that an interrupted run has finished."""
    folders = {name: Path(WORK) / name for name in names}
    for name, folder in folders.items():
        if fresh and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / "result.json"
        if out.exists():
            print(f"== {name} was run before the interruption", file=sys.stderr, flush=True)
        else:
            print(f"== {name}", file=sys.stderr, flush=True)
            replace_file(out, json.dumps(described(name, run(name, images, data))).encode())
        keep(name, json.loads(out.read_text()))
        write_page()
    # Results of another unfinished run stay.
    for folder in folders.values():
        shutil.rmtree(folder)


def run(name: str, images: str = "", data: str = "") -> Any:
    """Run one benchmark and return its result; a missed bar does not fail the run.

    Raises:
        SystemExit: The commands ended without a result.
    """
    out = Path(WORK) / name / "unfinished.json"
    out.unlink(missing_ok=True)
    stdout = ""
    for command in COMMANDS[name]:
        given = {"images": shlex.quote(images), "data": shlex.quote(data)}
        script, *arguments = shlex.split(command.format(out=out, **given))
        done = subprocess.run(
            [sys.executable, str(FOLDER / script), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        stdout = done.stdout
        print(stdout, flush=True)
    try:
        return json.loads(out.read_text() if out.exists() else stdout)
    except ValueError:
        raise SystemExit(f"{name} ended without a result (exit code {done.returncode})") from None


def described(name: str, result: Any, note: str = "") -> dict[str, Any]:
    """A result with its command, its commit and the facts of the machine that measured it."""
    machine = result.pop("machine", None) if isinstance(result, dict) else None
    commands = [c.format(out="OUT", images="FOLDER", data="FOLDER") for c in COMMANDS[name]]
    return {
        "commands": [f"python benchmarks/{command}" for command in commands],
        "commit": commit(),
        "machine": machine or facts(),
        "note": note,
        "result": result,
    }


def keep(name: str, value: dict[str, Any]) -> None:
    """Write a result to the folder that the page is made from."""
    replace_file(RESULTS / f"{name}.json", (json.dumps(value, indent=1) + "\n").encode())


def write_page() -> None:
    """Write the page from all results."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    replace_file(FOLDER / "RESULTS.md", page(found).encode())


if __name__ == "__main__":
    raise SystemExit(main())
