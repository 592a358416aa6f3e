"""Calibration: fit the last linear map of new branches in closed form, before any training."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxelastic.branches.last_map import LastMap, last_map
from fxelastic.branches.options import Arguments, as_batches
from fxelastic.branches.trainable import BatchNorm
from fxelastic.ir.branch import Branch
from fxelastic.ir.operators import operator_name
from fxelastic.ir.supernet import Supernet

#: Rows of a batch that are used for each input of the map; more rows hardly change the fit.
_ROWS = 4
#: The pull towards the old weights, as a share of the inputs' mean square.
_RIDGE = 1e-3
_MAX_INPUTS = 4608
_MAX_GRAM_BYTES = 2**29


@dataclass(frozen=True)
class Calibrated:
    """The effect of calibration on one branch.

    Attributes:
        before: Mean squared error against the teacher, over the variance of the teacher's values.
        after: The same error afterwards; never more than before.
    """

    before: float
    after: float


def calibrate(supernet: Supernet, calibration: Any) -> dict[str, Calibrated]:
    """Fit each new branch to the model's own values on a few unlabelled batches, in place.

    The branch reads the values of the model's own blocks. Its batch norms first get the statistics
    of these values. Then its last linear map, a linear layer or a convolution without groups, gets
    the weights that are best by least squares, with a slight pull towards the old weights. Shapes
    don't change. Of three versions (unchanged, with new statistics, with new statistics and
    weights) the branch keeps the one with the least error on the data.

    Args:
        supernet: The supernet; its new branches change.
        calibration: As in `as_batches`.

    Returns:
        The errors before and after, by the id of each branch that has something to fit.

    Raises:
        UsageError: The data has no batches, or does not fit the model.
    """
    teacher = _Teacher(supernet, as_batches(calibration))
    fits = [fit for branch in supernet.branches.values() if (fit := _fit(supernet, branch))]
    with torch.no_grad():
        for values in teacher.values(fits):
            for fit in fits:
                fit.add_error(values)
        for fit in fits:
            fit.end_version()
            fit.begin_statistics()
        normed = [fit for fit in fits if fit.norms]
        for values in teacher.values(normed):
            for fit in normed:
                fit.run(values)
        for fit in fits:
            fit.end_statistics()
        for group in _groups(fits):
            for values in teacher.values(group):
                for fit in group:
                    fit.add_products(values)
                    fit.add_error(values)
            for fit in group:
                fit.end_version()
                fit.solve()
            for values in teacher.values(group):
                for fit in group:
                    fit.add_error(values)
            for fit in group:
                fit.end_version()
                fit.choose()
    return {fit.branch.id: Calibrated(fit.errors[0], min(fit.errors)) for fit in fits}


@dataclass(frozen=True)
class _Teacher:
    """The model's own values on each batch."""

    supernet: Supernet
    batches: tuple[Arguments, ...]

    def values(self, fits: Sequence[_Fit]) -> Iterator[dict[str, Any]]:
        """For each batch, every value that crosses a cut and the values that the fits name."""
        if not fits:
            return
        named: dict[int, set[str]] = {}
        for fit in fits:
            if fit.operand is not None:
                named.setdefault(fit.branch.stop - 1, set()).add(fit.operand)
        for args, kwargs in self.batches:
            values = dict(self.supernet.bind(args, kwargs))
            for i, branch in enumerate(self.supernet.path()):
                operands = branch.operands(values)
                assert isinstance(branch.module, fx.GraphModule)
                run = _ValueRecorder(branch.module, named.get(i, set()))
                result = run.run(*operands)
                several = len(branch.outputs) > 1
                values.update(zip(branch.outputs, result if several else (result,), strict=True))
                values.update((node.name, value) for node, value in run.recorded.items())
            yield values


class _ValueRecorder(fx.Interpreter):
    """Runs a module and records the values of some nodes."""

    def __init__(self, module: fx.GraphModule, names: Container[str]) -> None:
        super().__init__(module)
        self._names = names
        self.recorded: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._names:
            self.recorded[n] = result
        return result


