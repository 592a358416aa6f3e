"""The third stage: a partition with branches, of which any tiling is a subnet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from fxelastic.errors import UsageError
from fxelastic.ir import supernet_file
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.copyable import Copyable
from fxelastic.ir.graph_modules import FrozenGraphModule
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.operators import attribute
from fxelastic.ir.partition import Partition
from fxelastic.ir.subnet import identifier, plain_module, subnet_module
from fxelastic.ir.summary import summary
from fxelastic.spec import Arch, SearchSpace


class Supernet(Copyable, nn.Module):
    """A model as a multi-path network (AdaptiveNet §4.1).

    It takes the model's arguments and returns the model's result; the keyword ``arch`` chooses
    the subnet. If the model has an argument ``arch`` of its own, an `Arch` chooses the subnet and
    any other value goes to the model; a call that needs both passes the model's by position.

    ``copy.deepcopy`` gives an independent supernet. Pickling raises an error; see `save`.

    A subnet runs over named values: each branch reads values by name and adds its outputs, so any
    branches that tile the blocks can follow one another, whatever their kind. A value is deleted
    after the last block that reads it.

    Originals stay in eval mode and never train: their parameters require no gradients (see
    `fxelastic.branches.original`). All other parameters do, so give an optimiser the parameters
    with ``requires_grad``. The subnet of originals computes the model's result bit for bit, with
    and without gradients: its result requires gradients if the model's does, though a backward
    pass leaves gradients in the inputs only. Beside new branches, originals run over weights that
    require no gradients, for which torch may round differently.

    Attributes:
        partition: The blocks.
        branches: Each branch by its id, in the search space's order.
        space: The search space.
        skips: The branches that kinds did not make, with the reasons.
        branch_modules: The branches' modules, by their ids as identifiers (``original_3``).
    """

    def __init__(
        self, partition: Partition, branches: Iterable[Branch], skips: Iterable[Refusal] = ()
    ) -> None:
        """Combine branches over a partition.

        Args:
            partition: The blocks.
            branches: An original for each block, and any other branches.
            skips: Branches that kinds did not make.

        Raises:
            UsageError: The branches do not make a search space, or one of them reads a value that
                is not live, or computes other values than its interval.
        """
        super().__init__()
        given = tuple(branches)
        by_id = {branch.id: branch for branch in given}
        self.partition = partition
        self.space = SearchSpace(len(partition.blocks), tuple(branch.spec for branch in given))
        self.branches: Mapping[str, Branch] = {
            spec.id: by_id[spec.id] for spec in self.space.branches
        }
        self.skips = tuple(skips)
        self._liveness = Liveness(partition)
        self.branch_modules = nn.Module()
        names = set(dir(self.branch_modules))
        for branch in self.branches.values():
            _check_values(branch, self._liveness)
            self.branch_modules.add_module(identifier(branch.id, names), branch.module)
        self._constants = nn.Module()
        self._results = tuple(self._result(node) for node in self._output_nodes())
        self.eval()

    def _modules_to_copy(self) -> tuple[nn.Module, ...]:
        return self.partition.graph_module, self.branch_modules

    def forward(self, /, *args: Any, arch: Arch | None = None, **kwargs: Any) -> Any:
        """Run a subnet.

        Args:
            args: The model's own positional arguments.
            arch: The subnet; the model itself if None. Any value other than an `Arch` goes to
                the model if it has an argument ``arch``.
            kwargs: The model's own keyword arguments.

        Returns:
            The subnet's result, in the structure of the model's result. The originals give the
            model's result bit for bit.

        Raises:
            UsageError: The arch is not in this search space, or the arguments have another
                structure than the example inputs.
        """
        if self._is_models_own(arch, args):
            kwargs, arch = {**kwargs, "arch": arch}, None
        values = self.bind(args, kwargs, arch)
        branches = self.path(arch)
        as_model = all(branch.frozen for branch in branches)
        for branch in branches:
            self.run_branch(branch, values, as_model=as_model)
        return self.result(values)

    def _is_models_own(self, arch: Any, args: tuple[Any, ...]) -> bool:
        """Whether the value passed as ``arch`` is an argument of the model."""
        signature = self.partition.signature
        if isinstance(arch, Arch) or "arch" in signature.parameters[: len(args)]:
            return False
        return "arch" in (signature.captured if arch is None else signature.keywords)

    def path(self, arch: Arch | None = None) -> tuple[Branch, ...]:
        """The branches of a subnet in execution order; the originals if ``arch`` is None.

        Raises:
            UsageError: The arch is not in this search space.
        """
        if arch is None:
            return self._original_path
        return tuple(self.branches[spec.id] for spec in self.space.specs(arch))

    @cached_property
    def _original_path(self) -> tuple[Branch, ...]:
        return self.path(self.space.original)

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], arch: Arch | None = None
    ) -> dict[str, Any]:
        """The values at the start of a call: the model's inputs, by their names in the graph.

        Args:
            args: The model's own positional arguments.
            kwargs: The model's own keyword arguments.
            arch: The subnet whose caches they hold; the model if None.

        Raises:
            UsageError: The arguments have another structure than the example inputs.
        """
        signature = self.partition.signature
        leaves = signature.flatten_arguments(args, kwargs)
        cache = () if arch is None else self.space.cache_of(arch)
        self.partition.checks_of(cache).check(leaves)
        return dict(zip(signature.inputs, leaves, strict=True))

    def run_branch(
        self, branch: Branch, values: MutableMapping[str, Any], *, as_model: bool = False
    ) -> None:
        """Run one branch.

        Args:
            branch: One of the supernet's branches; the branches before its interval have run.
            values: Named values, changed in place: the branch's outputs are added, and values that
                no later block reads are removed.
            as_model: Run an original exactly as the model does, for a teacher: torch tracks the
                gradients of weights too, unless they are disabled.
        """
        operands = branch.operands(values)
        if as_model and isinstance(branch.module, FrozenGraphModule):
            result = branch.module.as_model(*operands)
        else:
            result = branch.module(*operands)
        if len(branch.outputs) == 1:
            values[branch.outputs[0]] = result
        else:
            values.update(zip(branch.outputs, result, strict=True))
        last_read = self._liveness.last_read
        for name in [name for name in values if last_read.get(name, -1) < branch.stop]:
            del values[name]

    def result(self, values: Mapping[str, Any], *, caches: bool = True) -> Any:
        """The result in the model's own structure, from the values after the last branch.

        Args:
            values: Values by name.
            caches: Whether the result holds the caches of a decoder, in which subnets differ.
                Without them, ``(logits, [(keys, values)])`` becomes ``(logits,)``.
        """
        left_out = set() if caches else {cache.present for cache in self.partition.caches}
        outputs = [
            getattr(self._constants, name)
            if constant
            else (_LEFT_OUT if name in left_out else values[name])
            for name, constant in self._results
        ]
        result = self.partition.signature.unflatten_result(outputs)
        return _without(result) if left_out else result

    def subnet(self, arch: Arch | None = None) -> fx.GraphModule:
        """Extract one subnet as a separate module.

        Args:
            arch: The subnet; the model itself if None.

        Returns:
            A graph module with the model's calling convention that holds only this subnet's
            branches, each as a submodule. It is a copy: training or moving it does not change the
            supernet. Originals share their weights' memory with the model, as in the supernet.

        Raises:
            UsageError: The arch is not in this search space.
        """
        result = subnet_module(self.partition, self.path(arch), self._results, self._constants)
        result.meta["arch"] = str(arch or self.space.original)
        return result.train(self.training)

    def plain(self, arch: Arch) -> fx.GraphModule:
        """Extract a subnet of new branches alone as a module that depends on nothing else.

        Args:
            arch: The subnet; none of its branches is an original.

        Returns:
            A copy that shares no memory with the supernet, see `plain_module`.

        Raises:
            UsageError: The arch is not in this search space.
        """
        branches = self.path(arch)
        return plain_module(self.partition, branches, self._results, self._constants).eval()

    def trainable_parameters(self, arch: Arch | None = None) -> Iterator[nn.Parameter]:
        """The parameters that training may change, which are those of new branches, each once.

        Args:
            arch: A subnet, for the parameters of its branches; all branches if None.

        Raises:
            UsageError: The arch is not in this search space.
        """
        branches = self.branches.values() if arch is None else self.path(arch)
        seen: set[int] = set()
        for branch in branches:
            for parameter in branch.module.parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the new branches' weights and statistics to a safetensors file, in one step.

        The file does not contain the model's own weights.

        Args:
            path: The file; an existing file is replaced.

        Raises:
            UsageError: The file can't be written; an existing file is unchanged.
        """
        supernet_file.save(self.partition, self.branches, path)

    def load(self, path: str | os.PathLike[str]) -> Supernet:
        """Read a file that `save` wrote from a supernet of the same model and options.

        Args:
            path: The file.

        Returns:
            This supernet.

        Raises:
            UsageError: There is no such file, it is damaged, or it is from another supernet. The
                supernet is unchanged.
        """
        supernet_file.load(self.partition, self.branches, path)
        return self

    def _output_nodes(self) -> list[fx.Node]:
        outputs: Any = self.partition.output_node.args[0]
        return list(outputs)

    def _result(self, node: fx.Node) -> tuple[str, bool]:
        """A result's name, and whether it is a constant of the model."""
        if node.op != "get_attr":
            return node.name, False
        # No attribute of a module has this prefix.
        name = f"constant_{node.name}"
        value = attribute(self.partition.graph_module, str(node.target))
        if name not in self._constants._buffers:
            assert isinstance(value, torch.Tensor)
            self._constants.register_buffer(name, value.detach(), persistent=False)
        return name, True

    @property
    def n_params(self) -> int:
        """Number of parameters of all branches; those that new branches share count once."""
        originals = sum(b.n_params for b in self.branches.values() if b.frozen)
        new = {
            parameter: parameter.numel()
            for branch in self.branches.values()
            if not branch.frozen
            for parameter in branch.module.parameters()
        }
        return originals + sum(new.values())

    def __str__(self) -> str:
        """A summary for terminals: branches of each kind, subnets, size, refusals."""
        return summary(self.partition, self.space, self.branches, self.skips)


