"""Let the sizes of public models vary: texts in length, images in height and width.

    python benchmarks/public_sizes.py --seed 3                     # a third of the families
    python benchmarks/public_sizes.py tests transformers --share 1

The models are the tests' own and those of public_models.py that fxelastic expands (see
``results/public_models.json``). Each runs in a process of its own. The model itself says which
other sizes it takes. If it takes some, it is expanded with a batch and sizes that vary, compared
with the model at three sizes (smallest, example's, larger), and exported, which compares every
branch in onnxruntime with torch at three sizes. A row is kept for each model and commit; a model
that has a row of this commit is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import ROOT, commit
from benchmarks.public_model_cases import LIBRARIES, Case
from benchmarks.public_models import in_a_process, line
from benchmarks.sized_inputs import Varying, call, named_inputs, resized, smaller, varying
from fxelastic.files import replace_file

GAMMA = 0.34
#: Shares of the models of a kind, among those that take other sizes, that have to be done.
BARS = {"text": 0.95, "image": 0.9}
STAGES = ("make", "call", "sizes", "expand", "compare", "export", "done")
KEPT = ROOT / "benchmarks/results/public_sizes.json"
# Their graphs have no batch.
_LEFT_OUT = frozenset({"torch_geometric"})
# A test model that is too large, or has a fixed batch by design, shows nothing about sizes.
_TAGS_LEFT_OUT = frozenset({"slow", "real"})


def measure(library: str, name: str) -> dict[str, Any]:
    """Run one model through the stages until one fails.

    Returns:
        The stage that failed, or ``done``, with the reason and figures.
    """
    import torch

    import fxelastic

    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Its fused kernel computes other bits, and only in eager mode.
    torch.backends.mha.set_fastpath_enabled(False)
    found: dict[str, Any] = {"library": library, "name": name}

    def begin(stage: str) -> None:
        found["stage"] = stage
        print(json.dumps(found), flush=True)

    begin("make")
    begin_s = time.perf_counter()
    try:
        own = make_case(library, name)
        case = smaller(own)
        begin("call")
        with torch.no_grad():
            case.model(*case.args, **case.kwargs)
        begin("sizes")
        which = varying(case)
        found["kind"] = which.kind if which else "none"
        if case is not own and (which is None or which.refusal):
            case, which = own, varying(own)
        if which is None or which.refusal:
            raise ValueError(which.refusal if which else "no input is a text, image or sequence")
        begin("expand")
        supernet = expand(case, which)
        found["branches"] = len(supernet.space.branches)
        found["symbols"] = [str(s.symbol) for s in supernet.partition.symbols]
        found["batch"] = supernet.partition.dynamic_batch
        begin("compare")
        found["difference"] = compare(case, which, supernet)
        begin("export")
        with tempfile.TemporaryDirectory() as folder:
            bundle = fxelastic.export(supernet, Path(folder) / "bundle")
            found["checked"] = [dict(sizes) for sizes in checked_sizes(bundle)]
        found["stage"] = "done"
    except Exception as e:  # noqa: BLE001 - any error is a result
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        found["reason"] = f"{type(e).__name__}: {' '.join(lines)[:600]}"
        found["operator"] = operator(found["reason"])
    found["seconds"] = time.perf_counter() - begin_s
    return found


def expand(case: Case, which: Varying) -> Any:
    """A supernet with few branches."""
    import fxelastic

    return fxelastic.expand(
        case.model,
        GAMMA,
        example_inputs=(case.args, case.kwargs),
        dynamic_shapes=which.dims,
        spans=(1,),
        prune=(0.5,),
    )


def make_case(library: str, name: str) -> Case:
    """A model of a library, or of the tests."""
    if library != "tests":
        return LIBRARIES[library][1](name)
    from tests.models import CASES

    return Case(CASES[name].build().eval(), *CASES[name].inputs(2))


def compare(case: Case, which: Varying, supernet: Any) -> float:
    """Run a supernet at its smallest sizes, the example's, and larger ones.

    Returns:
        The largest difference of the original path from the model, relative to the result; 0 if
        they are equal bit for bit.

    Raises:
        ValueError: The model runs at fewer than two of the sizes.
    """
    import torch

    inputs, partition = named_inputs(case), supernet.partition
    others = [s.symbol for s in partition.symbols if not s.is_batch]
    worst, n_compared = 0.0, 0
    for i, sizes in enumerate(
        (
            {symbol.name: symbol.min for symbol in others},
            {symbol.name: symbol.example for symbol in others},
            {symbol.name: symbol.large(4) for symbol in others},
        )
    ):
        n_samples = (1, 2, 3)[i] if partition.dynamic_batch else None
        given = resized(inputs, which.dims, sizes, n_samples, partition.batched)
        with torch.no_grad():
            args, kwargs = call(case, given)
            try:
                # A copy, since the model may write to its inputs.
                own_args, own_kwargs = copy.deepcopy((args, kwargs))
                expected = case.model(*own_args, **own_kwargs)
            except Exception:  # noqa: BLE001 - it may not take the smallest of all sizes at once
                continue
            n_compared += 1
            worst = max(worst, _difference(expected, partition(*args, **kwargs)))
            for arch in supernet.space.sample(2, seed=i):
                supernet.subnet(arch)(*args, **kwargs)
    if n_compared < 2:
        raise ValueError("the model itself does not run at the sizes that fxelastic finds")
    return worst


def _difference(expected: Any, got: Any) -> float:
    import torch

    from fxelastic.ir import trees

    worst = 0.0
    for a, b in zip(trees.flatten(expected)[0], trees.flatten(got)[0], strict=True):
        if not isinstance(a, torch.Tensor) or torch.equal(a, b):
            continue
        scale = max(float(a.abs().max()), 1e-12) if a.is_floating_point() else 0.0
        alike = a.shape == b.shape and scale
        difference = float((a - b).abs().nan_to_num().max()) / scale if alike else float("inf")
        same = alike and torch.equal(a.isnan(), b.isnan())
        worst = max(worst, difference if same else float("inf"))
    return worst


def checked_sizes(bundle: Any) -> Iterator[Mapping[str, int]]:
    """The sizes at which an export was compared, besides the example's."""
    if bundle.manifest.verification is not None:
        yield from bundle.manifest.verification.sizes


