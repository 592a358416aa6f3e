"""8-bit branches as `fxelastic.export` makes them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import fxelastic
from fxelastic import edge
from fxelastic.backends.onnxruntime.kernels import optimised_kernels
from fxelastic.backends.onnxruntime.quantisation.branches import _RECIPES
from fxelastic.backends.onnxruntime.quantisation.dynamic import quantise_dynamic
from fxelastic.backends.onnxruntime.quantisation.errors import Judge, NotMadeError
from fxelastic.backends.onnxruntime.quantisation.exact import with_unsigned_weights
from fxelastic.backends.onnxruntime.quantisation.operators import choose
from fxelastic.backends.onnxruntime.quantisation.products import fuse_products
from fxelastic.backends.onnxruntime.quantisation.ranges import ranges_inside
from fxelastic.backends.onnxruntime.quantisation.static import (
    quantise_static,
    with_signed_activations,
)
from fxelastic.edge.assembly import join
from fxelastic.errors import ExportError, UsageError
from fxelastic.exporting_int8 import check_int8, inexact, int8_subnets
from fxelastic.spec import Arch
from fxelastic.spec.quantised import Quantised, int8_id
from tests import int8_bundles as int8

# A worker exports the bundle once.
pytestmark = pytest.mark.xdist_group("export of 8-bit branches")

FORMATS = ("u8s8", "u8s8-reduced", "s8s8")


def quantised_ids(source: str) -> list[str]:
    segments = int8.bundle().manifest.segments
    return [s.id for s in segments if s.quantised and s.quantised.source == source]


def test_convolutions_get_fixed_scales_and_linear_maps_dynamic_ones_too() -> None:
    convolutions = [int8_id("original@1", name) for name in FORMATS]
    assert sorted(quantised_ids("original@1")) == sorted(convolutions)
    attention = [int8_id("original@2", name) for name in (*FORMATS, "dynamic", "dynamic-reduced")]
    assert sorted(quantised_ids("original@2")) == sorted(attention)
    assert quantised_ids("pruned50@1")


def test_a_branch_keeps_the_interface_of_its_float_branch() -> None:
    bundle = int8.bundle()
    for segment in bundle.manifest.segments:
        if segment.quantised is not None:
            source = bundle.segment(segment.quantised.source)
            assert (segment.inputs, segment.outputs) == (source.inputs, source.outputs)
            assert segment.spec.kind == "int8"
            assert segment.weight_bytes < source.weight_bytes
            assert segment.quantised.error < 0.03
            assert segment.quantised.error < segment.quantised.tolerance


def test_the_formats_of_a_branch_share_their_weights(tmp_path: Path) -> None:
    bundle = int8.tiny(tmp_path / "bundle", formats=("u8s8", "s8s8", "dynamic"))
    files = {s.data for s in bundle.manifest.segments if s.quantised}
    assert len(files) == 1
    assert len(next(iter(files))) == 1  # the larger weight


def test_every_branch_has_the_scale_of_the_values_between_blocks() -> None:
    bundle = int8.bundle()
    crossing = {name: value.int8 for name, value in bundle.values.items() if value.int8}
    assert crossing
    seen = Counter[str]()
    for segment in bundle.manifest.segments:
        if segment.quantised is None or segment.quantised.format != "u8s8":
            continue
        graph = onnx.load(bundle.model_path(segment.id)).graph
        tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            ends = {"QuantizeLinear": node.input[0], "DequantizeLinear": node.output[0]}
            name = ends.get(node.op_type)
            if name in {*segment.inputs, *segment.outputs}:
                scale = crossing[name]
                assert scale is not None
                assert tensors[node.input[1]] == np.float32(scale.scale)
                assert tensors[node.input[2]] == scale.zero_point
                seen[name] += 1
    assert max(seen.values()) > 1  # neighbours meet


def optimised(model: onnx.ModelProto, path: Path) -> onnx.GraphProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return onnx.load(path).graph


@pytest.mark.parametrize("format", ["u8s8", "dynamic"])
def test_no_conversion_stays_between_two_neighbours_in_8_bits(format: str, tmp_path: Path) -> None:
    bundle = int8.bundle()
    subnet = next(a for a in int8_subnets(bundle) if int8_id("original@2", format) in a)
    graph = optimised(join(bundle, subnet), tmp_path / "optimised.onnx")
    computed = {name: node.op_type for node in graph.node for name in node.output}
    pairs = [
        node.name
        for node in graph.node
        if node.op_type == "QuantizeLinear" and computed.get(node.input[0]) == "DequantizeLinear"
    ]
    assert pairs == []


def test_the_kernels_are_those_of_the_whole_subnet_quantised_at_once() -> None:
    bundle = int8.bundle()
    subnet = next(a for a in int8_subnets(bundle) if int8_id("original@0", "u8s8") in a)
    whole = onnx.shape_inference.infer_shapes(join(bundle, bundle.space.original))
    chosen = choose(whole.graph, ())
    ranges = ranges_inside(whole, [{"images": int8.images(4)}], "minmax")
    at_once = fuse_products(
        quantise_static(whole, chosen, ranges, {}, per_channel=True), chosen.values
    )
    assembled = join(bundle, subnet)
    for model in (at_once, assembled):
        del model.graph.value_info[:]  # known shapes of inner values allow more fusions
    assert optimised_kernels(assembled) == optimised_kernels(at_once)


def test_chain_and_assembled_model_of_every_format_were_compared() -> None:
    bundle = int8.bundle()
    assert bundle.manifest.int8 is not None
    compared = set(bundle.manifest.int8.subnets)
    exact = bundle.without(inexact(bundle))
    assert {str(arch) for arch in int8_subnets(exact)} <= compared
    mixed = [Arch.parse(text) for text in compared]
    assert any(len({bundle.segment(b).spec.kind for b in arch}) > 1 for arch in mixed)


def changed_bundle(path: Path, tolerance: float) -> edge.Bundle:
    """The bundle, with another tolerance of each 8-bit branch."""
    shutil.copytree(int8.bundle().path, path)
    manifest = json.loads((path / "manifest.json").read_bytes())
    for branch in manifest["branches"]:
        if "int8" in branch:
            branch["int8"]["tolerance"] = tolerance
    (path / "manifest.json").write_text(json.dumps(manifest))
    return edge.load(path)


def test_a_branch_that_loses_more_than_its_tolerance_is_named(tmp_path: Path) -> None:
    batches = [{"images": int8.images(4)}]
    bundle = changed_bundle(tmp_path / "strict", 1e-12)
    with pytest.raises(ExportError, match=r"branch '\S+' differs from 'original@0'"):
        check_int8(bundle, batches, 0, 0, lambda _: None)
    check_int8(changed_bundle(tmp_path / "lax", 0.1), batches, 0, 0, lambda _: None)


@pytest.mark.parametrize(
    ("features", "left_out"), [("avx2", {"u8s8", "dynamic", "s8s8"}), ("avx2 avx_vnni", set())]
)
def test_formats_are_compared_where_they_are_exact(
    features: str, left_out: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = {"machine": "x86_64", "int8": features}
    monkeypatch.setattr("fxelastic.exporting_int8.fingerprint", lambda: device)
    bundle = int8.bundle()
    found = {bundle.segment(name).quantised for name in inexact(bundle)}
    assert {quantised.format for quantised in found if quantised} == left_out


def test_errors_are_those_of_exact_sums() -> None:
    """On x86 without VNNI, sums of these weights and activations exceed 16 bits."""
    info = onnx.helper.make_tensor_value_info
    x = info("x", onnx.TensorProto.FLOAT, ["n", 64])
    weight = np.random.default_rng(0).uniform(0.5, 1, (64, 8)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [x],
        [info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    batch = {"x": np.random.default_rng(1).uniform(0.5, 1, (16, 64)).astype(np.float32)}
    judge = Judge(model, [batch])
    static = quantise_static(
        model, choose(graph, ()), {"x": (0.0, 1.0), "y": (0.0, 64.0)}, {}, per_channel=True
    )
    dynamic = quantise_dynamic(model, ("product",), per_channel=True)
    for quantised in (static, fuse_products(static, ()), dynamic):
        assert judge.error(quantised) < 0.01
        unsigned = with_unsigned_weights(quantised)
        before, after = (
            [t.data_type for t in m.graph.initializer if len(t.dims) == 2]
            for m in (quantised, unsigned)
        )
        assert (before, after) == ([onnx.TensorProto.INT8], [onnx.TensorProto.UINT8])
    signed = with_signed_activations(static)
    assert judge.error(signed) < 0.01


def test_operators_that_lose_most_stay_float_and_hopeless_branches_are_refused(
    tmp_path: Path,
) -> None:
    def found(bundle: edge.Bundle) -> Quantised:
        (only,) = (
            s.quantised for s in bundle.manifest.segments if s.quantised and not s.quantised.reduced
        )
        return only

    whole = found(int8.tiny(tmp_path / "whole"))
    assert whole.left_float == ()
    most = 0.8 * whole.error
    bundle = int8.tiny(tmp_path / "part", max_error=most)
    part = found(bundle)
    assert len(part.left_float) == 1
    assert part.error <= most
    # The same weights in 7 bits lose more.
    assert all(s.quantised.error <= most for s in bundle.manifest.segments if s.quantised)
    summary = bundle.manifest.int8
    assert summary is not None
    assert [name for name, _ in summary.refused] == ["u8s8-reduced+original@0"]
    summary = int8.tiny(tmp_path / "refused", max_error=1e-12).manifest.int8
    assert summary is not None
    ((name, reason),) = summary.refused
    assert name == "u8s8+original@0"
    assert "1e-12 is accepted" in reason


def test_a_format_that_can_t_be_made_leaves_out_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(model: onnx.ModelProto, _: object) -> onnx.ModelProto:
        raise NotMadeError("it has no such kernel")

    static = {**_RECIPES["static"], "u8s8": failing}
    recipes = {**_RECIPES, "static": static}
    monkeypatch.setattr("fxelastic.backends.onnxruntime.quantisation.branches._RECIPES", recipes)
    bundle = int8.tiny(tmp_path / "bundle", formats=("u8s8", "s8s8"))
    found = {s.id for s in bundle.manifest.segments if s.quantised}
    assert found == {"u8s8-reduced+original@0", "s8s8+original@0"}
    summary = bundle.manifest.int8
    assert summary is not None
    assert summary.refused == (("u8s8+original@0", "it has no such kernel"),)


def test_kinds_select_the_float_branches(tmp_path: Path) -> None:
    bundle = int8.tiny(tmp_path / "bundle", kinds=("merged",))
    assert not [s.id for s in bundle.manifest.segments if s.quantised]


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (int8.tiny(tmp_path / name, ranges="percentile") for name in ("one", "other"))
    assert one.digest == other.digest


def test_a_bundle_without_8_bit_branches_does_not_mention_them(tmp_path: Path) -> None:
    bundle = fxelastic.export(int8.tiny_supernet(), tmp_path / "float", verify=False)
    assert b"int8" not in (bundle.path / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("int4",)}, "formats must be some of u8s8, dynamic, s8s8"),
        ({"formats": "u8s8"}, "formats must be"),
        ({"formats": ()}, "formats must be"),
        ({"kinds": ("int8",)}, "kinds must name kinds of float branches"),
        ({"ranges": "mean"}, "ranges must be one of minmax, entropy, percentile"),
        ({"max_error": 0}, "max_error must be above 0"),
        ({"per_channel": 1}, "per_channel must be True or False"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fxelastic.Int8(int8.calibration(2), **options)  # type: ignore[arg-type]


def test_calibration_data_is_checked(tmp_path: Path) -> None:
    for quantise, message in (
        (fxelastic.Int8(()), "at least one batch"),
        (fxelastic.Int8(torch.randn(1, 3, 16, 16)), "at least two batches"),
        (fxelastic.Int8(torch.randn(4, 3, 8)), "images"),
        ("u8s8", "quantise must be an Int8"),
    ):
        with pytest.raises(UsageError, match=message):
            fxelastic.export(int8.supernet(), tmp_path / "x", quantise=quantise)  # type: ignore[arg-type]
