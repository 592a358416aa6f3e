"""Buffers that change as the model is first called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxelastic.passes import capture


class _FillsItsBuffer(nn.Module):
    """Computes a table for the size of its input at the first call, as ConViT does."""

    def __init__(self, table: Tensor | None) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1], dtype=x.dtype)
        return self.linear(x) + self.table


@pytest.mark.parametrize("table", [torch.zeros(1), None])
def test_buffers_that_the_first_call_fills(table: Tensor | None) -> None:
    torch.manual_seed(0)
    model, x = _FillsItsBuffer(table).eval(), torch.randn(3, 6)
    traced = capture(model, x)
    assert model.table is table
    assert torch.equal(traced(x), model(x))
