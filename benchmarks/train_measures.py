"""The training benchmark's measurements of a supernet."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

import fxelastic
from fxelastic import Supernet
from fxelastic.spec import Arch
from fxelastic.train import Callback, StepReport, normalised_error, range_accuracy
from fxelastic.train.sampling import flops_of

N_BUCKETS, N_SUBNETS = 5, 10
Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]


def buckets_of(supernet: Supernet, data: Batches, seed: int) -> list[dict[str, Any]]:
    """Mean accuracy of the same random subnets for every way of training."""
    most = sum(flops_of(supernet.space)[name] for name in supernet.space.original)
    found = range_accuracy(supernet, data, n_buckets=N_BUCKETS, n_subnets=N_SUBNETS, seed=seed)
    return [
        {"low": b.low / most, "high": b.high / most, "mean": b.mean, "best": b.best, "n": b.n}
        for b in found
    ]


def best_within(
    supernet: Supernet, share: float, validation: Batches, test: Batches, seed: int
) -> dict[str, Any]:
    """Search for the best subnet of at most a share of the FLOPs.

    Random subnets near the bound, then rounds of changes of the best ones, each scored on more of
    the validation data. Only the winner is scored on the test data.
    """
    space, costs = supernet.space, flops_of(supernet.space)
    most = space.cost(space.original, costs)
    least = space.cost(space.min_cost_arch(costs), costs)
    low = max(least, 0.75 * share * most)
    scores: dict[Arch, float] = {}
    population = list(dict.fromkeys(space.sample_within(40, costs, low, share * most, seed)))
    rng = random.Random(seed)
    for n_batches in (5, 10, len(validation)):
        scores = fxelastic.evaluate(supernet, population, validation[:n_batches])
        best = sorted(scores, key=lambda arch: -scores[arch])[:6]
        changed = [mutated(supernet, arch, rng) for arch in best for _ in range(4)]
        inside = [arch for arch in changed if space.cost(arch, costs) <= share * most]
        population = list(dict.fromkeys([*best, *inside]))
    winner = max(scores, key=lambda arch: scores[arch])
    return {
        "arch": str(winner),
        "flops": space.cost(winner, costs) / most,
        "validation": scores[winner],
        "test": fxelastic.evaluate(supernet, [winner], test)[winner],
    }


def mutated(supernet: Supernet, arch: Arch, rng: random.Random) -> Arch:
    """Another subnet, in which one branch of the old one is replaced."""
    space = supernet.space
    specs = space.specs(arch)
    new = rng.choice([spec for spec in space.branches if spec not in specs])
    kept = [s for s in specs if s.stop <= new.start or s.start >= new.stop]
    covered = {i for s in (*kept, new) for i in range(s.start, s.stop)}
    ids = [s for s in space.branches if s.kind == "original" and s.start not in covered]
    return Arch(tuple(s.id for s in sorted((*kept, new, *ids), key=lambda s: s.start)))


class _Curve(Callback):
    """Measures branch losses on held-out data during training; the time for this does not count."""

    def __init__(self, supernet: Supernet, data: Batches, every: int) -> None:
        self.points: list[dict[str, float]] = []
        self._supernet, self._data, self._every = supernet, data, every
        self._archs = supernet.space.sample(8, seed=12345)
        self._paused = 0.0
        self._measure(0, 0.0)

    def on_step(self, report: StepReport) -> None:
        if report.step % self._every == 0:
            self._measure(report.step, report.seconds - self._paused)

    def _measure(self, step: int, seconds: float) -> None:
        began = time.perf_counter()
        errors = branch_errors(self._supernet, self._archs, self._data)
        self.points.append({"step": step, "seconds": round(seconds, 2), **errors})
        self._paused += time.perf_counter() - began


def branch_curve(
    supernet: Supernet, train: Iterable[Any], held_out: Batches, **options: Any
) -> list[dict[str, float]]:
    """Distil, and measure branch losses meanwhile.

    Returns:
        Points with ``step``, ``seconds`` of training, and the losses of `branch_errors`.
    """
    curve = _Curve(supernet, held_out, every=30)
    fxelastic.distill(supernet, train, callbacks=[curve], **options)
    return curve.points


@torch.no_grad()
def branch_errors(supernet: Supernet, archs: Sequence[Arch], data: Batches) -> dict[str, float]:
    """Normalised branch losses on held-out data, in eval mode.

    Returns:
        ``chained``: over the new branches of subnets, each fed by the one before it, as published
        (Eq. 1). ``alone``: of every new branch, fed with the model's own features.
    """
    device = next(supernet.parameters()).device
    chained, alone = [], []
    for images, _ in data:
        values = supernet.bind((images.to(device),), {})
        targets: dict[str, Any] = {}
        current = dict(values)
        entries: list[dict[str, Any]] = []
        for original in supernet.path():
            entries.append(dict(current))
            supernet.run_branch(original, current)
            targets.update(current)
        new = [b for b in supernet.branches.values() if not b.frozen]
        for branch in new:
            outcome = dict(entries[branch.start])
            supernet.run_branch(branch, outcome)
            (name,) = branch.outputs
            alone.append(float(normalised_error(outcome[name], targets[name])))
        for arch in archs:
            current = dict(values)
            for branch in supernet.path(arch):
                supernet.run_branch(branch, current)
                if not branch.frozen:
                    (name,) = branch.outputs
                    chained.append(float(normalised_error(current[name], targets[name])))
    return {"chained": sum(chained) / len(chained), "alone": sum(alone) / len(alone)}


def recalibrated(supernet: Supernet, train: Batches, test: Batches, seed: int) -> dict[str, Any]:
    """Accuracy of random subnets with and without recalibrated statistics, from 512 images."""
    archs = supernet.space.sample(12, seed=seed + 77)
    before = fxelastic.evaluate(supernet, archs, test)
    after: dict[Arch, float] = {}
    layers = 0
    statistics = {name: value.clone() for name, value in supernet.named_buffers()}
    for arch in before:
        layers = max(layers, fxelastic.recalibrate(supernet, arch, train, n_samples=512))
        after |= fxelastic.evaluate(supernet, [arch], test)
        for name, value in supernet.named_buffers():
            value.copy_(statistics[name])
    return {
        "layers": layers,
        "before": list(before.values()),
        "after": [after[arch] for arch in before],
    }
