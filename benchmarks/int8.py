"""Measure 8-bit branches against float ones, and against onnxruntime's own recipes.

    python benchmarks/int8.py FOLDER [--models resnet50 mobilenet_v2 bert] [--rounds N] [--out FILE]

exports networks with random weights (FOLDER keeps the bundles), with 8-bit branches calibrated on
random inputs. It times in one run, with one thread and assembled: the original in float; the
original with every block in 8 bits, each in its quickest format; and the float original as
onnxruntime's ``quantize_static`` and ``quantize_dynamic`` quantise it as a whole. It prints the
speed-ups, the errors of the results relative to their variance, whether conversions stay between
8-bit neighbours, and how many bytes a bundle with 8-bit branches has for each byte of one without.
Bars: 2.5 times as fast for ResNet-50, 1.8 for MobileNetV2, 2 for the BERT-like network; at most
3 % slower than onnxruntime's best recipe.

Processor time of one thread counts, so that other programs disturb little; torch runs in another
process.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxelastic import edge
from fxelastic.edge.assembling import assemble
from fxelastic.edge.assembly import join
from fxelastic.edge.fingerprint import fingerprint
from fxelastic.edge.int8_branches import unused
from fxelastic.edge.stopwatch import Stopwatch, low_quartile
from fxelastic.spec import Arch
from fxelastic.spec.quantised import INT8

MODELS = ("resnet50", "mobilenet_v2", "bert")
BARS = {"resnet50": 2.5, "mobilenet_v2": 1.8, "bert": 2.0}
SLOWER = 1.03
TOKENS, BATCHES = 32, 6


def make(name: str, path: Path) -> None:
    """Export a network with 8-bit branches, and the inputs to time it on; imports torch."""
    import torch

    import fxelastic
    from benchmarks.make_bundle import MODELS as NETWORKS
    from tests.models.bert import Bert

    torch.manual_seed(0)
    if name == "bert":
        model = Bert(hidden=384, n_heads=12, depth=6).eval()
        batches = [
            (torch.randint(0, 50, (1, TOKENS)), torch.ones(1, TOKENS, dtype=torch.int64))
            for _ in range(BATCHES)
        ]
    else:
        model = NETWORKS[name]()
        with torch.no_grad():
            # Norms get the statistics of the inputs, so that values neither fade nor explode.
            for _ in range(4):
                model.train()(torch.randn(4, 3, 128, 128))
        model.eval()
        batches = [(torch.randn(1, 3, 224, 224),) for _ in range(BATCHES)]
    supernet = fxelastic.expand(model, 0.1, example_inputs=batches[0], kinds=())
    int8 = fxelastic.Int8(batches)
    fxelastic.export(supernet, path / "bundle", verify=False, force=True, quantise=int8)
    bundle = edge.load(path / "bundle")
    (path / "kernels.json").write_text(json.dumps(different_kernels(bundle, batches[0])))
    names = [value.name for value in bundle.inputs]
    for i, batch in enumerate(batches):
        arrays = dict(zip(names, (x.numpy() for x in batch), strict=True))
        np.savez(path / f"{i}.npz", **arrays)


def different_kernels(bundle: edge.Bundle, batch: Sequence[Any]) -> dict[str, int]:
    """How the kernels of the original in 8 bits differ from those of the whole quantised at once.

    Returns:
        The number of additional nodes by kernel; negative if nodes are missing.
    """
    from fxelastic.backends.onnxruntime.kernels import optimised_kernels
    from fxelastic.backends.onnxruntime.quantisation.operators import choose
    from fxelastic.backends.onnxruntime.quantisation.products import fuse_products
    from fxelastic.backends.onnxruntime.quantisation.ranges import ranges_inside
    from fxelastic.backends.onnxruntime.quantisation.static import quantise_static
    from fxelastic.exporting_int8 import int8_subnets

    whole = onnx.shape_inference.infer_shapes(join(bundle, bundle.space.original))
    chosen = choose(whole.graph, ())
    names = [value.name for value in bundle.inputs]
    feeds = dict(zip(names, (x.numpy() for x in batch), strict=True))
    ranges = ranges_inside(whole, [feeds], "minmax")
    static = quantise_static(whole, chosen, ranges, {}, per_channel=True)
    at_once = fuse_products(static, chosen.values)
    subnet = next(a for a in int8_subnets(bundle) if any(b.startswith("u8s8+") for b in a))
    assembled = join(bundle, subnet)
    for model in (at_once, assembled):
        del model.graph.value_info[:]  # known shapes of inner values allow more fusions
    ours, theirs = optimised_kernels(assembled), optimised_kernels(at_once)
    return {k: ours[k] - theirs[k] for k in sorted(ours | theirs) if ours[k] != theirs[k]}


def measure(name: str, path: Path, n_rounds: int) -> dict[str, Any]:
    """Time the original in float and in 8 bits, and onnxruntime's recipes."""
    bundle = edge.load(path / "bundle")
    inputs = [dict(np.load(path / f"{i}.npz")) for i in range(BATCHES)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = {"float": assemble(bundle, bundle.space.original, work / "float.onnx")}
        for what, arch in subnets(bundle, inputs[0]).items():
            models[what] = assemble(bundle, arch, work / f"{what}.onnx")
        models |= recipes(models["float"], inputs, work)
        sessions = {what: session(model) for what, model in models.items()}
        times = timed(sessions, inputs[0], n_rounds)
        pairs = conversions(models["int8"], work / "optimised.onnx")
    expected = sessions["float"].run(None, inputs[1])
    ours, best = times["int8"], min(v for k, v in times.items() if k.startswith("onnxruntime"))
    segments = bundle.manifest.segments
    float_bytes = sum(s.weight_bytes for s in segments if s.quantised is None)
    return {
        "model": name,
        "speed_up": times["float"] / ours,
        "of_best_recipe": ours / best,
        "times_of_float": {what: ms / times["float"] for what, ms in times.items()},
        "errors": {
            what: error(found.run(None, inputs[1]), expected) for what, found in sessions.items()
        },
        "conversions_between_neighbours": pairs,
        "different_kernels": json.loads((path / "kernels.json").read_text()),
        "bytes_of_float": sum(f.size_bytes for f in bundle.files.values()) / float_bytes,
    }


def subnets(bundle: edge.Bundle, inputs: Mapping[str, Any]) -> dict[str, Arch]:
    """The original with every block in 8 bits, and with those that are faster so."""
    watch, costs = Stopwatch(processor=True), {}
    with edge.Executor(bundle, 1, None, shared_arena=False) as executor:
        state = executor.start(inputs)
        for position, original in enumerate(bundle.space.original):
            ids = [spec.id for spec in bundle.space.starting_at[position]]
            samples: dict[str, list[float]] = {name: [] for name in ids}
            for i in range(14):
                for branch in ids:
                    begin = watch.begin()
                    executor.run_branch(branch, state)
                    if i > 1:
                        samples[branch].append(watch.ms_since(begin))
            costs |= {name: low_quartile(found)[0] for name, found in samples.items()}
            state = executor.advance(original, state)
    device = fingerprint()
    # What is left out although it is in 8 bits: formats that are slower than another.
    formats = unused(bundle, {**costs, **dict.fromkeys(bundle.space.original, math.inf)}, device)
    slower = unused(bundle, costs, device)

    def subnet(left_out: Mapping[str, str]) -> Arch:
        chosen = []
        for position, original in enumerate(bundle.space.original):
            ids = [spec.id for spec in bundle.space.starting_at[position] if spec.kind == INT8]
            ids = [name for name in ids if name not in left_out]
            chosen.append(min(ids, key=costs.__getitem__, default=original))
        return Arch(tuple(chosen))

    return {"int8": subnet(formats), "int8 where faster": subnet(slower)}


def recipes(model: Path, inputs: Sequence[Mapping[str, Any]], work: Path) -> dict[str, Path]:
    """The float model quantised as a whole by onnxruntime, statically and dynamically."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = work / "prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(inputs)

        def get_next(self) -> Any:
            return next(self.rest, None)

    found = {"onnxruntime static": work / "static.onnx", "onnxruntime dynamic": work / "dyn.onnx"}
    quantize_static(
        str(prepared),
        str(found["onnxruntime static"]),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    # Dynamic convolutions need operators that onnxruntime lacks for signed weights.
    options = {"per_channel": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(str(prepared), str(found["onnxruntime dynamic"]), ["MatMul"], **options)
    return found


def session(model: Path) -> onnxruntime.InferenceSession:
    """A session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def timed(
    sessions: Mapping[str, onnxruntime.InferenceSession], inputs: Mapping[str, Any], n_rounds: int
) -> dict[str, float]:
    """The lower quartile of the times of each session, in ms, run in turns."""
    watch = Stopwatch(processor=True)
    samples: dict[str, list[float]] = {what: [] for what in sessions}
    for i in range(n_rounds + 2):
        for what, found in sessions.items():
            begin = watch.begin()
            found.run(None, inputs)
            if i > 1:
                samples[what].append(watch.ms_since(begin))
    return {what: low_quartile(values)[0] for what, values in samples.items()}


def conversions(model: Path, optimised: Path) -> int:
    """How many results of DequantizeLinear a QuantizeLinear reads in the optimised model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(optimised).graph
    computed = {name: node.op_type for node in graph.node for name in node.output}
    return sum(
        node.op_type == "QuantizeLinear" and computed.get(node.input[0]) == "DequantizeLinear"
        for node in graph.node
    )


def error(actual: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest squared error of a result, relative to its variance."""
    pairs = zip(actual, expected, strict=True)
    return max(float(np.square(a - b).mean() / (b.var() or 1.0)) for a, b in pairs)


def main() -> int:
    """Export what is missing, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.folder)
        return 0
    results = []
    for name in args.models:
        path = args.folder / name
        if not (path / f"{BATCHES - 1}.npz").exists():
            path.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, str(path), "--make", name]
            subprocess.run(command, check=True)
        result = measure(name, path, args.rounds)
        results.append(result)
        print(
            f"{name}: {result['speed_up']:.2f} times as fast as in float "
            f"(bar {BARS[name]:g}), {result['of_best_recipe']:.2f} of the time of onnxruntime's "
            f"best recipe; {result['conversions_between_neighbours']} conversions between "
            f"neighbours; kernels that differ: {result['different_kernels'] or 'none'}; "
            f"{result['bytes_of_float']:.2f} of the bytes",
            flush=True,
        )
        for what, share in result["times_of_float"].items():
            print(f"  {what:22} {share:6.1%} of the time, error {result['errors'][what]:.1e}")
    if args.out is not None:
        args.out.write_text(json.dumps({"bars": BARS, "slower": SLOWER, "models": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
