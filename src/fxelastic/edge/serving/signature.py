"""How a model is called on the device, and what it returns there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fxelastic.edge.serving.executable import Array


class Signature(Protocol):
    """Turns a call into named arrays, and output arrays into what the model returns."""

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Array]:
        """The arrays of a call, by input name.

        Raises:
            UsageError: They are not the model's inputs.
        """

    def result(self, outputs: Sequence[Array]) -> Any:
        """What the model returns for these outputs."""
