"""What can't be exported is named with its cause; the dtype only where it is the cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization

import fxelastic
from fxelastic.errors import ExportError

X = torch.linspace(-1, 1, 24).reshape(3, 8)
MAX_LENGTH = 600


class Does(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Samples (n, 8)."""
        return self.last(self.function(self.first(x)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def prepared(version: int) -> nn.Module:
    """A model for quantisation-aware training with its observers off."""
    model = mlp().train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm", version=version)
    made = quantization.prepare_qat(model)
    made(X)
    return made.apply(quantization.disable_observer)


def decides(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


#: A model, its inputs, what happened, what is known of the cause, and the remedy.
REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str, str, str]] = {
    "bfloat16": (
        lambda: mlp().bfloat16(),
        X.bfloat16(),
        "can't be loaded by onnxruntime",
        "no kernel for Gemm of bfloat16",
        "compute the operator that becomes Gemm in float32",
    ),
    "float64": (
        lambda: Does(lambda x: x.asinh()).double(),
        X.double(),
        "can't be loaded by onnxruntime",
        "no kernel for Asinh of float64",
        "compute the operator that becomes Asinh in float32",
    ),
    "float64 in a function of ONNX": (
        lambda: Does(nn.functional.gelu).double(),
        X.double(),
        "can't be loaded by onnxruntime",
        "no kernel for Erf of float64",
        "compute the operator that becomes Erf in float32",
    ),
    "an integer dtype": (
        lambda: Does(lambda x: (10 * x).short().maximum(torch.ones(8).short()).float()),
        X,
        "can't be loaded by onnxruntime",
        "no kernel for Max of int16",
        "compute it in another dtype",
    ),
    "complex numbers": (
        lambda: mlp().to(torch.complex64),
        X.to(torch.complex64),
        "the ONNX exporter can't convert 2 of 2 branches",
        "no conversion for aten.linear.default of complex numbers",
        "the real and the imaginary parts separately",
    ),
    "an operator": (
        lambda: Does(lambda x: torch.linalg.svd(x)[2]),
        X,
        "the ONNX exporter can't convert 1 of",
        "aten.linalg_svd: torch.onnx has no conversion for",
        "replace aten.linalg_svd",
    ),
    "fake quantisation": (
        lambda: prepared(1),
        X,
        "the ONNX exporter can't convert",
        "aten._fused_moving_avg_obs_fq_helper",
        "before torch.ao.quantization.prepare_qat",
    ),
    "fake quantisation by switches": (
        lambda: prepared(0),
        X,
        "the ONNX exporter can't convert",
        "FakeQuantize reads its own switches",
        "before torch.ao.quantization.prepare_qat",
    ),
    "random numbers": (
        lambda: Does(lambda x: nn.functional.dropout(x, 0.5, training=True)),
        X,
        "draw random numbers",
        "its operators draw random numbers: aten.dropout.default",
        "verify=False",
    ),
    "a part that is kept whole": (
        lambda: nn.Sequential(nn.Linear(8, 8), Does(decides)),
        X,
        "the ONNX exporter can't convert 1 of",
        "Does is kept whole: its control flow depends on the values of a tensor",
        "torch.where",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_the_advice_fits_the_reason_of_a_failed_export(name: str, tmp_path: Path) -> None:
    make, inputs, what, reason, advice = REFUSED[name]
    supernet = fxelastic.expand(make().eval(), 0.6, example_inputs=inputs, kinds=())
    with pytest.raises(ExportError) as caught:
        fxelastic.export(supernet, tmp_path / "bundle", n_subnets=0)
    error = caught.value
    assert what in error.what
    assert reason in (error.got or "")
    assert advice in (error.fix or "")
    assert len(str(error)) <= MAX_LENGTH
    assert ("model.float()" in str(error)) == name.startswith(("bfloat", "float"))