@dataclass
class _Fit:
    """One branch, and the sums of its fit.

    Attributes:
        branch: The branch.
        module: Its module.
        norms: Its batch norms.
        last: Its last linear map, if it can be fitted.
        operand: If branch and model end with the same activation, the name of the value that the
            model's activation reads.
        versions: The branch's tensors: unchanged, with new statistics, with new weights.
        errors: The error of each version.
    """

    branch: Branch
    module: fx.GraphModule
    norms: list[BatchNorm]
    last: LastMap | None
    operand: str | None
    versions: list[dict[str, Tensor]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    _error: float = 0.0
    _variance: float = 0.0
    _gram: Tensor | None = None
    _right: Tensor | None = None
    _statistics: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the map, including a constant if it can have one."""
        assert self.last is not None
        return len(self.last.matrix) + self.last.takes_constant

    @property
    def gram_bytes(self) -> int:
        """Memory of the normal equations."""
        return 8 * self.n_inputs**2 if self.last is not None else 0

    def run(self, values: Mapping[str, Any], names: Container[str] = ()) -> _ValueRecorder:
        """Run the branch on the model's values."""
        run = _ValueRecorder(self.module, names)
        result = run.run(*self.branch.operands(values))
        first = result[0] if isinstance(result, tuple) else result
        run.recorded[self.module.graph.output_node()] = first
        return run

    def add_error(self, values: Mapping[str, Any]) -> None:
        """Compare the branch with the model."""
        *_, result = self.run(values).recorded.values()
        wanted = values[self.branch.outputs[0]].double()
        self._error += float((result.double() - wanted).square().sum())
        self._variance += float((wanted - wanted.mean()).square().sum())

    def end_version(self) -> None:
        """Record the branch's present state and error."""
        state = self.module.state_dict()
        self.versions.append({name: value.clone() for name, value in state.items()})
        error = self._error / max(self._variance, 1e-30)
        self.errors.append(error if math.isfinite(error) else math.inf)
        self._error = self._variance = 0.0

    def begin_statistics(self) -> None:
        """Make the norms average statistics over batches."""
        self._statistics = [
            {name: value.clone() for name, value in norm.named_buffers()} for norm in self.norms
        ]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()

    def end_statistics(self) -> None:
        """End the averaging; a norm that has seen no batch gets its old statistics back."""
        for norm, momentum, old in zip(self.norms, self._momenta, self._statistics, strict=True):
            if not norm.num_batches_tracked:
                norm.load_state_dict(old, strict=False)
            norm.momentum = momentum
            norm.eval()

    def __post_init__(self) -> None:
        self._momenta = [norm.momentum for norm in self.norms]

    def add_products(self, values: Mapping[str, Any]) -> None:
        """Add a batch to the normal equations."""
        if self.last is None:
            return
        wanted = values[self.operand or self.branch.outputs[0]]
        run = self.run(values, {node.name for node in self.module.graph.nodes})
        x, y = self.last.rows(run.recorded, wanted)
        stride = max(1, len(x) // (_ROWS * self.n_inputs))
        x, y = x[::stride].double(), y[::stride].double()
        if self.last.takes_constant:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        gram, right = x.mT @ x, x.mT @ y
        self._gram = gram if self._gram is None else self._gram + gram
        self._right = right if self._right is None else self._right + right

    def solve(self) -> None:
        """Set the map's weights to the best fit."""
        if self.last is None or self._gram is None or self._right is None:
            return
        matrix, own = self.last.matrix, self.last.own_bias
        old = matrix.double()
        pull = old.new_full((self.n_inputs,), _RIDGE * float(self._gram.diagonal().mean()))
        if self.last.takes_constant:
            constant = torch.zeros_like(matrix[0]) if own is None else own
            old = torch.cat([old, constant.double().unsqueeze(0)])
        right = self._right + pull.unsqueeze(1) * old
        left = self._gram + pull.diag()
        self._gram = self._right = None
        if not (left.isfinite().all() and right.isfinite().all()):
            return
        # Unlike lstsq, whose last bits change from run to run, this is deterministic.
        factor, failed = torch.linalg.cholesky_ex(left)
        solution = torch.cholesky_solve(right, factor)
        if failed or not solution.isfinite().all():
            return
        matrix.copy_(solution[: len(matrix)])
        if self.last.takes_constant:
            self.last.add_constant((solution[-1] - old[-1]).to(matrix.dtype))

    def choose(self) -> None:
        """Restore the version with the least error, the earliest of equals."""
        best = min(range(len(self.errors)), key=self.errors.__getitem__)
        self.module.load_state_dict(self.versions[best])
        self.versions.clear()


def _fit(supernet: Supernet, branch: Branch) -> _Fit | None:
    """The fit of a branch, or None if there is nothing to fit."""
    module = branch.module
    if branch.frozen or len(branch.features) != 1 or not isinstance(module, fx.GraphModule):
        return None
    value = supernet.partition.nodes[branch.outputs[0]]
    if not isinstance(value.meta.get("val"), Tensor):
        return None
    norms = [m for m in module.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    found, operand = last_map(module), None
    last = found[0] if found is not None else None
    if found is not None and found[1] is not None:
        operand = _operand_of_the_same(found[1], value)
        last = last if operand is not None else None
    if last is not None and len(last.matrix) > _MAX_INPUTS:
        last = None
    return _Fit(branch, module, norms, last, operand) if norms or last is not None else None


def _operand_of_the_same(activation: fx.Node, node: fx.Node) -> str | None:
    """The operand of the model's last operator, if that is the branch's activation too."""
    same = (
        operator_name(activation) == operator_name(node)
        and activation.args[1:] == node.args[1:]
        and activation.kwargs == node.kwargs
    )
    return node.args[0].name if same and isinstance(node.args[0], fx.Node) else None


def _groups(fits: Sequence[_Fit]) -> Iterator[list[_Fit]]:
    """Groups of fits whose equations are in memory at the same time."""
    group: list[_Fit] = []
    for fit in fits:
        if group and sum(f.gram_bytes for f in (*group, fit)) > _MAX_GRAM_BYTES:
            yield group
            group = []
        group.append(fit)
    if group:
        yield group
