"""Compare exported files, and the subnets assembled from them, with torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxelastic.backends import description
from fxelastic.backends.onnxruntime.comparison import (
    SIGMOID_SCALES,
    SUBNET_TOLERANCES,
    TOLERANCES,
    Difference,
    compare,
)
from fxelastic.backends.onnxruntime.divergence import diverging_operator
from fxelastic.backends.onnxruntime.pieces import eval_module
from fxelastic.backends.onnxruntime.running import open_session, run
from fxelastic.errors import ExportError
from fxelastic.ir import trees
from fxelastic.ir.branch import Branch
from fxelastic.ir.fusion import canonical_operator
from fxelastic.ir.supernet import Supernet
from fxelastic.spec.arch import Arch
from fxelastic.spec.manifest import Result

# Enough to see a pattern; a report of every branch would bury it.
_MAX_REPORTED = 8


@dataclass(frozen=True)
class Parity:
    """Compares what files compute with what the supernet computes.

    Attributes:
        supernet: The supernet that was exported.
        samples: For each batch size, every value that crosses a cut, by name: the model's inputs
            and what its own blocks compute for them.
        jobs: How many files are run at once.
    """

    supernet: Supernet
    samples: Sequence[Mapping[str, Any]]
    jobs: int = 1

    def check_files(self, paths: Mapping[str, Path]) -> None:
        """Run every file on what the model's own blocks compute before it.

        Args:
            paths: The branches' ONNX files, by id.

        Raises:
            ExportError: Some compute something else; the message names the branches and, for
                each, the value and the operator.
        """

        def check(branch: Branch) -> str | None:
            return self._check_file(branch, paths[branch.id])

        with ThreadPoolExecutor(self.jobs) as pool:
            problems = [p for p in pool.map(check, self.supernet.branches.values()) if p]
        if problems:
            hidden = len(problems) - _MAX_REPORTED
            more = [f"and {hidden} more"] if hidden > 0 else []
            raise ExportError(
                f"{len(problems)} of {len(paths)} files compute something else than torch",
                expected="the same within the tolerance of the dtype",
                got="\n".join(problems[:_MAX_REPORTED] + more),
                fix="please report the operators named, or replace them",
            )

    def check_subnet(self, arch: Arch, path: Path, results: Sequence[Result]) -> None:
        """Run an assembled subnet on the model's inputs.

        Args:
            arch: The subnet.
            path: Its ONNX file.
            results: The model's results, which are the file's outputs.

        Raises:
            ExportError: It computes something else; the message names the result.
        """
        try:
            session = open_session(path, self.jobs)
            scales = _scales(branch.module for branch in self.supernet.path(arch))
            for sample in self.samples:
                actual = run(session, sample)
                for name, expected in self._expected(arch, sample, results).items():
                    difference = compare(name, actual[name], expected, SUBNET_TOLERANCES, scales)
                    if difference is not None:
                        raise ExportError(f"the result {name!r}: {difference.problem}")
        except ExportError as e:
            raise ExportError(
                f"an assembled subnet computes something else than torch: {arch}",
                expected="the same within the tolerance of the dtype",
                got=": ".join(filter(None, (e.what, e.got))),
                fix="export with fewer kinds of branches to find the one at fault",
            ) from e

    def _check_file(self, branch: Branch, path: Path) -> str | None:
        module = eval_module(branch)
        scales = _scales([module])
        try:
            session = open_session(path)
            for sample in self.samples:
                operands = {name: sample[name] for name in (*branch.inputs, *branch.context)}
                with torch.no_grad():
                    result = module(*operands.values())
                expected = (result,) if len(branch.outputs) == 1 else result
                actual = run(session, sample)
                for name, tensor in zip(branch.outputs, expected, strict=True):
                    difference = compare(name, actual[name], tensor, TOLERANCES, scales)
                    if difference is not None:
                        return _report(branch, difference, path, operands)
        except ExportError as e:
            return f"branch {branch.id}: {e.what}: {e.got}"
        return None

    def _expected(
        self, arch: Arch, sample: Mapping[str, Any], results: Sequence[Result]
    ) -> dict[str, torch.Tensor]:
        values = {name: sample[name] for name in self.supernet.partition.signature.inputs}
        with torch.no_grad():
            for branch in self.supernet.path(arch):
                self.supernet.run_branch(branch, values)
        values |= description.constant_results(self.supernet.partition)
        return {result.name: values[result.value] for result in results}


def _scales(modules: Iterable[nn.Module]) -> Mapping[str, float]:
    """What the largest value of what modules compute is taken for at least, by dtype."""
    parts = (part for module in modules for part in module.modules())
    graphs = (part.graph for part in parts if isinstance(part, fx.GraphModule))
    computed = (canonical_operator(node.target) for graph in graphs for node in graph.nodes)
    return SIGMOID_SCALES if "aten.sigmoid" in computed else {}


def _report(
    branch: Branch, difference: Difference, path: Path, operands: Mapping[str, torch.Tensor]
) -> str:
    module = eval_module(branch)
    found = f"branch {branch.id}, value {difference.name}: {difference.problem}"
    if _is_random(module, list(operands.values())):
        return f"{found}; it draws random numbers: {', '.join(_random_operators(module))}"
    return f"{found}; operator {diverging_operator(path, module, operands, TOLERANCES)}"


def _is_random(module: nn.Module, operands: Sequence[torch.Tensor]) -> bool:
    """Whether a module gives other values each time."""
    with torch.no_grad():
        one, other = (trees.flatten(module(*operands))[0] for _ in range(2))
    return any(not torch.allclose(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


def _random_operators(module: nn.Module) -> list[str]:
    """Operators that may draw random numbers."""
    graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
    targets = {str(n.target): getattr(n.target, "tags", ()) for g in graphs for n in g.nodes}
    return sorted(t for t, tags in targets.items() if torch.Tag.nondeterministic_seeded in tags)
