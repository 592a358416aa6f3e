"""What a small head could know after each block: where exits and operators are worth it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxelastic.branches.cut_features import dims_of_space, latest, pooled
from fxelastic.branches.interval import Interval, NoBranchError
from fxelastic.branches.original import Original
from fxelastic.branches.propagation import is_feature
from fxelastic.ir.block import REPLACEABLE
from fxelastic.ir.branch import Branch
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.partition import Partition
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import EXIT
from fxelastic.spec.columns import aligned

# Pulls of the ridge regression towards 0, as shares of the features' mean variance. Of the fits,
# the one that is best on the other half of the samples counts.
_PULLS = (1e-4, 1e-3, 1e-2, 1e-1)
_MAX_CHANNELS = 4608
# What an exit costs, as a share of the model's FLOPs, when the cuts for exits are chosen.
_HEAD = 0.01
# A block matters little if its share of the gains is below this multiple of its share of the FLOPs.
_LITTLE = 0.5

#: How cuts are scored.
ACCURACY, AGREEMENT, VARIANCE = "accuracy", "agreement", "explained variance"


@dataclass(frozen=True)
class MeasuredCut:
    """One cut of the model.

    Attributes:
        position: The number of blocks before it.
        block: The name of the last of them.
        score: What a linear map of its pooled features reaches.
        gain: The score, minus that of the measured cut before.
        flops: The share of the model's FLOPs before it.
    """

    position: int
    block: str
    score: float
    gain: float
    flops: float


@dataclass(frozen=True)
class MeasuredCuts:
    """The cuts of a model, scored (AdaScale III-A2, "branch diversity").

    ``str(...)`` is a table.

    Attributes:
        measure: ``accuracy`` with targets; ``agreement``, the share of samples with the class of
            the model, without; ``explained variance`` for other results than class scores.
        chance: The score of a constant answer.
        whole: The model's own score.
        cuts: The cuts, in order.
        little: The names of blocks whose share of the gains is less than half of their share of the
            FLOPs. They are candidates for compression operators.
        n_samples: The number of samples; half of them fitted the maps, the others scored them.
        refused: Why a cut has no score, by its position.
    """

    measure: str
    chance: float
    whole: float
    cuts: tuple[MeasuredCut, ...]
    little: tuple[str, ...]
    n_samples: int
    refused: dict[int, str] = field(default_factory=dict)

    def worth_an_exit(self) -> tuple[int, ...]:
        """The positions whose exits save most FLOPs, if a sample leaves at the first right one.

        An exit adds the samples that it gets right beyond the exits before it, and each of them
        saves the FLOPs after the cut; an exit costs a hundredth of the model's FLOPs.
        """
        # best[i]: the most that exits up to cut i can save, where an exit is at i, and that before.
        best: list[tuple[float, int | None]] = []
        for i, cut in enumerate(self.cuts):
            alone = max(0.0, cut.score) * (1 - cut.flops) - _HEAD
            options: list[tuple[float, int | None]] = [(alone, None)]
            for k, before in enumerate(self.cuts[:i]):
                added = cut.score - max(0.0, before.score)
                options.append((best[k][0] + added * (1 - cut.flops) - _HEAD, k))
            best.append(max(options, key=lambda option: option[0]))
        if not best:
            return ()
        at: int | None = max(range(len(best)), key=lambda i: best[i][0])
        chosen: list[int] = []
        while at is not None:
            chosen.append(self.cuts[at].position)
            at = best[at][1]
        return tuple(reversed(chosen))

    def to_dict(self) -> dict[str, Any]:
        """The figures as data for ``json.dumps``."""
        return {
            "measure": self.measure,
            "chance": self.chance,
            "whole": self.whole,
            "n_samples": self.n_samples,
            "cuts": [vars(cut) for cut in self.cuts],
            "exits": list(self.worth_an_exit()),
            "little": list(self.little),
            "refused": {str(position): reason for position, reason in self.refused.items()},
        }

    def __str__(self) -> str:
        exits = set(self.worth_an_exit())
        rows = [("blocks", "after", self.measure, "gain", "FLOPs", "")]
        for cut in self.cuts:
            notes = ["exit"] if cut.position in exits else []
            notes += ["matters little"] if cut.block in self.little else []
            numbers = (f"{cut.score:.1%}", f"{cut.gain:+.1%}", f"{cut.flops:.0%}")
            rows.append((str(cut.position), cut.block, *numbers, ", ".join(notes)))
        last = self.cuts[-1].score if self.cuts else self.chance
        rows.append(("", "the model", f"{self.whole:.1%}", f"{self.whole - last:+.1%}", "100%", ""))
        lines = aligned(rows, right={0, 2, 3, 4})
        lines += [f"no probe after {k} blocks: {why}" for k, why in self.refused.items()]
        return "\n".join(
            [*lines, f"a constant answer: {self.chance:.1%}; {self.n_samples} samples"]
        )


def measured_cuts(
    partition: Partition, batches: Iterable[tuple[tuple[Any, ...], dict[str, Any], Any]]
) -> MeasuredCuts:
    """Score every cut by a linear map from its pooled features to the model's result.

    The maps are fitted in closed form (ridge regression), so this takes a run of the model on each
    batch and seconds in all.

    Args:
        partition: The model's blocks.
        batches: For each batch the positional and keyword arguments of a call, and the targets
            ``(N,)`` or None.

    Returns:
        The scores; no cuts if no result has a row for each sample.

    Source: AdaScale, section III-A2.
    """
    if any(partition.batch_dims.values()):
        return _none("the samples are not in the first dimension of the inputs")
    probes, refused = _probes(partition)
    model = Supernet(partition, (b for b in Original().make(partition) if isinstance(b, Branch)))
    starts = {probe.position: probe for probe in probes}
    results: list[Tensor] = []
    targets: list[Tensor] = []
    with torch.no_grad():
        for args, kwargs, target in batches:
            values = model.bind(args, kwargs)
            for branch in model.path():
                probe = starts.get(branch.start)
                if probe is not None:
                    probe.read(values)
                model.run_branch(branch, values, as_model=True)
            result = _result(partition, values)
            if result is None:
                return _none("no result of the model has a row for each sample")
            results.append(result)
            if isinstance(target, Tensor) and target.shape == result.shape[:1]:
                targets.append(target.to(result.device))
    wanted = torch.cat(results).double()
    labels = torch.cat(targets) if targets and sum(map(len, targets)) == len(wanted) else None
    measure = VARIANCE if not _is_classes(partition) else AGREEMENT if labels is None else ACCURACY
    judge = _Judge(measure, wanted, labels)
    return _summary(partition, judge, probes, refused)


def _none(reason: str) -> MeasuredCuts:
    return MeasuredCuts(AGREEMENT, 0.0, 1.0, (), (), 0, {0: reason})


@dataclass
class _Probe:
    """The pooled features after some blocks.

    Attributes:
        position: The number of blocks.
        name: The name of the features.
        dims: Their dimensions of space.
    """

    position: int
    name: str
    dims: int
    rows: list[Tensor] = field(default_factory=list)

    def read(self, values: dict[str, Any]) -> None:
        self.rows.append(pooled(values[self.name].detach(), self.dims).double())


def _probes(partition: Partition) -> tuple[list[_Probe], dict[int, str]]:
    liveness, n_blocks = Liveness(partition), len(partition.blocks)
    probes: list[_Probe] = []
    refused: dict[int, str] = {}
    for position in range(1, n_blocks):
        if partition.blocks[position - 1].kind not in REPLACEABLE:
            continue
        interval = Interval(partition, liveness, EXIT, position, n_blocks)
        try:
            name = latest(interval)
        except NoBranchError as e:
            refused[position] = str(e)
            continue
        value = partition.value(name)
        dims = dims_of_space(interval, value)
        channels = value.shape[1 if dims or value.dim() == 2 else -1] if value.dim() > 1 else None
        if not isinstance(channels, int) or channels > _MAX_CHANNELS:
            fixed = isinstance(channels, int)
            refused[position] = (
                f"{channels} channels are more than {_MAX_CHANNELS}"
                if fixed
                else "its features have no channels, or a number of them that varies"
            )
            continue
        probes.append(_Probe(position, name, dims))
    return probes, refused


def _outputs(partition: Partition) -> tuple[str, ...]:
    whole = Interval(partition, Liveness(partition), EXIT, 0, len(partition.blocks))
    return tuple(name for name in whole.outputs if is_feature(partition.value(name)))


def _is_classes(partition: Partition) -> bool:
    names = _outputs(partition)
    value = partition.value(names[0]) if names else None
    # With a single class, the answer is always the same.
    return value is not None and value.dim() == 2 and value.shape[1] != 1


def _result(partition: Partition, values: dict[str, Any]) -> Tensor | None:
    """The model's first result, as a row for each sample."""
    names = _outputs(partition)
    if not names or values[names[0]].dim() < 2:
        return None
    value: Tensor = values[names[0]]
    dims = value.dim() - 2 if value.dim() > 3 else 0
    return pooled(value, dims)


