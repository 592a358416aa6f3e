"""Operators that the exporter refuses or gets wrong compute in onnxruntime what they do in torch.

All of them are captured in one model and converted in one go, each as a piece of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxelastic
from fxelastic import edge
from fxelastic.backends.onnxruntime.conversion import DEFAULT_OPSET, convert
from fxelastic.backends.onnxruntime.pieces import Piece, free_sizes
from fxelastic.errors import ExportError
from fxelastic.passes.capture import capture

INDEX = torch.tensor([0, 1, 1, 0, 2, 4, 4, 4])
BOUNDS = torch.tensor([-1.0, -0.5, -0.5, 0.0, 0.5, 2.0])
WINDOW = torch.hann_window(8)
SHAPES = {
    "rows": (3, 8),
    "sequences": (3, 7, 8),
    "signals": (3, 4, 11),
    "images": (3, 4, 7, 9),
    "volumes": (3, 2, 5, 6, 7),
    "waves": (3, 32),
}

Function = Callable[[Tensor], Any]


def index(x: Tensor) -> Tensor:
    return INDEX.expand(x.shape[0], -1)


def reduced(reduce: str, include_self: bool) -> Function:
    def function(x: Tensor) -> Tensor:
        value = torch.full((x.shape[0], 5), 2.0)
        return value.scatter_reduce(1, index(x), x, reduce, include_self=include_self)

    return function


def reduced_integers(reduce: str, include_self: bool) -> Function:
    def function(x: Tensor) -> Tensor:
        value = torch.full((x.shape[0], 5), 2)
        source = x.nan_to_num(0, 3, -3).mul(3).long()
        return value.scatter_reduce(1, index(x), source, reduce, include_self=include_self)

    return function


def reduced_slices(reduce: str, include_self: bool) -> Function:
    def function(x: Tensor) -> Tensor:
        value = torch.full((x.shape[0], 5), 2.0)
        return value.index_reduce(1, INDEX, x, reduce, include_self=include_self)

    return function


def reduced_rows(reduce: str) -> Function:
    """Along the batch, as the nodes of a graph are."""

    def function(x: Tensor) -> Tensor:
        to = (torch.arange(x.shape[0]) % 3)[:, None].expand(-1, 8)
        return torch.zeros(4, 8).scatter_reduce(0, to, x, reduce, include_self=False)

    return function


def placed(found: tuple[Tensor, Tensor], x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Values, and what lies at the indices: of equal elements torch takes any."""
    return found[0], x.gather(dim, found[1])


def inverted(x: Tensor, **options: Any) -> Tensor:
    two = {"normalized", "onesided", "center"} & options.keys()
    own = {name: options[name] for name in two}
    spectrum = torch.stft(x, 8, 4, window=WINDOW, return_complex=True, **own)
    return torch.istft(spectrum, 8, 4, window=WINDOW, **options)


def without_diagonal(x: Tensor) -> Tensor:
    x = x.clone()
    x.diagonal(1, 1, 2).fill_(0.5)
    return x


