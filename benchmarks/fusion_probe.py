"""Which pairs of operators does the installed onnxruntime compute with one kernel?

Every ordered pair of a list of small operators is exported to ONNX in one piece and in two, the
pieces are optimised at ``ORT_ENABLE_EXTENDED`` for CPU, and the kernels compared. A pair whose cut
changes the kernels is printed with the kernels that were lost and added. Chains follow, for fusions
that need a predecessor. This is the evidence behind
``fxelastic/backends/onnxruntime/fusion_rules.py``.

    python benchmarks/fusion_probe.py                     # everything, a quarter of an hour
    python benchmarks/fusion_probe.py --kind image --producer conv2d
    python benchmarks/fusion_probe.py --chains            # the chains only
"""

from __future__ import annotations

import argparse
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fusion_samples import CHAINS, COMMON, SAMPLES, SHAPES, Chain, Sample, find
from fxelastic.backends.onnxruntime.fusion_rules import ONNXRUNTIME
from fxelastic.backends.onnxruntime.kernels import (
    KernelDiff,
    compare_kernels,
    export_each,
    optimised_kernels,
)
from fxelastic.ir.fusion import FusionRule, canonical_operator

_PIECES_PER_EXPORT = 64
"""An export has a high fixed price, so that many pieces are exported as one model."""


@dataclass(frozen=True)
class Cut:
    """A chain of samples, and the number of samples before the cut."""

    kind: str
    names: tuple[str, ...]
    position: int

    @classmethod
    def parse(cls, kind: str, chain: str) -> Cut:
        """Read ``conv2d batch_norm | relu``."""
        before, after = (half.split() for half in chain.split("|"))
        return cls(kind, (*before, *after), len(before))

    def __str__(self) -> str:
        before, after = self.names[: self.position], self.names[self.position :]
        return f"{self.kind}: {' '.join(before)} | {' '.join(after)}"


@dataclass(frozen=True)
class Measured:
    """The effect of a cut.

    Attributes:
        cut: The cut.
        whole: Kernels of the chain in one piece.
        diff: How the kernels of its two pieces differ.
        operators: The ATen operators at the cut: producer and consumer.
        rule: The rule that forbids or prices the cut, if any.
    """

    cut: Cut
    whole: Counter[str]
    diff: KernelDiff
    operators: tuple[str, str]
    rule: FusionRule | None