@dataclass(frozen=True)
class _Judge:
    """Scores answers of the second half of the samples."""

    measure: str
    wanted: Tensor
    labels: Tensor | None

    @property
    def chance(self) -> float:
        constant = self.wanted[::2].mean(0)
        return self.score(constant.expand(len(self.wanted[1::2]), -1))

    @property
    def whole(self) -> float:
        return self.score(self.wanted[1::2])

    def score(self, found: Tensor) -> float:
        wanted = self.wanted[1::2]
        if self.measure == VARIANCE:
            error = (found - wanted).square().sum()
            total = (wanted - wanted.mean(0)).square().sum()
            return max(0.0, 1 - float(error / total.clamp(min=1e-30)))
        right = wanted.argmax(1) if self.labels is None else self.labels[1::2]
        return float((found.argmax(1) == right).double().mean())

    def probed(self, rows: Tensor) -> float:
        """The score of the best linear map of features ``(N, channels)``."""
        first, second = rows[::2], rows[1::2]
        mean, middle = first.mean(0), self.wanted[::2].mean(0)
        x, y = first - mean, self.wanted[::2] - middle
        gram, right = x.mT @ x, x.mT @ y
        scale = gram.diagonal().mean().clamp(min=1e-30)
        scores = [0.0]
        for pull in _PULLS:
            left = gram + pull * scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            factor, failed = torch.linalg.cholesky_ex(left)
            if not failed:
                found = (second - mean) @ torch.cholesky_solve(right, factor) + middle
                scores.append(self.score(found))
        return max(scores)


def _summary(
    partition: Partition, judge: _Judge, probes: list[_Probe], refused: dict[int, str]
) -> MeasuredCuts:
    flops = [block.flops for block in partition.blocks]
    total = max(1, sum(flops))
    cuts: list[MeasuredCut] = []
    before = judge.chance
    for probe in probes:
        rows = torch.cat(probe.rows)
        if len(rows) != len(judge.wanted):
            refused[probe.position] = "the features have no row for each sample"
            continue
        score = judge.probed(rows)
        done = sum(flops[: probe.position]) / total
        name = partition.blocks[probe.position - 1].name
        cuts.append(MeasuredCut(probe.position, name, score, score - before, done))
        before = score
    whole, chance = judge.whole, judge.chance
    gained = max(whole - chance, 1e-12)
    little = []
    done = 0.0
    for cut in cuts:
        if cut.gain / gained < _LITTLE * (cut.flops - done):
            little.append(cut.block)
        done = cut.flops
    return MeasuredCuts(
        judge.measure, chance, whole, tuple(cuts), tuple(little), len(judge.wanted), refused
    )
