"""Compare exported files, and the subnets assembled from them, with torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn

from fxelastic.backends import description
from fxelastic.backends.onnxruntime.choices import Choices, OtherChoiceError, choices_of, chooses
from fxelastic.backends.onnxruntime.comparison import (
    SIGMOID_SCALES,
    SUBNET_TOLERANCES,
    TOLERANCES,
    Difference,
    compare,
    is_rounding,
)
from fxelastic.backends.onnxruntime.divergence import diverging_operator
from fxelastic.backends.onnxruntime.pieces import eval_module
from fxelastic.backends.onnxruntime.running import RefusedError, open_session, run
from fxelastic.errors import ExportError, listed
from fxelastic.ir import trees
from fxelastic.ir.branch import Branch, cut_cache
from fxelastic.ir.fusion import canonical_operator
from fxelastic.ir.supernet import Supernet
from fxelastic.spec.arch import Arch
from fxelastic.spec.manifest import Result

logger = logging.getLogger(__name__)

#: A function that runs a module on operands.
Run = Callable[..., Any]

# Enough to see a pattern; a report of every branch would bury it.
_MAX_REPORTED = 3


class _WrongFile(NamedTuple):
    """A problem of a file.

    Attributes:
        kind: A key of `_KINDS`.
        got: The branch, its blocks and the problem.
        expected: The right result.
        fix: One step that helps.
    """

    kind: str
    got: str
    expected: str
    fix: str


#: Messages by kind; the number of files precedes them.
_KINDS: Mapping[str, str] = {
    "load": "can't be loaded by onnxruntime",
    "run": "can't be run by onnxruntime",
    "differ": "compute other results than torch",
    "random": "draw random numbers, so that they can't be compared with torch",
}

_CLOSE = "the same within the tolerance of the dtype"


@dataclass(frozen=True)
class Parity:
    """Compares the results of files with those of the supernet.

    Attributes:
        supernet: The supernet that was exported.
        samples: For each batch size, every value that crosses a cut, by its name in the graph:
            the model's inputs and the values that its own blocks compute for them.
        jobs: Number of files that run at the same time.
    """

    supernet: Supernet
    samples: Sequence[Mapping[str, Any]]
    jobs: int = 1

    def check_files(self, paths: Mapping[str, Path]) -> None:
        """Run every file on the values of the model's own blocks.

        Args:
            paths: The branches' ONNX files, by id.

        Raises:
            ExportError: Some results differ, or files can't be run; the message names the branches
                and, for each, the value and the operator.
        """

        def check(branch: Branch) -> _WrongFile | None:
            return self._check_file(branch, paths[branch.id])

        self._warn_of_nothing()
        with ThreadPoolExecutor(self.jobs) as pool:
            problems = [p for p in pool.map(check, self.supernet.branches.values()) if p]
        if problems:
            kinds = dict.fromkeys(problem.kind for problem in problems)
            wrong = _KINDS[problems[0].kind] if len(kinds) == 1 else "can't be used"
            hidden = len(problems) - _MAX_REPORTED
            more = [f"and {hidden} more"] if hidden > 0 else []
            raise ExportError(
                f"{len(problems)} of {len(paths)} files {wrong}",
                expected=problems[0].expected,
                got="\n".join([problem.got for problem in problems[:_MAX_REPORTED]] + more),
                fix=problems[0].fix,
            )

    def _warn_of_nothing(self) -> None:
        """Warn of branches whose outputs are empty in every sample, with which any file agrees."""
        unseen = [
            branch.id
            for branch in self.supernet.branches.values()
            if branch.outputs
            and not any(sample[name].numel() for sample in self.samples for name in branch.outputs)
        ]
        if unseen:
            more = f" and {len(unseen) - _MAX_REPORTED} more" * (len(unseen) > _MAX_REPORTED)
            logger.warning(
                "not compared, since no row of the synthetic inputs reaches them: %s%s; "
                "capture with example inputs that send rows there, or pass another seed",
                ", ".join(unseen[:_MAX_REPORTED]),
                more,
            )

    def check_subnet(self, arch: Arch, path: Path, results: Sequence[Result]) -> None:
        """Run an assembled subnet on the model's inputs.

        Args:
            arch: The subnet.
            path: Its ONNX file.
            results: The model's results, which are the file's outputs.

        Raises:
            ExportError: A result differs; the message names it.
        """
        branches = self.supernet.path(arch)
        modules = [eval_module(branch) for branch in branches]
        try:
            session = open_session(path, self.jobs)
            for sample in self._samples_of(branches):

                def compute(run_module: Run, sample: Mapping[str, Any] = sample) -> dict[str, Any]:
                    return self._results(branches, modules, sample, results, run_module)

                actual = run(session, sample)
                difference = _difference(path, sample, actual, modules, compute, SUBNET_TOLERANCES)
                if difference is not None:
                    raise ExportError(
                        f"an assembled subnet computes other results than torch: {arch}",
                        expected=_CLOSE,
                        got=f"the result {difference.name!r}: {difference.problem}",
                        fix="export with fewer kinds of branches to find the wrong branch",
                    )
        except RefusedError as e:
            wrong = "run" if e.loads else "loaded"
            raise ExportError(
                f"an assembled subnet can't be {wrong} by onnxruntime: {arch}",
                expected=e.expected,
                got=e.got,
                fix=e.fix,
            ) from e

    def _check_file(self, branch: Branch, path: Path) -> _WrongFile | None:
        module = eval_module(branch)
        names = [self._names[name] for name in (*branch.inputs, *branch.context)]
        try:
            session = open_session(path)
            for sample in self.samples:
                operands = dict(zip(names, branch.operands(sample), strict=True))

                def compute(run_module: Run, given: Iterable[Any] = operands.values()) -> Any:
                    return self._named(branch, run_module(module, *given))

                actual = run(session, operands)
                difference = _difference(path, operands, actual, [module], compute, TOLERANCES)
                if difference is not None:
                    return self._differing(branch, difference, path, operands)
        except RefusedError as e:
            kind = "run" if e.loads else "load"
            got = f"{self._where(branch)}: {e.what}: {e.got}"
            return _WrongFile(kind, got, str(e.expected), str(e.fix))
        return None

    def _where(self, branch: Branch) -> str:
        """A branch and the blocks that it stands in for, for a message."""
        blocks = self.supernet.partition.blocks[branch.start : branch.stop]
        return f"branch {branch.id} ({listed(block.name for block in blocks)})"

    def _differing(
        self,
        branch: Branch,
        difference: Difference,
        path: Path,
        operands: Mapping[str, torch.Tensor],
    ) -> _WrongFile:
        module = eval_module(branch)
        found = f"{self._where(branch)}, value {difference.name}: {difference.problem}"
        if _is_random(module, list(operands.values())):
            names = ", ".join(_random_operators(module))
            got = f"{found}; its operators draw random numbers: {names}"
            fix = "switch the random numbers off in eval mode, or export with verify=False"
            return _WrongFile("random", got, "the same results in every call", fix)
        operator = diverging_operator(path, module, operands, TOLERANCES)
        if operator is None:
            return _WrongFile("differ", found, _CLOSE, "report it, with the model")
        fix = f"replace {operator}, and report its conversion"
        return _WrongFile("differ", f"{found}; operator {operator}", _CLOSE, fix)

    def _results(
        self,
        branches: Sequence[Branch],
        modules: Sequence[nn.Module],
        sample: Mapping[str, Any],
        results: Sequence[Result],
        run_module: Run,
    ) -> dict[str, Any]:
        """The results of a subnet's branches."""
        partition, names = self.supernet.partition, self._names
        values = {name: sample[name] for name in partition.signature.names}
        for branch, module in zip(branches, modules, strict=True):
            read = (*branch.inputs, *branch.context)
            operands = branch.operands({name: values[names[name]] for name in read})
            values |= self._named(branch, run_module(module, *operands))
        constants = description.constant_results(partition)
        values |= {names[name]: value for name, value in constants.items()}
        return {result.name: values[result.value] for result in results}

    def _named(self, branch: Branch, result: Any) -> dict[str, Any]:
        """A branch's outputs by name."""
        results = (result,) if len(branch.outputs) == 1 else result
        names = (self._names[name] for name in branch.outputs)
        return dict(zip(names, results, strict=True))

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """Names on the device, by names in the graph."""
        return description.device_names(self.supernet.partition)

    def _samples_of(self, branches: Sequence[Branch]) -> list[Mapping[str, Any]]:
        """The samples by names on the device, with the caches that a subnet's branches keep."""
        kept = {part.past: part for branch in branches for part in branch.spec.cache}
        return [
            {self._names[k]: cut_cache(v, kept[k]) if k in kept else v for k, v in sample.items()}
            for sample in self.samples
        ]