class Piece:
    """Consecutive samples, with suitable inputs."""

    def __init__(self, kind: str, samples: Sequence[Sample], x: torch.Tensor) -> None:
        torch.manual_seed(0)
        counts = [len(sample.others) for sample in samples]
        self.module = Chain([sample.build() for sample in samples], counts).eval()
        others = [torch.rand(shape) for sample in samples for shape in sample.others]
        self.inputs = (x, *others)
        with torch.no_grad():
            self.result = self.module(*self.inputs)

    @functools.cached_property
    def ends(self) -> tuple[str, str]:
        """The ATen operators that read its stream value and compute its result."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(self.module, self.inputs)
        (name,) = program.graph_signature.user_inputs[:1]
        value = next(node for node in program.graph.nodes if node.name == name)
        output = next(node for node in program.graph.nodes if node.op == "output")
        first, last = next(iter(value.users)), output.args[0][0]
        return canonical_operator(first.target), canonical_operator(last.target)


def measure(cuts: Iterable[Cut]) -> Iterator[Measured | tuple[Cut, str]]:
    """Compare the kernels of chains with those of the chains cut in two.

    Args:
        cuts: The cuts to measure.

    Yields:
        For each cut, in order, the kernels and the rule that holds for the operators at the cut;
        or the cut and the reason why its operators do not fit together.
    """
    pieces: dict[tuple[str, tuple[str, ...], tuple[int, ...]], Piece] = {}
    wanted: list[tuple[Cut, list[Piece] | str, tuple[bool, bool]]] = []
    for cut in cuts:
        kinds, samples = [cut.kind], []
        for name in cut.names:
            samples.append(find(kinds[-1], name))
            kinds.append(samples[-1].result or kinds[-1])
        shape = SHAPES[cut.kind]
        x = torch.randint(0, 32, shape) if cut.kind == "indices" else torch.rand(shape)
        unary = (
            not samples[cut.position - 1].others,
            not samples[cut.position].others,
        )
        try:
            parts = []
            for start, stop in ((0, None), (0, cut.position), (cut.position, None)):
                if start:
                    x = parts[1].result
                key = (kinds[start], cut.names[start:stop], tuple(x.shape))
                if key not in pieces:
                    pieces[key] = Piece(kinds[start], samples[start:stop], x)
                parts.append(pieces[key])
        except (RuntimeError, IndexError, ValueError) as error:
            wanted.append((cut, str(error).splitlines()[0], unary))
        else:
            wanted.append((cut, parts, unary))
    counts = _count(list(pieces.values()))
    for cut, found, (producer, consumer) in wanted:
        if isinstance(found, str):
            yield cut, found
        elif any(piece not in counts for piece in found):
            yield cut, "the exporter refuses it"
        else:
            whole, first, second = found
            operators = (first.ends[1], second.ends[0])
            yield Measured(
                cut,
                counts[whole],
                compare_kernels(counts[whole], [counts[first], counts[second]]),
                operators,
                ONNXRUNTIME.match(*operators, consumer, producer),
            )


def _count(pieces: Sequence[Piece]) -> dict[Piece, Counter[str]]:
    counts = {}
    for start in range(0, len(pieces), _PIECES_PER_EXPORT):
        batch = pieces[start : start + _PIECES_PER_EXPORT]
        try:
            models = export_each([(piece.module, piece.inputs) for piece in batch])
        except torch.onnx.OnnxExporterError:
            if len(batch) > 1:
                half = len(batch) // 2
                counts.update(_count(batch[:half]) | _count(batch[half:]))
            continue
        counts.update(zip(batch, map(optimised_kernels, models), strict=True))
    return counts


def _describe(kernels: Counter[str]) -> str:
    return " ".join(f"{n}×{k}" if n > 1 else k for k, n in sorted(kernels.items()))


def _print(found: Measured) -> None:
    rule = found.rule
    fused = bool(found.diff.extra)
    verdict = f"{'FUSED' if fused else 'equal'}  rule: "
    verdict += f"{rule.name}{' (soft)' * rule.soft}" if rule else "none"
    print(f"{found.cut!s:56} {verdict}{'  <-- no rule' * (fused and not rule)}")
    print(f"    operators: {' -> '.join(found.operators)}")
    print(f"    whole:     {_describe(found.whole)}")
    print(f"    cut:       {found.diff}", flush=True)


def main(argv: Sequence[str]) -> int:
    """Print the table; the exit code is 1 if a fused pair has no rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=list(SAMPLES), help="only values of this kind")
    parser.add_argument("--producer", help="only this producer")
    parser.add_argument("--consumer", help="only this consumer")
    parser.add_argument("--chains", action="store_true", help="only the chains")
    parser.add_argument("--all", action="store_true", help="print unfused pairs, too")
    arguments = parser.parse_args(argv)
    cuts: list[Cut] = []
    for kind, samples in SAMPLES.items():
        pairs = [
            Cut(kind, (producer.name, consumer.name), 1)
            for producer in samples
            for consumer in SAMPLES[producer.result or kind]
            if arguments.producer in (None, producer.name)
            and arguments.consumer in (None, consumer.name)
            and (kind == "image" or not {producer.name, consumer.name} <= COMMON)
        ]
        if not arguments.chains and arguments.kind in (None, kind):
            cuts += pairs
    if arguments.producer is None and arguments.consumer is None:
        cuts += [Cut.parse(kind, chain) for kind, chain in CHAINS if arguments.kind in (None, kind)]
    counts: Counter[str] = Counter()
    for found in measure(cuts):
        if not isinstance(found, Measured):
            counts["not applicable"] += 1
            if arguments.all or len(found[0].names) > 2:
                print(f"{found[0]!s:56} not applicable: {found[1]}", flush=True)
            continue
        fused, rule = bool(found.diff.extra), found.rule
        counts["fused"] += fused
        counts["fused, no rule"] += fused and rule is None
        counts["a rule, not fused"] += not fused and rule is not None
        if arguments.all or fused or len(found.cut.names) > 2:
            _print(found)
    print(f"{len(cuts)} cuts: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    return 1 if counts["fused, no rule"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
