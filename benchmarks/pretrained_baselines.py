"""Smaller networks, fine-tuned without labels, beside the subnets of `pretrained.py`.

    python -m pip install torch-pruning
    python benchmarks/pretrained_baselines.py --model minilm --out FILE
    python benchmarks/pretrained_baselines.py --model efficientnet --images FOLDER --out FILE

The baselines are the first 3 of MiniLM's 6 layers, and EfficientNet-Lite0 with channels removed by
Torch-Pruning (the least norms of groups), as few as keep each budget of ``--budgets``. Each is
fine-tuned for ``--minutes`` of one core's processor time towards the original's results, on the
training split, and keeps the state that is nearest to them on the split that subnets are selected
on. The peak of its learning rate is the one that ends nearest on that split after a short training.
It is exported with `torch.onnx.export`, and scored on the test split in onnxruntime, in float and
quantised as `pretrained.py` quantises the original. Latencies are processor times of one thread,
taken in turns with the original.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import pretrained_subnets
from benchmarks.bootstrap import Bootstrap
from benchmarks.machine import facts
from benchmarks.pretrained_data import Samples, load_samples
from benchmarks.pretrained_models import REQUIRED, PretrainedModel, check_installed, load_model
from benchmarks.pretrained_training import loader_of
from fxelastic.files import replace_file

N_LAYERS = 3
#: Shares of the channels to remove that are tried for a budget.
RATIOS = tuple(i / 20 for i in range(1, 15))
#: The learning rates that are tried first.
RATES = {"minilm": (1e-4, 2e-4, 4e-4), "efficientnet": (1e-4, 3e-4, 1e-3)}
#: Samples of a step, where batch norms need more than the training of branches takes.
BATCH = {"efficientnet": 32}
TRIAL = 0.1  # of the time of fine-tuning
WARMUP = 0.05
N_ESTIMATED = 16  # batches, for the statistics of batch norms
N_CHECKS, N_CHECKED = 20, 256  # checks of the state, and the samples of each
ROUNDS = 200


def first_layers(model: PretrainedModel) -> nn.Module:
    """The sentence encoder with its first layers alone."""
    smaller = copy.deepcopy(model.module)
    encoder: Any = smaller.bert.encoder
    encoder.layer = encoder.layer[:N_LAYERS]
    return smaller


def narrower(model: PretrainedModel, example: Tensor, ratio: float) -> nn.Module:
    """The network without a share of the channels of each layer."""
    import torch_pruning

    smaller = copy.deepcopy(model.module)
    last = [part for part in smaller.modules() if isinstance(part, nn.Linear)]
    pruner = torch_pruning.pruner.MetaPruner(
        smaller,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        round_to=8,
        ignored_layers=last,
    )
    pruner.step()
    return smaller.eval()


def fine_tuned(
    smaller: nn.Module, model: PretrainedModel, samples: dict[str, Samples], minutes: float
) -> dict[str, Any]:
    """Train a network towards the original's results for a time; returns the steps and the losses.

    It ends in its best state on held-out samples. There is no dropout.
    """
    for module in (smaller, model.module):
        module.to(memory_format=model.memory_format)
    batch_size = BATCH.get(model.name, model.batch_size)
    loader = loader_of(replace(model, batch_size=batch_size), samples["train"])
    task = _Task(model, loader, model.tensors(samples["select"].take(N_CHECKED), slice(None)))
    trials = {}
    for lr in RATES[model.name]:
        done = task.train(copy.deepcopy(smaller), TRIAL * minutes, lr, n_checks=1)
        trials[lr] = min(done["held_out"])
        print(f"learning rate {lr:g}: {trials[lr]:.3f}", file=sys.stderr, flush=True)
    best = min(trials, key=trials.__getitem__)
    return task.train(smaller, minutes, best, N_CHECKS) | {"trials": trials, "lr": best}


@dataclass(frozen=True)
class _Task:
    """Results of the original to be learned from batches, and samples to judge the states on."""

    model: PretrainedModel
    loader: Iterable[tuple[Tensor, ...]]
    held_out: tuple[Tensor, ...]

    def train(self, smaller: nn.Module, minutes: float, lr: float, n_checks: int) -> dict[str, Any]:
        """Train for a time; ends in the best state on the samples held out.

        In a step, batch norms take the statistics of its samples. Those of the state to be judged
        are estimated anew.
        """
        model = self.model
        with torch.no_grad():
            held_out_wanted = model.module(*self.held_out)
        norms = [part for part in smaller.modules() if isinstance(part, nn.BatchNorm2d)]
        optimiser = torch.optim.AdamW(smaller.parameters(), lr, weight_decay=0.01)
        begin_s, last_loss, n_steps = time.process_time(), 0.0, 0
        checks: list[float] = []
        for inputs in _endless(self.loader):
            done = (time.process_time() - begin_s) / (60 * minutes)
            if done * n_checks >= len(checks):
                self._estimate_statistics(smaller, norms)
                with torch.no_grad():
                    distance = _distance(smaller(*self.held_out), held_out_wanted, model.name)
                checks.append(float(distance))
                if checks[-1] == min(checks):
                    best = copy.deepcopy(smaller.state_dict())
                for norm in norms:
                    norm.train()
            if done >= 1:
                break
            share = min(done / WARMUP, 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimiser.param_groups:
                group["lr"] = lr * share
            with torch.no_grad():
                wanted = model.module(*inputs)
            loss = _distance(smaller(*inputs), wanted, model.name)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(smaller.parameters(), 1.0)
            optimiser.step()
            last_loss, n_steps = 0.95 * last_loss + 0.05 * loss.item(), n_steps + 1
        smaller.load_state_dict(best)
        smaller.eval()
        return {"steps": n_steps, "loss": last_loss, "held_out": checks}

    def _estimate_statistics(self, smaller: nn.Module, norms: Sequence[nn.BatchNorm2d]) -> None:
        """Leave the network in eval mode, with the statistics of some batches."""
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        with torch.no_grad():
            for inputs in itertools.islice(self.loader, N_ESTIMATED if norms else 0):
                smaller(*inputs)
        smaller.eval()


def _endless(loader: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from loader


def _distance(found: Tensor, wanted: Tensor, name: str) -> Tensor:
    if name == "minilm":
        return 1 - F.cosine_similarity(found, wanted).mean()
    soft = F.log_softmax(wanted, 1)
    return F.kl_div(F.log_softmax(found, 1), soft, log_target=True, reduction="batchmean")


def exported(module: nn.Module, model: PretrainedModel, samples: Samples, path: Path) -> Path:
    """The network as an ONNX file that takes batches of any size."""
    inputs = model.tensors(samples, slice(0, 2))
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        copy.deepcopy(module).eval(),
        inputs,
        dynamo=True,
        input_names=list(model.inputs),
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return path


def shares(original: Path, paths: list[Path], model: PretrainedModel, samples: Samples) -> Any:
    """The share of the original's latency that each file takes, with an interval."""
    feeds = model.arrays(samples, slice(0, 1))
    return pretrained_subnets.shares_of_time([original, *paths], feeds, ROUNDS)[1]


