"""What can't be captured is named with its cause, and the advice fits that cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fxelastic
from fxelastic import CaptureError, UsageError
from fxelastic.passes import capture

#: A message that says more than this buries what helps.
MAX_LENGTH = 600

X = torch.linspace(-1, 1, 24).reshape(3, 8)
SEQUENCES = torch.linspace(-1, 1, 120).reshape(3, 5, 8)


class Does(nn.Module):
    """Two layers, and a function of what is between them."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Samples (n, 8)."""
        return self.last(self.function(self.first(x)))


class Sequence(nn.Module):
    """A recurrent layer over packed sequences."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.last = layer, nn.Linear(8, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Sequences (n, steps, 8) and their lengths (n,)."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        last: Tensor = self.last(y[:, 0])
        return last


class OfPacked(nn.Module):
    """A model of packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.GRU(8, 8), nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        """Packed sequences of 8."""
        return self.last(self.layer(x)[1][0])


class Own(torch.autograd.Function):
    """A function with a backward of its own, by way of numpy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Sines."""
        return torch.from_numpy(np.sin(x.detach().numpy()))


class OneOfTwo(nn.Module):
    """A parametrisation that depends on the weight's values."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight or its negative."""
        return weight if weight.sum() > 0 else -weight


@torch.library.custom_op("fxelastic_tests::no_fake", mutates_args=())
def no_fake(x: Tensor) -> Tensor:
    return x + 1


def quantised() -> nn.Module:
    """A model of int8 weights and activations."""
    model = nn.Sequential(quantization.QuantStub(), nn.Linear(8, 8), quantization.DeQuantStub())
    model.eval().qconfig = quantization.get_default_qconfig("fbgemm")
    prepared = quantization.prepare(model)
    prepared(X)
    return quantization.convert(prepared)


