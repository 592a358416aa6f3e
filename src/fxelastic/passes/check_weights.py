"""Refuse weights that no graph can be computed with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fxelastic.errors import CaptureError, listed


def check_weights(model: nn.Module) -> None:
    """Check that all parameters and buffers are dense tensors in memory.

    Args:
        model: Any module.

    Raises:
        CaptureError: Some have no shape yet, no values, or are sparse; the message names them.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())

    def refuse(wrong: Callable[[torch.Tensor], bool], what: str, got: str, fix: str) -> None:
        names = [name for name, tensor in tensors if wrong(tensor)]
        if names:
            raise CaptureError(
                f"{listed(map(repr, names))} {what}",
                expected="parameters and buffers that are dense tensors in memory",
                got=got,
                fix=fix,
            )

    refuse(
        lambda tensor: bool(is_lazy(tensor)),
        "have no shape yet",
        "weights of a lazy module",
        "call model(example) once, then pass the model",
    )
    refuse(
        lambda tensor: tensor.is_meta,
        "have no values",
        "tensors on the meta device",
        'materialise the model with model.to_empty(device="cpu"), then load its weights',
    )
    refuse(
        lambda tensor: tensor.layout != torch.strided,
        "can't be captured",
        "sparse tensors",
        "convert them with to_dense()",
    )
