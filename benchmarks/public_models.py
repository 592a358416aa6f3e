"""Expand and export models of public libraries, one of each architecture.

    python benchmarks/public_models.py transformers timm torchvision --out public_models.json

The libraries are not installed with the package: `pip install timm torchvision transformers` first,
and those that public_model_samples.py uses; missing libraries are left out. Each model is made with
random weights, in a separate process. It is expanded (`fxelastic.expand`), the supernet's originals
are compared with the model, and it is exported (`fxelastic.export`), which compares every file in
onnxruntime with torch. Prints a line for each model and the share of models that pass each stage.
There is no bar; the file records where the others end and why. A model that is already in the file
is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.public_model_cases import LIBRARIES
from fxelastic.files import replace_file

GAMMA = 0.2
STAGES = ("make", "call", "expand", "run", "export", "done")


def measure(library: str, name: str, kinds: str = "default") -> dict[str, Any]:
    """Run one model through the stages until one fails.

    Args:
        library: The library.
        name: The model.
        kinds: The kinds of branches: ``default`` or ``all``.

    Returns:
        The stage that failed, or ``done``, with the reason and figures.
    """
    import torch

    import fxelastic
    from fxelastic.ir import trees

    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"library": library, "name": name}

    def begin(stage: str) -> None:
        """Begin a stage, and print this first: the process may be ended during the stage."""
        found["stage"] = stage
        print(json.dumps(found), flush=True)

    begin("make")
    try:
        case = LIBRARIES[library][1](name)
        found["n_params"] = sum(parameter.numel() for parameter in case.model.parameters())
        begin("call")
        with torch.no_grad():
            expected = trees.flatten(case.model(*case.args, **case.kwargs))[0]
        begin("expand")
        begin_s = time.perf_counter()
        example = (case.args, case.kwargs)
        supernet = fxelastic.expand(case.model, GAMMA, example_inputs=example, kinds=kinds)
        found["kinds"] = dict(Counter(spec.kind for spec in supernet.space.branches))
        found["without_reason"] = sum(not skip.reason for skip in supernet.skips)
        found["expand_s"] = time.perf_counter() - begin_s
        blocks = supernet.partition.blocks
        found["blocks"] = len(blocks)
        found["branches"] = len(supernet.space.branches)
        found["subnets"] = supernet.space.count()
        begin("run")
        with torch.no_grad():
            results = trees.flatten(supernet(*case.args, **case.kwargs))[0]
            supernet(*case.args, arch=supernet.space.sample(1, seed=0)[0], **case.kwargs)
        # A model that draws random numbers gives different results each time.
        found["same"] = len(results) == len(expected) and all(
            torch.equal(a, b) or torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
            for a, b in zip(results, expected, strict=True)
            if isinstance(a, torch.Tensor)
        )
        begin("export")
        begin_s = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            fxelastic.export(supernet, Path(folder) / "bundle")
        found["export_s"] = time.perf_counter() - begin_s
        found["stage"] = "done"
    except Exception as e:  # noqa: BLE001 - any error is a result
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        found["reason"] = f"{type(e).__name__}: {' '.join(lines)[:600]}"
    return found


def in_a_process(
    library: str, name: str, timeout_s: float, script: str = __file__, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure in another process, so that a crash or an endless run does not end the others."""
    command = [sys.executable, script, "--one", library, name, *more]
    reason = ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        output = done.stdout
        if done.returncode:
            reason = f"exit code {done.returncode}: {done.stderr[-300:]}"
    except subprocess.TimeoutExpired as e:
        output = (e.stdout or b"").decode() if isinstance(e.stdout, bytes) else e.stdout or ""
        reason = f"not done after {timeout_s:.0f} s"
    found = last_of(output) or {"library": library, "name": name, "stage": "make"}
    return found | {"reason": reason} if reason else found


def last_of(output: str) -> dict[str, Any]:
    """The last complete line of JSON that a process printed; empty if there is none."""
    for text in reversed(output.splitlines()):
        if text.startswith("{") and text.endswith("}"):
            result: dict[str, Any] = json.loads(text)
            return result
    return {}


def line(found: dict[str, Any]) -> str:
    told = f"{found['library']:12}  {found['name']:32}  {found['stage']:7}"
    if "blocks" in found:
        told += f"  {found['blocks']:4} blocks  {found['branches']:4} branches"
    return told + f"  {found.get('reason', '')[:150]}"


def summary(models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The number of models that pass each stage, by library."""
    shares = {}
    for library in dict.fromkeys(found["library"] for found in models):
        # Models that can't be made or called without fxelastic do not count.
        own = [f for f in models if f["library"] == library and STAGES.index(f["stage"]) >= 2]
        shares[library] = {
            "models": len(own),
            "expanded": sum(STAGES.index(f["stage"]) > 2 for f in own),
            "same": sum(bool(f.get("same")) for f in own),
            "exported": sum(f["stage"] == "done" for f in own),
        }
    return shares


def write(path: Path, models: Sequence[dict[str, Any]]) -> None:
    ordered = sorted(models, key=lambda found: (found["library"], found["name"]))
    result = {"gamma": GAMMA, "summary": summary(ordered), "models": ordered}
    replace_file(path, (json.dumps(result, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", nargs="*", default=list(LIBRARIES), help="default: all")
    parser.add_argument("--only", help="names of models, with commas between them")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one model")
    parser.add_argument("--kinds", choices=("default", "all"), default="default")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--out", type=Path, default=Path("build/public_models.json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(measure(*args.one, args.kinds)))
        return 0
    models = json.loads(args.out.read_text())["models"] if args.out.exists() else []
    known = {(found["library"], found["name"]) for found in models}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    wanted: list[tuple[str, str]] = []
    for library in args.libraries:
        if find_spec(library) is None:
            print(f"{library} is not installed: left out")
            continue
        names = args.only.split(",") if args.only else LIBRARIES[library][0]()
        wanted += [(library, name) for name in names if (library, name) not in known]
    with ThreadPoolExecutor(args.jobs) as pool:
        more = ("--kinds", args.kinds)
        runs = [pool.submit(in_a_process, *one, args.timeout, __file__, more) for one in wanted]
        for done in as_completed(runs):
            models.append(done.result())
            print(line(models[-1]), flush=True)
            write(args.out, models)
    write(args.out, models)
    for library, shares in summary(models).items():
        print(
            f"{library}: {shares['expanded']} of {shares['models']} models expanded, "
            f"{shares['same']} compute the same, {shares['exported']} exported"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
