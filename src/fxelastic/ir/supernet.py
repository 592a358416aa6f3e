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
from fxelastic.ir.branch import Branch, Crossings, FrozenGraphModule, Skip
from fxelastic.ir.copyable import Copyable
from fxelastic.ir.operators import attribute
from fxelastic.ir.partition import Partition
from fxelastic.ir.signature import check_tensors
from fxelastic.ir.subnet import identifier, subnet_module
from fxelastic.ir.summary import summary
from fxelastic.spec import Arch, SearchSpace


class Supernet(Copyable, nn.Module):
    """A model as a multi-path network (AdaptiveNet §4.1).

    It is called as the model is, and returns what the model returns; a keyword ``arch`` chooses
    the subnet. Where the model takes an argument ``arch`` of its own, an `Arch` chooses the subnet
    and anything else is the model's; a call that needs both passes the model's by position.

    ``copy.deepcopy`` gives an independent supernet; pickling is refused (see `save`).

    A subnet runs over named values: each branch reads the values that it names and adds its
    outputs, so that any branches that tile the blocks run after one another, whatever their kind.
    A value is dropped after the last block that reads it.

    Originals stay in eval mode and never train: their parameters require no gradients (see
    `fxelastic.branches.original`). All others do, so that an optimiser is given the parameters
    with ``requires_grad``. The subnet of originals alone computes what the model does bit for bit,
    with and without gradients: its result requires them where the model's does, though a backward
    pass leaves no gradient anywhere but in the inputs. Beside new branches, originals run over
    weights that require none, for which torch may round differently.

    Attributes:
        partition: The blocks.
        branches: Each branch by its id, in the search space's order.
        space: The search space.
        skips: What makers did not make, with the reasons.
        branch_modules: The branches' modules, by their ids as identifiers (``original_3``).
    """

    def __init__(
        self, partition: Partition, branches: Iterable[Branch], skips: Iterable[Skip] = ()
    ) -> None:
        """Put branches over a partition together.

        Args:
            partition: The blocks.
            branches: An original for each block, and any others.
            skips: What makers did not make.

        Raises:
            UsageError: The branches are no search space, or one reads what need not be there, or
                does not give what the interval's blocks give.
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
        self._crossings = Crossings(partition)
        self.branch_modules = nn.Module()
        names = set(dir(self.branch_modules))
        for branch in self.branches.values():
            _check_values(branch, self._crossings)
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
            arch: The subnet; the model itself where None. Any other value than an `Arch` is passed
                to the model, if it takes an argument ``arch``.
            kwargs: The model's own keyword arguments.

        Returns:
            The subnet's result, in the structure of the model's. That of the originals is the
            model's, bit for bit.

        Raises:
            UsageError: The arch is none of this search space, or the arguments do not have the
                structure that the model was captured with.
        """
        if self._is_models_own(arch, args):
            kwargs, arch = {**kwargs, "arch": arch}, None
        values = self.bind(args, kwargs)
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
        """The branches of a subnet in execution order; the originals where None.

        Raises:
            UsageError: The arch is none of this search space.
        """
        if arch is None:
            return self._original_path
        return tuple(self.branches[spec.id] for spec in self.space.specs(arch))

    @cached_property
    def _original_path(self) -> tuple[Branch, ...]:
        return self.path(self.space.original)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The values that a call begins with: the model's inputs, by their names in the graph.

        Raises:
            UsageError: The arguments do not have the structure that the model was captured with.
        """
        signature = self.partition.signature
        leaves = signature.flatten_arguments(args, kwargs)
        check_tensors(signature.names, self._placeholders, leaves)
        return dict(zip(signature.inputs, leaves, strict=True))

    @cached_property
    def _placeholders(self) -> tuple[fx.Node, ...]:
        return tuple(node for node in self.partition.graph.nodes if node.op == "placeholder")

    def run_branch(
        self, branch: Branch, values: MutableMapping[str, Any], *, as_model: bool = False
    ) -> None:
        """Run one branch.

        Args:
            branch: One of the supernet's branches; those before its interval have run.
            values: Named values. The branch's outputs are added; what no later block reads is
                removed.
            as_model: Run an original exactly as the model does, as a teacher is run: gradients
                are tracked for weights too, unless they are disabled.
        """
        operands = [values[name] for name in (*branch.inputs, *branch.context)]
        if as_model and isinstance(branch.module, FrozenGraphModule):
            result = branch.module.as_model(*operands)
        else:
            result = branch.module(*operands)
        if len(branch.outputs) == 1:
            values[branch.outputs[0]] = result
        else:
            values.update(zip(branch.outputs, result, strict=True))
        last_read = self._crossings.last_read
        for name in [name for name in values if last_read.get(name, -1) < branch.stop]:
            del values[name]

    def result(self, values: Mapping[str, Any]) -> Any:
        """The model's own result structure from the values after the last branch."""
        outputs = [
            getattr(self._constants, name) if constant else values[name]
            for name, constant in self._results
        ]
        return self.partition.signature.unflatten_result(outputs)

    def subnet(self, arch: Arch | None = None) -> fx.GraphModule:
        """One subnet as a module of its own.

        Args:
            arch: The subnet; the model itself where None.

        Returns:
            A graph module that is called as the model is and holds only this subnet's branches,
            each a submodule. It is a copy: training or moving it leaves the supernet as it is.
            Originals share their weights' memory with the model, as in the supernet.

        Raises:
            UsageError: The arch is none of this search space.
        """
        result = subnet_module(self.partition, self.path(arch), self._results, self._constants)
        result.meta["arch"] = str(arch or self.space.original)
        return result.train(self.training)

    def trainable_parameters(self, arch: Arch | None = None) -> Iterator[nn.Parameter]:
        """The parameters that training may change: those of new branches, each once.

        Args:
            arch: Of this subnet's branches only; of all where None.

        Raises:
            UsageError: The arch is none of this search space.
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

        The model's own weights are not in it.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            UsageError: The file can't be written; an old one is as it was.
        """
        supernet_file.save(self, path)

    def load(self, path: str | os.PathLike[str]) -> Supernet:
        """Read a file that `save` wrote from a supernet of the same model and options.

        Args:
            path: The file.

        Returns:
            This supernet.

        Raises:
            UsageError: There is no such file, it is damaged, or it is of another supernet. The
                supernet is unchanged then.
        """
        supernet_file.load(self, path)
        return self

    def _output_nodes(self) -> list[fx.Node]:
        (output,) = (node for node in self.partition.graph.nodes if node.op == "output")
        nodes: list[fx.Node] = list(output.args[0])
        return nodes

    def _result(self, node: fx.Node) -> tuple[str, bool]:
        """Where a result comes from: its name, and whether it is a constant of the model."""
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
        """Parameters of all branches."""
        return sum(spec.n_params for spec in self.space.branches)

    def __str__(self) -> str:
        """A summary for terminals: branches of each kind, subnets, size, what was not made."""
        return summary(self)


def _check_values(branch: Branch, crossings: Crossings) -> None:
    """Refuse a branch that can't stand for its interval beside any others."""
    live = crossings.live(branch.start)
    missing = [name for name in (*branch.inputs, *branch.context) if name not in live]
    if missing:
        raise UsageError(
            f"branch {branch.id!r} reads {missing[0]!r}, which need not be there",
            expected=f"values that cross the cut before block {branch.start}: {', '.join(live)}",
            got=", ".join((*branch.inputs, *branch.context)),
        )
    outputs = crossings.outputs(branch.start, branch.stop)
    if sorted(branch.outputs) != sorted(outputs):
        raise UsageError(
            f"branch {branch.id!r} does not give what its interval gives",
            expected=f"outputs {', '.join(outputs) or 'none'}",
            got=f"outputs {', '.join(branch.outputs) or 'none'}",
        )