def networks(
    model: PretrainedModel, samples: dict[str, Samples], budgets: list[float], folder: Path
) -> Iterator[tuple[str, nn.Module]]:
    """The networks to fine-tune, each with its name."""
    if model.name == "minilm":
        yield f"first {N_LAYERS} layers", first_layers(model)
        return
    original = folder / "original.onnx"
    example = model.tensors(samples["train"], slice(0, 2))[0]
    for budget in budgets:
        for ratio in RATIOS:
            smaller = narrower(model, example, ratio)
            path = exported(smaller, model, samples["train"], folder / "narrower.onnx")
            (share,) = shares(original, [path], model, samples["select"])
            if share[0] <= budget:
                yield f"Torch-Pruning {budget:.0%}", smaller
                break


def measure(
    model: PretrainedModel, samples: dict[str, Samples], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Fine-tune, export, quantise and score each network."""
    original = exported(model.module, model, samples["train"], folder / "original.onnx")
    paths, trained = {}, {}
    for name, smaller in networks(model, samples, args.budgets, folder):
        trained[name] = fine_tuned(smaller, model, samples, args.minutes)
        print(f"{name}: {trained[name]}", file=sys.stderr, flush=True)
        path = folder / f"{len(paths)}.onnx"
        paths[name] = exported(smaller, model, samples["train"], path)
        paths[f"{name}, quantised"] = pretrained_subnets.quantised(
            path, model, samples["train"], path.with_suffix(".int8.onnx")
        )
    test = samples["test"]
    wanted = pretrained_subnets.results(original, model, test)
    score, bootstrap = pretrained_subnets.SCORES[model.name], Bootstrap(test.groups)
    times = shares(original, list(paths.values()), model, samples["select"])
    ways = {}
    for (name, path), share in zip(paths.items(), times, strict=True):
        found = pretrained_subnets.results(path, model, test)
        values = pretrained_subnets.similarities(found, wanted, model.name)[score]
        ways[name] = {"latency": share, "score": bootstrap.mean(values).to_json()}
        print(f"{name}: {share[0]:.1%} of the latency, {score} {ways[name]['score'][0]:.4f}")
    return {"score": score, "trained": trained, "ways": ways}


def main() -> int:
    """Measure the baselines of one model or of both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=REQUIRED, help="one of the models (default: both)")
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--text", type=Path, help="file of sentences")
    parser.add_argument("--minutes", type=float, default=30.0, help="of fine-tuning, each network")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--work", type=Path, help="folder for samples (default: temporary)")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    names = [args.model] if args.model else list(REQUIRED)
    for name in names:
        check_installed(name)
    if args.images is None and "efficientnet" in names:
        raise SystemExit("efficientnet needs --images FOLDER, with folders train and test in it")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": facts(), "minutes": args.minutes, "models": {}}
    with tempfile.TemporaryDirectory(prefix="baselines-") as temporary:
        for name in names:
            folder = Path(temporary) / name
            folder.mkdir()
            kept = (args.work or Path(temporary)) / name / "samples"
            samples = load_samples(name, kept, args.images, args.text)
            result["models"][name] = measure(load_model(name), samples, args, folder)
    if args.out is not None:
        replace_file(args.out, (json.dumps(result, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