# In the place of a result that is left out.
_LEFT_OUT = object()


def _without(result: Any) -> Any:
    """A structure without what is left out, and without containers that held nothing else."""
    if isinstance(result, Mapping):
        items = ((key, _without(value)) for key, value in result.items())
        kept: Any = {key: value for key, value in items if value is not _LEFT_OUT}
    elif type(result) in (tuple, list):
        kept = type(result)(v for v in map(_without, result) if v is not _LEFT_OUT)
    else:
        return result
    return kept if kept or not result else _LEFT_OUT


def _check_values(branch: Branch, liveness: Liveness) -> None:
    """Check that a branch can stand in for its interval beside any other branches."""
    live = liveness.live(branch.start)
    missing = [name for name in (*branch.inputs, *branch.context) if name not in live]
    if missing:
        raise UsageError(
            f"branch {branch.id!r} reads {missing[0]!r}, which is not live before its interval",
            expected=f"values that cross the cut before block {branch.start}: {', '.join(live)}",
            got=", ".join((*branch.inputs, *branch.context)),
        )
    outputs = liveness.outputs(branch.start, branch.stop)
    if sorted(branch.outputs) != sorted(outputs):
        raise UsageError(
            f"branch {branch.id!r} does not compute the values of its interval",
            expected=f"outputs {', '.join(outputs) or '(no values)'}",
            got=f"outputs {', '.join(branch.outputs) or '(no values)'}",
        )
