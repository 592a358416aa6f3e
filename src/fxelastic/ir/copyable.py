"""Copy stages with ``copy.deepcopy``, and refuse to pickle them."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, NoReturn

from torch import nn

from fxelastic.errors import UsageError


class Copyable:
    """Base class of objects that hold a captured graph.

    - ``copy.deepcopy`` shares nothing with the original that a run or training changes. Parameters
      that share memory (a frozen original and the model's own weight) do so in the copy, too.
    - Pickling raises a `UsageError`: a graph's shapes are symbols of the process that captured it.
    """

    def __copy__(self) -> Any:
        """A shallow copy."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with weights of its own."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        for module in self._modules_to_copy():
            for parameter in module.parameters():
                # A Parameter's own deepcopy does not keep shared memory shared; a tensor's does.
                if id(parameter) not in memo and type(parameter) is nn.Parameter:
                    value = copy.deepcopy(parameter.detach(), memo)
                    memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
        # Cached properties may refer to the original's nodes; the copy computes its own.
        cached = {
            name
            for cls in type(self).__mro__
            for name, value in vars(cls).items()
            if isinstance(value, cached_property)
        }
        state = {name: value for name, value in self.__dict__.items() if name not in cached}
        new.__dict__.update(copy.deepcopy(state, memo))
        return new

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse pickling.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"a {type(self).__name__} can't be pickled",
            expected="copy.deepcopy for a copy in this process, supernet.save(path) for a file",
            got="pickle, torch.save or another process",
            fix="save the weights with supernet.save(path), and in the other process call "
            "fxelastic.expand with the same model and options, then supernet.load(path)",
        )

    def _modules_to_copy(self) -> tuple[nn.Module, ...]:
        """Modules whose parameters may share memory."""
        return ()
