"""Small operators to put before and after one another, for `fusion_probe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

C = 16
"""Channels, the same everywhere, so that any two operators of a kind fit together."""

SHAPES: dict[str, tuple[int, ...]] = {
    "image": (2, C, 8, 8),
    "signal": (2, C, 12),
    "volume": (2, C, 4, 4, 4),
    "tokens": (2, 5, C),
    "heads": (2, 4, 5, C),
    "vector": (2, C),
    "indices": (2, 5),
}


class Operator(nn.Module):
    """One call, with its own parameters and ``others`` as its further stream operands."""

    def __init__(self, call: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.call = call
        self.weights = nn.ParameterList([torch.rand(shape) + 0.5 for shape in shapes])

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Call the operator."""
        return self.call(x, *self.weights, *others)


class Chain(nn.Module):
    """Operators one after the other; each takes its own further operands."""

    def __init__(self, steps: Sequence[nn.Module], n_others: Sequence[int]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.n_others = tuple(n_others)

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Run the operators in order."""
        first = 0
        for step, count in zip(self.steps, self.n_others, strict=True):
            x = step(x, *others[first : first + count])
            first += count
        return x


@dataclass(frozen=True)
class Sample:
    """A small operator to put before or after another one.

    Attributes:
        name: Unique among the samples of a kind.
        build: Makes the module.
        others: Shapes of its further stream operands.
        result: Kind of its output, if it differs from the kind of its input.
    """

    name: str
    build: Callable[[], nn.Module]
    others: tuple[tuple[int, ...], ...] = ()
    result: str | None = None


def _variance(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-6


def _call(name: str, call: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> Sample:
    return Sample(name, lambda: Operator(call, *shapes))


def _joined(name: str, call: Callable[..., torch.Tensor], other: tuple[int, ...]) -> Sample:
    return Sample(name, lambda: Operator(call), (other,))


def _batch_norm(module: nn.Module) -> nn.Module:
    """Give a batch norm statistics other than the identity, like trained ones."""
    for buffer in module.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    return module


ACTIVATIONS: tuple[Sample, ...] = (
    _call("relu", F.relu),
    _call("relu6", F.relu6),
    _call("hardtanh", F.hardtanh),
    _call("clamp_min", lambda x: x.clamp(min=0.1)),
    _call("clamp", lambda x: x.clamp(0.0, 6.0)),
    _call("leaky_relu", lambda x: F.leaky_relu(x, 0.1)),
    _call("prelu", F.prelu, (1,)),
    _call("sigmoid", torch.sigmoid),
    _call("tanh", torch.tanh),
    _call("hardsigmoid", F.hardsigmoid),
    _call("hardswish", F.hardswish),
    _call("silu", F.silu),
    _call("gelu", F.gelu),
    _call("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    _call("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    _call("x_sigmoid", lambda x: x * torch.sigmoid(x)),
    _call("elu", F.elu),
    _call("selu", F.selu),
    _call("celu", F.celu),
    _call("mish", F.mish),
    _call("softplus", F.softplus),
    _call("log_sigmoid", F.logsigmoid),
    _call("relu_clamp", lambda x: F.relu(x).clamp(max=4.0)),
)


def _common(kind: str) -> tuple[Sample, ...]:
    """Operators that every kind of value has."""
    shape = SHAPES[kind]
    swapped = (1, 2) if kind == "heads" else (-1, -2)

    def transpose(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(*swapped).contiguous() if x.dim() > 2 else x.neg()

    per_channel = (C,) if kind in ("tokens", "heads", "vector") else (C,) + (1,) * (len(shape) - 2)
    return (
        _joined("add", torch.add, shape),
        _joined("sub", torch.sub, shape),
        _joined("mul", torch.mul, shape),
        _call("add_constant", torch.add, per_channel),
        _call("sub_constant", torch.sub, per_channel),
        _call("mul_constant", torch.mul, per_channel),
        _call("div_constant", torch.div, per_channel),
        _call("mul_number", lambda x: x * 0.125),
        _call("div_number", lambda x: x / 8.0),
        _call("add_number", lambda x: x + 1.5),
        _call("neg", torch.neg),
        _call("pow", lambda x: x**2),
        _call("sqrt", torch.sqrt),
        _call("exp", torch.exp),
        _call("dropout", lambda x: F.dropout(x, training=False)),
        _call("softmax", lambda x: x.softmax(-1)),
        _call("transpose", transpose),
        _call("flatten", lambda x: x.flatten(1)),
        *ACTIVATIONS,
    )


IMAGE: tuple[Sample, ...] = (
    Sample("conv2d", lambda: nn.Conv2d(C, C, 3, padding=1)),
    Sample("conv2d_no_bias", lambda: nn.Conv2d(C, C, 1, bias=False)),
    Sample("conv2d_depthwise", lambda: nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False)),
    Sample("conv2d_same", lambda: nn.Conv2d(C, C, 3, padding="same")),
    Sample("conv_transpose2d", lambda: nn.ConvTranspose2d(C, C, 3, padding=1)),
    Sample("batch_norm", lambda: _batch_norm(nn.BatchNorm2d(C))),
    Sample("group_norm", lambda: nn.GroupNorm(4, C)),
    Sample("instance_norm", lambda: nn.InstanceNorm2d(C, affine=True)),
    Sample("local_response_norm", lambda: nn.LocalResponseNorm(3)),
    _call("pad", lambda x: F.pad(x, (1, 1, 1, 1))),
    _call("pad_reflect", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    _call("max_pool2d", lambda x: F.max_pool2d(x, 3, 1, 1)),
    _call("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 1, 1)),
    _call("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1)),
    _call("mean", lambda x: x.mean((2, 3), keepdim=True)),
    _call("interpolate", lambda x: F.interpolate(x, scale_factor=2.0)),
    _call("pixel_shuffle", lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)),
    _joined("cat", lambda x, y: torch.cat([x, y], 1)[:, :C], SHAPES["image"]),
    _call("channels_last", lambda x: x.permute(0, 2, 3, 1)),
    _call("layer_norm", lambda x: F.layer_norm(x, (8,))),
    _call("channels_last_back", lambda x: x.permute(0, 3, 1, 2)),
    _call("channel_shuffle", lambda x: F.channel_shuffle(x, 4)),
    *_common("image"),
)

SIGNAL: tuple[Sample, ...] = (
    Sample("conv1d", lambda: nn.Conv1d(C, C, 3, padding=1)),
    Sample("conv_transpose1d", lambda: nn.ConvTranspose1d(C, C, 3, padding=1)),
    Sample("batch_norm", lambda: _batch_norm(nn.BatchNorm1d(C))),
    _call("pad", lambda x: F.pad(x, (1, 1))),
    _call("max_pool1d", lambda x: F.max_pool1d(x, 3, 1, 1)),
    _call("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 1, 1)),
    *_common("signal"),
)

VOLUME: tuple[Sample, ...] = (
    Sample("conv3d", lambda: nn.Conv3d(C, C, 3, padding=1)),
    Sample("conv_transpose3d", lambda: nn.ConvTranspose3d(C, C, 3, padding=1)),
    Sample("batch_norm", lambda: _batch_norm(nn.BatchNorm3d(C))),
    _call("pad", lambda x: F.pad(x, (1, 1, 1, 1, 1, 1))),
    _call("max_pool3d", lambda x: F.max_pool3d(x, 3, 1, 1)),
    _call("avg_pool3d", lambda x: F.avg_pool3d(x, 3, 1, 1)),
    *_common("volume"),
)

TOKENS: tuple[Sample, ...] = (
    Sample("linear", lambda: nn.Linear(C, C)),
    Sample("linear_no_bias", lambda: nn.Linear(C, C, bias=False)),
    _call("matmul_constant", torch.matmul, (C, C)),
    _joined("matmul", torch.matmul, (2, C, 7)),
    _joined("matmul_transposed", lambda x, y: x @ y.transpose(-1, -2), (2, 7, C)),
    _joined("bmm", torch.bmm, (2, C, 7)),
    _joined("matmul_tokens", torch.matmul, (2, 5, 7)),
    Sample("linear_tokens", lambda: nn.Linear(5, 5)),
    Sample("layer_norm", lambda: nn.LayerNorm(C)),
    _call("layer_norm_residual", lambda x, w, b: F.layer_norm(x, (C,), w, b) + x, (C,), (C,)),
    Sample("layer_norm_plain", lambda: nn.LayerNorm(C, elementwise_affine=False)),
    Sample("rms_norm", lambda: nn.RMSNorm(C, eps=1e-6)),
    _call(
        "rms_norm_by_hand",
        lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
        (C,),
    ),
    _call("standardise", lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(_variance(x))),
    _call("reshape", lambda x: x.reshape(x.shape[0], 5, 4, C // 4)),
    _call("split", lambda x: torch.cat(x.chunk(2, -1)[::-1], -1)),
    _call("glu", lambda x: F.glu(torch.cat([x, x], -1))),
    _call("select_first", lambda x: x[:, 0]),
    _call("mean", lambda x: x.mean(1)),
    *_common("tokens"),
)

HEADS: tuple[Sample, ...] = (
    _joined("matmul", torch.matmul, (2, 4, C, 7)),
    _joined("matmul_transposed", lambda x, y: x @ y.transpose(-1, -2), (2, 4, 7, C)),
    _call("attention", lambda x: F.scaled_dot_product_attention(x, x, x)),
    _call("linear", lambda x, w, b: F.linear(x, w, b), (C, C), (C,)),
    Sample("layer_norm", lambda: nn.LayerNorm(C)),
    _call("merge_heads", lambda x: x.transpose(1, 2).flatten(2)),
    *_common("heads"),
)

VECTOR: tuple[Sample, ...] = (
    Sample("linear", lambda: nn.Linear(C, C)),
    Sample("linear_no_bias", lambda: nn.Linear(C, C, bias=False)),
    _call("addmm", lambda x, b, w: torch.addmm(b, x, w), (C,), (C, C)),
    _call("mm", torch.mm, (C, C)),
    _call("matmul", torch.matmul, (C, C)),
    Sample("batch_norm", lambda: _batch_norm(nn.BatchNorm1d(C))),
    Sample("layer_norm", lambda: nn.LayerNorm(C)),
    *_common("vector"),
)

INDICES: tuple[Sample, ...] = (Sample("embedding", lambda: nn.Embedding(32, C), result="tokens"),)

SAMPLES: dict[str, tuple[Sample, ...]] = {
    "image": IMAGE,
    "signal": SIGNAL,
    "volume": VOLUME,
    "tokens": TOKENS,
    "heads": HEADS,
    "vector": VECTOR,
    "indices": INDICES,
}

COMMON = frozenset(sample.name for sample in _common("image"))
"""Pairs of these need no measurement for every kind of value."""

CHAINS: tuple[tuple[str, str], ...] = (
    # kind, operators; "|" marks the cut.
    ("image", "conv2d batch_norm | relu"),
    ("image", "conv2d batch_norm | relu6"),
    ("image", "conv2d batch_norm | hardswish"),
    ("image", "conv2d batch_norm | silu"),
    ("image", "conv2d batch_norm | gelu"),
    ("image", "conv2d batch_norm | sigmoid"),
    ("image", "conv2d batch_norm | hardsigmoid"),
    ("image", "conv2d batch_norm | leaky_relu"),
    ("image", "conv2d batch_norm | clamp"),
    ("image", "conv2d batch_norm | add"),
    ("image", "conv2d batch_norm | mul_constant"),
    ("image", "conv2d add | relu"),
    ("image", "conv2d | add relu"),
    ("image", "conv2d | batch_norm relu"),
    ("image", "conv2d batch_norm add | relu"),
    ("image", "conv2d batch_norm | add relu"),
    ("image", "conv2d mul_constant | add"),
    ("image", "conv2d add_constant | relu"),
    ("image", "conv2d mul_constant | relu"),
    ("image", "conv2d mul_constant | add_constant"),
    ("image", "conv2d relu | batch_norm"),
    ("image", "pad conv2d | batch_norm"),
    ("image", "pad | conv2d batch_norm relu"),
    ("image", "conv2d batch_norm | batch_norm"),
    ("image", "conv2d mul_constant | batch_norm"),
    ("image", "conv2d add_constant | batch_norm"),
    ("image", "conv2d add | batch_norm"),
    ("image", "conv2d add_constant | mul_constant"),
    ("image", "batch_norm relu | conv2d"),
    ("image", "conv_transpose2d batch_norm | relu"),
    ("image", "conv2d dropout | relu"),
    ("image", "conv2d | dropout relu"),
    ("image", "conv2d dropout | batch_norm"),
    ("image", "conv2d dropout | mul_constant"),
    ("image", "channels_last | layer_norm"),
    ("image", "conv2d | dropout batch_norm"),
    ("signal", "conv1d batch_norm | relu"),
    ("volume", "conv3d batch_norm | relu"),
    ("vector", "linear batch_norm | relu"),
    ("vector", "linear_no_bias add_constant | relu"),
    ("vector", "linear add | relu"),
    ("vector", "mm add_constant | relu"),
    ("vector", "matmul | add_constant relu"),
    ("vector", "linear batch_norm | batch_norm"),
    ("tokens", "linear gelu | linear"),
    ("tokens", "linear_no_bias add_constant | gelu"),
    ("tokens", "linear add | layer_norm"),
    ("tokens", "linear add | rms_norm"),
    ("tokens", "linear add | rms_norm_by_hand"),
    ("tokens", "linear | add layer_norm"),
    ("tokens", "add add | layer_norm"),
    ("tokens", "add dropout | layer_norm"),
    ("tokens", "add layer_norm | linear"),
    ("tokens", "linear softmax | matmul"),
    ("tokens", "matmul_transposed div_number | softmax"),
    ("tokens", "matmul_transposed | div_number softmax"),
    ("tokens", "mul_number matmul_transposed | softmax"),
    ("tokens", "standardise | mul_constant add_constant"),
    ("tokens", "standardise mul_constant | add_constant"),
    ("tokens", "transpose | transpose"),
    ("tokens", "transpose | linear_tokens"),
    ("tokens", "transpose linear_tokens | transpose"),
    ("tokens", "transpose linear_tokens | gelu"),
    ("tokens", "transpose | matmul_tokens"),
    ("tokens", "add | layer_norm_residual"),
    ("tokens", "linear add | layer_norm_residual"),
    ("tokens", "linear | add layer_norm_residual"),
    ("tokens", "linear | dropout gelu"),
    ("tokens", "linear dropout | gelu"),
    ("tokens", "linear dropout | add layer_norm"),
    ("tokens", "linear | dropout add layer_norm"),
    ("tokens", "add | dropout layer_norm"),
    ("tokens", "mul linear | gelu"),
    ("heads", "matmul_transposed div_number | softmax"),
    ("indices", "embedding | layer_norm"),
    ("indices", "embedding add | layer_norm"),
    ("indices", "embedding add_constant | layer_norm"),
    ("indices", "embedding add add | layer_norm"),
)


def find(kind: str, name: str) -> Sample:
    """The sample of a kind by name."""
    return next(sample for sample in SAMPLES[kind] if sample.name == name)