def operator(reason: str) -> str:
    """The operator that a reason names; empty if it names none."""
    found = re.search(r"\b(?:aten|torchvision|fxelastic)\.\w+(?:\.\w+)?|\bmodule:\S+", reason)
    return found[0] if found else ""


def families(libraries: Sequence[str], seed: int, share: float) -> list[tuple[str, str]]:
    """A seeded share of the models of each library."""
    kept = json.loads((ROOT / "benchmarks/results/public_models.json").read_text())
    names: dict[str, list[str]] = {}
    for found in kept["result"]["models"]:
        if found["library"] not in _LEFT_OUT and found["stage"] not in ("make", "call"):
            names.setdefault(found["library"], []).append(found["name"])
    names["tests"] = _of_tests()
    chosen = []
    for library in libraries or ["tests", *sorted(set(names) - {"tests"})]:
        if library != "tests" and find_spec(library) is None:
            print(f"{library} is not installed: left out")
            continue
        own = sorted(names.get(library, ()))
        n = -(-len(own) * share // 1)
        chosen += [(library, name) for name in random.Random(seed).sample(own, int(n))]
    return chosen


def _of_tests() -> list[str]:
    from tests.models import CASES

    return [
        name
        for name, case in CASES.items()
        if case.tags & {"conv", "int-input", "transformer", "rnn"}
        and not case.tags & _TAGS_LEFT_OUT
    ]


def latest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last row of each model."""
    return list({(row["library"], row["name"]): row for row in rows}.values())


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By kind: how many models take other sizes, and how many of them pass each stage."""
    found = {}
    for kind in ("text", "image", "sequence"):
        own = [row for row in latest(rows) if row.get("kind") == kind]
        taken = [row for row in own if STAGES.index(row["stage"]) > STAGES.index("sizes")]
        done = [row for row in taken if row["stage"] == "done"]
        found[kind] = {
            "models": len(own),
            "take other sizes": len(taken),
            "dynamic": sum(STAGES.index(row["stage"]) > STAGES.index("expand") for row in taken),
            "with a dynamic batch": sum(bool(row.get("batch")) for row in taken),
            "equal bit for bit": sum(row.get("difference") == 0 for row in taken),
            "exported": len(done),
            "share": len(done) / len(taken) if taken else 1.0,
            "bar": BARS.get(kind),
        }
    return found


def earlier(path: Path) -> list[Mapping[str, Any]]:
    """The rows of an interrupted run, or those that are kept in ``results``."""
    if path.exists():
        found: list[Mapping[str, Any]] = json.loads(path.read_text())["models"]
        return found
    return json.loads(KEPT.read_text())["result"]["models"] if KEPT.exists() else []


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda row: (row["library"], row["name"]))  # by commit as run
    result = {
        "gamma": GAMMA,
        "summary": summary(ordered),
        "rest": [row for row in latest(ordered) if row["stage"] not in ("make", "call", "done")],
        "models": ordered,
    }
    replace_file(path, (json.dumps(result, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", nargs="*", help="default: tests, and all of public_models.py")
    parser.add_argument("--only", help="names of models, with commas between them")
    parser.add_argument("--seed", type=int, default=0, help="chooses the families")
    parser.add_argument("--share", type=float, default=1 / 3, help="of the families")
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds for one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--out", type=Path, default=Path("build/public_sizes.json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(measure(*args.one)))
        return 0
    rows = earlier(args.out)
    now = commit()
    known = {(row["library"], row["name"]) for row in rows if row["commit"] == now}
    wanted = families(args.libraries, args.seed, 1.0 if args.only else args.share)
    only = args.only.split(",") if args.only else [name for _, name in wanted]
    wanted = [one for one in wanted if one[1] in only and one not in known]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(in_a_process, *one, args.timeout, __file__) for one in wanted]
        for done in as_completed(runs):
            rows.append(done.result() | {"commit": now})
            print(line(rows[-1]), flush=True)
            write(args.out, rows)
    for kind, counted in summary(rows).items():
        print(f"{kind}: " + ", ".join(f"{n} {what}" for what, n in counted.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