# What each reads, and what it computes. Where onnxruntime's maxima pass over NaN, and its products
# of matrices make it of infinity, only finite numbers are compared.
OPERATORS: dict[str, tuple[str, Function]] = {
    **{f"scatter_reduce mean {own}": ("rows", reduced("mean", own)) for own in (True, False)},
    "scatter_reduce amax of infinities": ("rows infinite", reduced("amax", False)),
    "scatter_reduce mean of integers": ("rows", reduced_integers("mean", True)),
    "scatter_reduce mean of integers alone": ("rows", reduced_integers("mean", False)),
    "scatter_reduce mean of rows": ("rows", reduced_rows("mean")),
    "scatter_reduce of fewer indices": (
        "rows",
        lambda x: x.scatter_reduce(1, index(x)[:, :5], x, "sum", include_self=False),
    ),
    "scatter of fewer indices": (
        "rows",
        lambda x: x.scatter(1, torch.tensor([3, 1, 2]).expand(x.shape[0], 3), x),
    ),
    "scatter_add of fewer indices": ("rows", lambda x: x.scatter_add(1, index(x)[:, :5], x)),
    "scatter with add": ("rows", lambda x: x.scatter(1, index(x), x, reduce="add")),
    "scatter with multiply": ("rows", lambda x: x.scatter(1, index(x), 2.0, reduce="multiply")),
    **{
        f"index_reduce {kind} {own}": (
            "rows" if kind in ("prod", "mean") else "rows finite",
            reduced_slices(kind, own),
        )
        for kind in ("prod", "mean", "amin", "amax")
        for own in (True, False)
    },
    "diagonal written": ("sequences", without_diagonal),
    "diagonal beside infinities": ("sequences", lambda x: x.diagonal(-2, 1, 2)),
    "mean of flags": ("rows", lambda x: (x > 0).mean(1, dtype=torch.float32)),
    "extremes of all": ("rows finite", lambda x: [part[None] for part in x.aminmax()]),
    "masked_select": ("rows", lambda x: torch.masked_select(x, x > 0).sum()[None]),
    "bincount with weights": (
        "rows",
        lambda x: torch.bincount(INDEX, x.nan_to_num(0, 1, 2).sum(0), 9)[None],
    ),
    # Distances
    **{
        f"cdist p={p:g}": (
            "sequences" if 0 < p < 9 else "sequences finite",
            lambda x, p=p: torch.cdist(x, -x, p),
        )
        for p in (0.0, 1.0, 2.0, 3.0, math.inf)
    },
    "cdist by differences": (
        "sequences",
        lambda x: torch.cdist(x, -x, compute_mode="donot_use_mm_for_euclid_dist"),
    ),
    "cdist of many rows": (
        "sequences finite",
        lambda x: torch.cdist(x, torch.arange(320.0).reshape(40, 8) / 99),
    ),
    "cdist of a batch": ("rows", lambda x: torch.cdist(x, torch.arange(40.0).reshape(5, 8) / 9)),
    "cdist of a batch with itself": ("rows", lambda x: torch.cdist(x, x)),
    "cdist of images": ("images", lambda x: torch.cdist(x, x[:, :1, :3])),
    **{
        f"pdist p={p:g}": ("sequences", lambda x, p=p: torch.pdist(x[0], p)[None])
        for p in (1.0, 2.0)
    },
    # Pooling
    "adaptive_max_pool1d to more": ("signals finite", lambda x: F.adaptive_max_pool1d(x, 14)),
    "adaptive_max_pool2d to more": ("images finite", lambda x: F.adaptive_max_pool2d(x, (10, 3))),
    "adaptive_max_pool1d with indices": (
        "signals finite",
        lambda x: F.adaptive_max_pool1d(x, 4, return_indices=True),
    ),
    "adaptive_max_pool2d with indices": (
        "images finite",
        lambda x: F.adaptive_max_pool2d(x, (3, 4), return_indices=True),
    ),
    "adaptive_max_pool3d with indices": (
        "volumes finite",
        lambda x: F.adaptive_max_pool3d(x, (2, 3, 4), return_indices=True),
    ),
    "adaptive_avg_pool3d to more": ("volumes", lambda x: F.adaptive_avg_pool3d(x, (2, 3, 9))),
    "adaptive_avg_pool3d to one and more": (
        "volumes",
        lambda x: F.adaptive_avg_pool3d(x, (1, 4, 7)),
    ),
    **{
        f"avg_pool2d over {divisor}, {options}": (
            "images",
            lambda x, d=divisor, o=options: F.avg_pool2d(x, 3, 2, 1, **o, divisor_override=d),
        )
        for divisor, options in (
            (5, {"ceil_mode": True, "count_include_pad": True}),
            (-2, {"ceil_mode": False, "count_include_pad": False}),
        )
    },
    "avg_pool2d over 3": ("images", lambda x: F.avg_pool2d(x, (2, 3), divisor_override=3)),
    "avg_pool2d beyond its padding": (
        "images",
        lambda x: F.avg_pool2d(x, (4, 2), 3, (2, 0), ceil_mode=True, divisor_override=3),
    ),
    "avg_pool3d over 5": ("volumes", lambda x: F.avg_pool3d(x, 3, 2, 1, True, False, 5)),
    # Order
    "median": ("rows", lambda x: x.median()[None]),
    "median of a dimension": ("sequences", lambda x: placed(x.median(1, keepdim=True), x, 1)),
    "median of the batch": ("sequences finite", lambda x: x.median(0).values[None]),
    "median of integers": (
        "sequences",
        lambda x: x.nan_to_num(0, 1, 2).mul(3).long().median(2).values,
    ),
    "nanmedian": ("rows", lambda x: x.nanmedian()[None]),
    "nanmedian of a dimension": ("sequences", lambda x: x.nanmedian(1).values),
    "kthvalue": ("sequences", lambda x: placed(x.kthvalue(3, 1, keepdim=True), x, 1)),
    "kthvalue of the last": ("sequences", lambda x: x.kthvalue(8).values),
    "kthvalue of the batch": ("sequences finite", lambda x: x.kthvalue(1, 0).values[None]),
    "mode": ("sequences finite", lambda x: tuple(x.mode(1))),
    "mode of integers": (
        "sequences",
        lambda x: tuple(x.nan_to_num(0, 1, 2).mul(3).long().mode(-1, keepdim=True)),
    ),
    "searchsorted": ("rows", lambda x: torch.searchsorted(BOUNDS, x)),
    "searchsorted on the right": ("rows", lambda x: torch.searchsorted(BOUNDS, x, side="right")),
    "searchsorted of each row": (
        "sequences finite",
        lambda x: torch.searchsorted(x.sort(-1).values, x[:, :, :3].contiguous(), right=True),
    ),
    "searchsorted through an order": (
        "sequences finite",
        lambda x: torch.searchsorted(x, x[:, :, :2].contiguous(), sorter=x.argsort(dim=-1)),
    ),
    "searchsorted in the batch": (
        "rows finite",
        lambda x: torch.searchsorted(x.flatten().sort().values, x, out_int32=True),
    ),
    "searchsorted of a number": (
        "rows finite",
        lambda x: torch.searchsorted(x[0].sort()[0], 0.3)[None],
    ),
    "bucketize of a number": (
        "rows",
        lambda x: torch.bucketize(0.5, BOUNDS)[None] + x[:, 0].isnan(),
    ),
    "isin": ("rows", lambda x: torch.isin(x.round(), torch.tensor([0.0, 1.0, -2.0]))),
    "isin inverted": (
        "rows",
        lambda x: torch.isin(x.nan_to_num(0, 1, 2).long(), torch.tensor([0, -1]), invert=True),
    ),
    # Running
    "cummax": ("sequences", lambda x: tuple(x.cummax(1))),
    "cummin of the batch": ("rows", lambda x: tuple(x.cummin(0))),
    "cummax of integers": (
        "sequences",
        lambda x: tuple(x.nan_to_num(0, 1, 2).mul(3).long().cummax(1)),
    ),
    "cummin of integers": ("rows", lambda x: tuple(x.nan_to_num(0, 1, 2).mul(3).long().cummin(0))),
    "cumprod": ("sequences", lambda x: x.cumprod(1)),
    "cumprod of the batch": ("rows", lambda x: x.cumprod(0)),
    "cumprod of flags": ("sequences", lambda x: (x > 0).cumprod(1)),
    "logcumsumexp of infinities": ("sequences infinite", lambda x: x.logcumsumexp(1)),
    "logcumsumexp of large numbers": ("sequences finite", lambda x: (200 * x).logcumsumexp(2)),
    "logcumsumexp of the batch": ("rows finite", lambda x: (200 * x).logcumsumexp(0)),
    # Elements
    "hypot": ("rows", lambda x: torch.hypot(x, x.flip(1))),
    "hypot of large numbers": ("rows", lambda x: torch.hypot(x * 1e25, x.flip(1) * 1e25)),
    "atan2 on the axes": ("rows", lambda x: torch.atan2(x, 0.0 - x.flip(1).abs())),
    "erfinv": ("rows", lambda x: torch.erfinv(x / 4)),
    "erfinv near one": ("rows finite", lambda x: torch.erfinv(x.clamp(-0.9999, 0.9999))),
    "rrelu": ("rows", lambda x: F.rrelu(x, 0.1, 0.4)),
    "fmax": ("rows", lambda x: torch.fmax(x, x.flip(1))),
    "fmin": ("rows", lambda x: torch.fmin(x, x.flip(1))),
    "copysign": ("rows", lambda x: torch.copysign(x, x.flip(1))),
    "copysign of a number": ("rows", lambda x: torch.copysign(x, -1.0)),
    # Spectra
    "istft of a length": ("waves finite", lambda x: inverted(x, length=30)),
    "istft of more": ("waves finite", lambda x: inverted(x, length=40)),
    "istft normalised, of both sides": (
        "waves finite",
        lambda x: inverted(x, normalized=True, onesided=False),
    ),
    "istft of polar": (
        "waves finite",
        lambda x: torch.istft(
            torch.polar(x.reshape(-1, 4, 8)[:, :3].abs(), x.reshape(-1, 4, 8)[:, 1:]), 4, 2
        ),
    ),
}


