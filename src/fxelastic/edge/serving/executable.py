"""What the runtime needs to run a subnet: something that runs, and something that loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fxelastic.spec import Arch

Array: TypeAlias = NDArray[Any]


class Executable(Protocol):
    """A subnet in memory.

    The contract:

    * `run` may be called by several threads at once, and changes none of its inputs.
    * The same inputs give the same outputs.
    * `close` is called once, after the last `run` has returned, and frees what the subnet holds
      alone. It does not fail.
    """

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Run the subnet.

        Args:
            inputs: An array for each of the bundle's inputs, by name.

        Returns:
            An array for each of the bundle's outputs, in their order.
        """

    def close(self) -> None:
        """Free the subnet."""


class Loader(Protocol):
    """Loads subnets.

    The contract:

    * `load` is called by one thread at a time, while requests run on other subnets; it should hold
      the interpreter's lock for a few milliseconds at most. Any exception means that this subnet
      can't be had; nothing is left behind then.
    * `added_bytes` is quick, and never an underestimate of what `load` makes resident by more than
      a few per cent.
    """

    def load(self, arch: Arch) -> Executable:
        """Load a subnet from files."""

    def added_bytes(self, arch: Arch) -> int:
        """Memory that loading a subnet would take now, in bytes."""

    @property
    def resident_bytes(self) -> int:
        """Memory that the weights of all loaded subnets take, in bytes; what they share, once."""

    def close(self) -> None:
        """Free what subnets share; called once, after the last of them was closed."""


def all_finite(outputs: Sequence[Array]) -> bool:
    """Whether no output holds a NaN or an infinity.

    A sum is enough to see one, and takes a fraction of the time of looking at every element, which
    is done only where the sum itself overflows.
    """
    for output in outputs:
        if output.dtype.kind not in "fc":
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduce(
                output, axis=None, dtype=np.float32 if output.dtype.itemsize == 2 else None
            )
        if not np.isfinite(total) and not np.isfinite(output).all():
            return False
    return True