def _difference(
    path: Path,
    sample: Mapping[str, Any],
    actual: Mapping[str, np.ndarray[Any, Any]],
    modules: Sequence[nn.Module],
    compute: Callable[[Run], Mapping[str, torch.Tensor]],
    tolerances: Mapping[str, float],
) -> Difference | None:
    """The difference between a file's results and torch's, with torch's and the file's choices.

    Args:
        path: The file.
        sample: Its inputs by name.
        actual: Its results.
        modules: The modules that it was made from, in order.
        compute: Returns torch's results, given a function that runs a module.
        tolerances: By dtype.
    """
    scales = _scales(modules)
    tolerances = _of_origin(tolerances, modules, sample)

    def first(expected: Mapping[str, torch.Tensor]) -> Difference | None:
        found = (compare(n, actual[n], t, tolerances, scales) for n, t in expected.items())
        return next(filter(None, found), None)

    with torch.no_grad():
        try:
            expected = compute(lambda module, *operands: module(*operands))
        except RuntimeError as e:
            given = ", ".join(f"{k} {tuple(v.shape)}" for k, v in sample.items() if _is_tensor(v))
            raise ExportError(
                f"{path.stem} can't be computed at sizes that the model takes",
                expected="branches that work at all sizes of the model",
                got=f"{str(e).splitlines()[0]}, for {given}",
                fix="raise the least value of the size in dynamic_shapes=, or leave out this kind "
                "of branches",
            ) from e
        difference = first(expected)
        if difference is None or is_rounding(actual, expected, sample, compute, tolerances):
            return None
        if not any(map(chooses, modules)):
            return difference
        try:
            choices = Choices(choices_of(path, sample), tolerances, scales)
            other = first(compute(choices.run))
            choices.end()
        except (OtherChoiceError, ExportError) as e:
            logger.debug("%s: its choices can't be adopted: %s", path.name, e)
            return difference
    return difference if other is not None else None


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _of_origin(
    tolerances: Mapping[str, float], modules: Iterable[nn.Module], sample: Mapping[str, Any]
) -> Mapping[str, float]:
    """The tolerances for results of 64 bits that come from values with fewer."""
    own = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors = [*own, *(x for x in sample.values() if isinstance(x, torch.Tensor))]
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    return {
        **tolerances,
        "float64": max(tolerances[n] for n in {*names, "float64"} & {*tolerances}),
    }


def _scales(modules: Iterable[nn.Module]) -> Mapping[str, float]:
    """The least scale of the results of modules, by dtype."""
    parts = (part for module in modules for part in module.modules())
    graphs = (part.graph for part in parts if isinstance(part, fx.GraphModule))
    computed = (canonical_operator(node.target) for graph in graphs for node in graph.nodes)
    return SIGMOID_SCALES if "aten.sigmoid" in computed else {}


def _is_random(module: nn.Module, operands: Sequence[torch.Tensor]) -> bool:
    """Whether a module gives different results in each call."""
    with torch.no_grad():
        one, other = (trees.flatten(module(*operands))[0] for _ in range(2))
    return any(not torch.allclose(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))


def _random_operators(module: nn.Module) -> list[str]:
    """Operators that may draw random numbers."""
    graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
    targets = {str(n.target): getattr(n.target, "tags", ()) for g in graphs for n in g.nodes}
    return sorted(t for t, tags in targets.items() if torch.Tag.nondeterministic_seeded in tags)