class All(nn.Module):
    def forward(
        self,
        rows: Tensor,
        sequences: Tensor,
        signals: Tensor,
        images: Tensor,
        volumes: Tensor,
        waves: Tensor,
    ) -> list[Any]:
        inputs = [rows, sequences, signals, images, volumes, waves]
        # One batch is read from all, so that their sizes are one.
        tied = sum(value.flatten(1).sum(1) for value in inputs)
        named = dict(zip(SHAPES, inputs, strict=True))
        return [
            tied,
            *(function(named[kind.split()[0]]) for kind, function in OPERATORS.values()),
        ]


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    """Each operator as a piece, from one capture."""
    torch.manual_seed(0)
    examples = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    traced = capture(All().eval(), examples)
    assert traced.dynamic_batch
    output = next(n for n in traced.graph_module.graph.nodes if n.op == "output")
    results = list(output.args[0])[1:]
    found = []
    for name, (kind, function) in OPERATORS.items():
        count = len(tensors(function(examples[kind.split()[0]])))
        found.append(alone(name, traced.graph_module, results[:count], examples))
        results = results[count:]
    assert not results
    return found


def alone(
    name: str, module: fx.GraphModule, results: list[fx.Node], examples: dict[str, Tensor]
) -> Piece:
    graph, copies = fx.Graph(), {}
    graph.graph_copy(module.graph, copies)
    graph.output(tuple(copies[node] for node in results))
    graph.eliminate_dead_code()
    for node in [n for n in graph.nodes if n.op == "placeholder" and not n.users]:
        graph.erase_node(node)
    given = [node for node in graph.nodes if node.op == "placeholder"]
    return Piece(
        name,
        fx.GraphModule(module, graph),
        tuple(node.name for node in given),
        tuple(f"result{i}" for i in range(len(results))),
        tuple(examples[node.name].clone() for node in given),
        tuple(free_sizes(node.meta["val"]) for node in given),
    )