def quantised_dynamically() -> nn.Module:
    """A model of int8 weights."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    return quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def halved(x: Tensor) -> Tensor:
    while x.abs().max() > 0.5:
        x = x / 2
    return x


def asserted(x: Tensor) -> Tensor:
    assert (x < 100).all()
    return x


#: A model, its inputs, and what is said of the cause, of the place and of the remedy.
OUTERMOST: dict[str, tuple[Callable[[], nn.Module], Any, str, str, str]] = {
    "an if": (
        lambda: Does(lambda x: x if x.sum() > 0 else -x),
        X,
        "control flow depends on the values",
        "x.sum() > 0",
        "torch.where",
    ),
    "a while": (lambda: Does(halved), X, "control flow", "while x.abs()", "torch.cond"),
    "an assert": (lambda: Does(asserted), X, "control flow", "assert (x < 100)", "torch.where"),
    "as many parts as rows that are chosen": (
        lambda: Does(lambda x: torch.stack(x[x[:, 0] > -9].unbind(0))),
        X,
        "a size depends on the values",
        "unbind(0)",
        "mask the results",
    ),
    "item": (
        lambda: Does(lambda x: sum([x] * int(x.abs().sum().item()))),
        X,
        "a tensor into a number",
        ".item()",
        "keep the number as a tensor",
    ),
    "int": (
        lambda: Does(lambda x: sum([x] * (1 + int((x > 0).sum())))),
        X,
        "a tensor into a number",
        "int((x > 0).sum())",
        "keep the number as a tensor",
    ),
    "numpy": (
        lambda: Does(lambda x: torch.from_numpy(np.tanh(x.detach().numpy()))),
        X,
        "numpy",
        "np.tanh",
        "torch functions instead of numpy's",
    ),
    "asarray": (
        lambda: Does(lambda x: torch.tensor(np.asarray(x.detach()))),
        X,
        "numpy",
        "np.asarray",
        "torch functions",
    ),
    "numpy in a function with a backward": (
        lambda: Does(Own.apply),
        X,
        "numpy",
        "np.sin",
        "torch functions",
    ),
    "packed sequences": (
        lambda: Sequence(nn.LSTM(8, 8, batch_first=True)),
        (SEQUENCES, torch.tensor([5, 3, 2])),
        "packed sequences",
        "pad_packed_sequence",
        "padded sequences",
    ),
    "a nested tensor": (
        lambda: Does(lambda x: torch.nested.nested_tensor([x, x]).to_padded_tensor(0.0)),
        X,
        "aten._nested_tensor_from_tensor_list.default",
        "nested_tensor",
        "replace aten._nested",
    ),
    "an operator without a fake kernel": (
        lambda: Does(torch.ops.fxelastic_tests.no_fake),
        X,
        "fxelastic_tests.no_fake",
        "self.function(",
        "register_fake",
    ),
    "int8": (quantised, X, "'0' is a quantised module", "", "floating-point model"),
    "int8 weights": (
        quantised_dynamically,
        X,
        "'0' is a quantised module",
        "",
        "floating-point model",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", OUTERMOST)
def test_the_advice_fits_what_the_outermost_forward_does(name: str) -> None:
    make, inputs, reason, place, advice = OUTERMOST[name]
    with pytest.raises(CaptureError, match="can't be captured") as caught:
        capture(make().eval(), inputs)
    error = caught.value
    assert reason in (error.got or "")
    assert place in (error.got or "")
    assert advice in (error.fix or "")
    assert len(str(error)) <= MAX_LENGTH


def test_an_unknown_cause_has_torchs_message_and_no_advice() -> None:
    def picky(x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise TypeError("a plain tensor is wanted")
        return x

    with pytest.raises(CaptureError) as caught:
        capture(Does(picky).eval(), X)
    assert "TypeError: a plain tensor is wanted" in (caught.value.got or "")
    assert 'raise TypeError("a plain tensor is wanted")' in (caught.value.got or "")
    assert caught.value.fix is None


PARTS: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "an if": (
        lambda: nn.Sequential(nn.Linear(8, 8), Does(lambda x: x if x.sum() > 0 else -x)),
        X,
        "control flow depends on the values",
    ),
    "packed sequences": (
        OfPacked,
        (pack_sequence([torch.ones(3, 8), torch.ones(2, 8)]),),
        "packed sequences",
    ),
    "numpy": (
        lambda: nn.Sequential(nn.Linear(8, 8), Does(lambda x: torch.tensor(np.asarray(x.data)))),
        X,
        "numpy",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_kept_whole_has_its_cause(name: str) -> None:
    make, inputs, reason = PARTS[name]
    ((_, found),) = capture(make().eval(), inputs).opaque
    assert reason in found


def test_a_part_of_a_model_of_one_batch_size_is_named() -> None:
    model = nn.Sequential(Does(lambda x: x if x.sum() > 0 else -x), nn.Unflatten(0, (1, 3)))
    with pytest.raises(CaptureError, match="'0' can't be kept whole") as caught:
        capture(model.eval(), X)
    assert "at another batch size" in str(caught.value)
    assert "torch.where" in str(caught.value)


class Buffered(nn.Module):
    """A layer and a buffer."""

    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("scale", buffer)

    def forward(self, x: Tensor) -> Any:
        """Samples (n, 8)."""
        return self.layer(x) * self.scale


UNFIT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a lazy layer": (lambda: nn.LazyLinear(8), "'weight', 'bias' have no shape yet", "once"),
    "a lazy part": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.LazyBatchNorm1d()),
        "'1.weight', '1.bias', '1.running_mean' and 1 more have no shape yet",
        "once",
    ),
    "lazy buffers": (lambda: nn.LazyBatchNorm1d(affine=False), "'running_mean'", "once"),
    "a model without values": (
        lambda: nn.Linear(8, 8, device="meta"),
        "'weight', 'bias' have no values",
        "to_empty",
    ),
    "a part without values": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta")),
        "'1.weight', '1.bias' have no values",
        "load its weights",
    ),
    "a buffer without values": (
        lambda: Buffered(torch.ones(8, device="meta")),
        "'scale' have no values",
        "to_empty",
    ),
    "a sparse buffer": (
        lambda: Buffered(torch.eye(8).to_sparse()),
        "'scale' can't be captured",
        "to_dense",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", UNFIT)
def test_weights_without_shape_or_values_are_refused_by_name(name: str) -> None:
    make, what, advice = UNFIT[name]
    with pytest.raises(CaptureError) as caught:
        fxelastic.partition(make(), example_inputs=X)
    assert what in caught.value.what
    assert advice in (caught.value.fix or "")


def test_inputs_without_values_are_refused() -> None:
    with pytest.raises(UsageError, match="hold no values"):
        capture(nn.Linear(8, 8), X.to("meta"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("form", "make"),
    [
        ("sparse", lambda: X.to_sparse()),
        ("sparse", lambda: X.to_sparse_csr()),
        ("nested", lambda: torch.nested.nested_tensor(list(X))),
        ("quantised", lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)),
    ],
)
def test_inputs_that_are_not_dense_are_refused(form: str, make: Callable[[], Tensor]) -> None:
    with pytest.raises(UsageError, match="can't be captured") as caught:
        capture(nn.Linear(8, 8), make())
    assert caught.value.got == f"a {form} tensor"


class Averages(nn.Module):
    """Writes to a buffer, through a view so that the writing can't be seen as simple."""

    def __init__(self, new: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("state", torch.ones(2, 8))
        self.new = new

    def forward(self, x: Tensor) -> Any:
        """Samples (n, 8)."""
        self.state[0] = self.new(self.state[0], x)
        return self.layer(x) * self.state[0]


def prepared(observing: bool) -> nn.Module:
    """A model for quantisation-aware training; its observers are on or off."""
    layers = [nn.Linear(8, 8) for _ in range(6)]
    model = nn.Sequential(quantization.QuantStub(), *layers, quantization.DeQuantStub()).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    made = quantization.prepare_qat(model)
    made(X)
    if not observing:
        made.apply(quantization.disable_observer)
    return made.eval()


WRITES: dict[str, Callable[[], nn.Module]] = {
    "observers that are off": lambda: prepared(observing=False),
    "the value that is there": lambda: Averages(lambda state, x: state),
    "a constant": lambda: Averages(lambda state, x: torch.ones(8)),
    "an average that is frozen": lambda: Averages(lambda state, x: state + 0.0 * x.mean()),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", WRITES)
def test_a_buffer_that_is_written_with_its_own_value_is_not_state(name: str) -> None:
    model = WRITES[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    traced = capture(model, X)
    with torch.no_grad():
        torch.testing.assert_close(traced(X + 1), model(X + 1))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


CHANGES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "observers that are on": (lambda: prepared(observing=True), "disable_observer"),
    "an average": (lambda: Averages(lambda state, x: 0.9 * state + x.mean()), "a counter"),
    # The second call with the same inputs changes nothing.
    "a maximum": (lambda: Averages(lambda state, x: state.maximum(x.amax(0))), "a counter"),
    "a minimum": (lambda: Averages(lambda state, x: state.minimum(x.amin(0))), "a counter"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_a_buffer_that_changes_is_named_in_few_words(name: str) -> None:
    make, advice = CHANGES[name]
    with pytest.raises(CaptureError, match="writes to its own state in forward") as caught:
        capture(make(), X)
    assert advice in (caught.value.fix or "")
    assert len(str(caught.value)) <= MAX_LENGTH


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_parametrisation_is_named() -> None:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", OneOfTwo())
    ((path, reason),) = capture(nn.Sequential(nn.Linear(8, 8), layer).eval(), X).opaque
    assert path == "1.parametrizations.weight.0"
    assert "parametrisation of a weight" in reason