# One of each few is enough to see that the oldest operator set has what they are made of.
AT_OLDEST = list(OPERATORS)[::5]


@pytest.fixture(scope="module")
def sessions(pieces: list[Piece]) -> dict[str, ort.InferenceSession]:
    """What onnxruntime makes of each."""
    return converted(pieces, DEFAULT_OPSET)


@pytest.fixture(scope="module")
def oldest(pieces: list[Piece]) -> dict[str, ort.InferenceSession]:
    """Some of them at the oldest operator set."""
    return converted([piece for piece in pieces if piece.name in AT_OLDEST], 18)


def converted(pieces: list[Piece], opset: int) -> dict[str, ort.InferenceSession]:
    try:
        models = convert(pieces, opset).models
    except ExportError as e:
        # So that each is told apart where some can't be converted.
        refused = {line.split(": ")[0].strip() for line in str(e).splitlines() if ": " in line}
        models = convert([piece for piece in pieces if piece.name not in refused], opset).models
    return {name: session(model) for name, model in models.items()}


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def inputs(kind: str) -> dict[str, Tensor]:
    name, *limits = kind.split()
    shape = SHAPES[name][1:]
    generator = torch.Generator().manual_seed(1)

    def drawn(n_samples: int) -> Tensor:
        return torch.randn(n_samples, *shape, generator=generator)

    found = {
        "other batch": drawn(5),
        "one sample": drawn(1),
        "ties": torch.randint(-2, 3, (4, *shape), generator=generator).float(),
        "zeros": torch.zeros(4, *shape),
    }
    some = torch.rand(4, *shape, generator=generator)
    if "finite" not in limits:
        found["infinities"] = drawn(4).masked_fill(some < 0.2, math.inf)
        found["infinities"] = found["infinities"].masked_fill(some > 0.9, -math.inf)
        if "infinite" not in limits:
            found["NaN"] = drawn(4).masked_fill(some < 0.2, math.nan)
    return found


@pytest.mark.xdist_group("operators")
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_computes_what_torch_does(
    name: str, sessions: dict[str, ort.InferenceSession]
) -> None:
    check(name, sessions)


@pytest.mark.xdist_group("operators")
@pytest.mark.parametrize("name", AT_OLDEST)
def test_operator_computes_it_at_the_oldest_operator_set(
    name: str, oldest: dict[str, ort.InferenceSession]
) -> None:
    check(name, oldest)


def check(name: str, sessions: dict[str, ort.InferenceSession]) -> None:
    kind, function = OPERATORS[name]
    assert name in sessions, "it can't be converted"
    for what, x in inputs(kind).items():
        expected = tensors(function(x))
        feeds = {value.name: x.numpy() for value in sessions[name].get_inputs()}
        found = sessions[name].run(None, feeds)
        for actual, right in zip(found, expected, strict=True):
            assert actual.dtype == right.numpy().dtype, what
            finite = right[right.isfinite()].double()
            scale = finite.abs().max().item() if finite.numel() else 0.0
            np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-5 * scale, err_msg=what)


class Sage(nn.Module):
    """Means of what neighbours say, as GraphSAGE takes them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.other = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for own, other in zip(self.own, self.other, strict=True):
            said = x.index_select(-2, edges[0])
            to = edges[1][:, None].expand_as(said)
            mean = torch.zeros_like(x).scatter_reduce(-2, to, said, "mean", include_self=False)
            x = F.relu(own(x) + other(mean))
        return self.head(x)


def test_means_of_neighbours_are_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    edges = torch.tensor([[0, 1, 2, 3, 0, 2, 2], [1, 0, 3, 2, 2, 1, 0]])
    model, x = Sage().eval(), torch.randn(3, 5, 8)
    supernet = fxelastic.expand(model, 0.3, example_inputs=(x, edges))
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    x = torch.randn(6, 5, 8)
    with edge.Executor(bundle) as executor, torch.no_grad():
        (found,) = executor.run(bundle.space.original, {"x": x.numpy(), "edges": edges.numpy()})
        np.testing.assert_allclose(found, model(x, edges), rtol=1e-4, atol=1e-5)


class Halves(nn.Module):
    """Adds what the first half of a batch has on average, which may be the larger half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + x.tensor_split(2)[0].sum(0)[None].expand(x.shape))


def test_parts_of_a_batch_are_right_at_even_and_odd_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Halves().eval()
    supernet = fxelastic.expand(model, 1.0, example_inputs=torch.randn(3, 8), kinds=())
    bundle = fxelastic.export(supernet, tmp_path / "bundle")
    with edge.Executor(bundle) as executor, torch.no_grad():
        for x in (torch.randn(4, 8), torch.randn(5, 8)):
            (found,) = executor.run(bundle.space.original, {"x": x.numpy()})
            np.testing.assert_allclose(found, model(x), rtol=1e-4, atol=1e-5)


class Chosen(nn.Module):
    """Where an order statistic is, among equal elements."""

    def __init__(self, choose: Function) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.choose = choose

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.first(x)
        return *self.choose(x.clamp(-0.1, 0.1)), self.last(x)


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: x.kthvalue(3, 1),
        lambda x: (*x.median(1), *x.nanmedian(-1)),
        lambda x: (x.median()[None], x.nanmedian()[None], *x.mode(1), *x.topk(2)),
    ],
)
def test_an_equal_element_may_be_taken(choose: Function, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Chosen(choose).eval()
    supernet = fxelastic.expand(model, 1.0, example_inputs=torch.randn(3, 8), kinds=())
    fxelastic.export(supernet, tmp_path / "bundle")


class Refused(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.lgamma(x), "aten.lgamma"),
        (lambda x: torch.gcd(x.long(), x.new_tensor(6).long()).float(), "aten.gcd"),
        (lambda x: torch.nextafter(x, -x), "aten.nextafter"),
    ],
)
def test_a_refused_operator_has_the_name_it_has_in_the_model(
    function: Function, name: str, tmp_path: Path
) -> None:
    model = Refused(function).eval()
    supernet = fxelastic.expand(model, 1.0, example_inputs=torch.randn(3, 4), kinds=())
    with pytest.raises(ExportError, match=name):
        fxelastic.export(supernet, tmp_path / "bundle")
