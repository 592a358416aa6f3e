"""Choose subnets on one split, and score them on another beside the quantised original."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.bootstrap import Array
from benchmarks.pretrained_data import Samples
from benchmarks.pretrained_models import PretrainedModel
from benchmarks.pretrained_report import BUDGETS
from fxelastic import edge
from fxelastic.edge.sessions import SessionMaker
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable

SCORES = {"efficientnet": "agreement", "minilm": "cosine"}
MOST_SUBNETS = 1000  # of a budget; the time ends most searches
CALIBRATED = 128
BATCH = 32


def search(
    bundle: edge.Bundle,
    table: LatencyTable,
    data: Mapping[str, Array],
    score: str,
    seconds: float,
    pool: Path,
    budgets: Sequence[str] = BUDGETS,
) -> dict[str, Any]:
    """The best subnet of each budget, without labels: the original's results are the targets.

    A table that is marked unusable does not end the benchmark, for the latencies of the subnets
    found are measured.

    Args:
        bundle: The bundle.
        table: Its latencies.
        data: Samples to choose on.
        score: Name of the score that compares results.
        seconds: Processor time for each budget.
        pool: The file for the pool of evaluated subnets.
        budgets: Shares of the original's latency.
    """
    pool.unlink(missing_ok=True)
    result = edge.search(
        bundle,
        table,
        dict(data),
        budget=budgets,
        score=score,
        max_subnets=MOST_SUBNETS,
        time_budget_s=seconds * len(budgets),
        batch_size=BATCH,
        held_out=0.0,
        threads=1,
        path=pool,
        clock=time.process_time,
        force=True,
    )
    original_ms = table.predict_ms(bundle.space.original)
    return {
        budget: {
            "arch": str(best.arch),
            "predicted": best.latency_ms / original_ms,
            "score": None if best.n_samples == 0 else best.accuracy,
            "lacks": lacks,
        }
        for budget, best, lacks in zip(budgets, result.bests, result.marks, strict=True)
    } | {"evaluated": len(result.pool)}


def assembled(bundle: edge.Bundle, arch: str | None, path: Path) -> Path:
    """A subnet as an ordinary ONNX model; the original if None."""
    chosen = bundle.space.original if arch is None else Arch.parse(arch)
    return edge.assemble(bundle, chosen, path)


def quantised(original: Path, model: PretrainedModel, train: Samples, path: Path) -> Path:
    """The original, quantised by onnxruntime's tools.

    EfficientNet-Lite0: static, activations U8 and weights S8 for each channel, calibrated by least
    and largest values. MiniLM: dynamic, weights S8 for each channel.
    """
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    if model.name == "minilm":
        q.quantize_dynamic(prepared, path, per_channel=True, weight_type=q.QuantType.QInt8)
        return path
    q.quantize_static(
        prepared,
        path,
        Calibration(model, train.take(CALIBRATED)),
        quant_format=q.QuantFormat.QDQ,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        per_channel=True,
    )
    return path


class Calibration:
    """Batches for onnxruntime's calibration."""

    def __init__(self, model: PretrainedModel, samples: Samples) -> None:
        self._batches = _batches(model, samples)

    def get_next(self) -> dict[str, Array] | None:
        """The next batch; None after the last."""
        return next(self._batches, None)


def _batches(model: PretrainedModel, samples: Samples) -> Iterator[dict[str, Array]]:
    for start in range(0, len(samples), BATCH):
        yield model.arrays(samples, slice(start, start + BATCH))


def results(path: Path, model: PretrainedModel, samples: Samples) -> Array:
    """The results of a model file for the samples, ``(N, …)``, with one thread."""
    session = SessionMaker(threads=1).open_branch(path)
    names = {info.name for info in session.get_inputs()}
    found = [
        session.run(None, {k: v for k, v in batch.items() if k in names})[0]
        for batch in _batches(model, samples)
    ]
    return np.concatenate(found)


def similarities(found: Array, original: Array, model: str) -> dict[str, Array]:
    """The similarity of results to the original's, sample by sample.

    For EfficientNet ``agreement`` of the top class, ``cosine`` of the logits, and ``spearman``,
    their rank correlation. For MiniLM ``cosine`` of the vectors, and ``spearman``: the rank
    correlation of a sentence's similarities to all other sentences.
    """
    dot = (found.astype(float) * original).sum(1)
    norms = np.linalg.norm(found.astype(float), axis=1) * np.linalg.norm(original, axis=1)
    cosine = {"cosine": dot / np.maximum(norms, 1e-30)}
    if model == "efficientnet":
        agreement = (found.argmax(1) == original.argmax(1)).astype(float)
        ranks = {"spearman": _rank_correlations(found, original)}
        return {"agreement": agreement} | cosine | ranks
    return cosine | {"spearman": _rank_correlations(_to_others(found), _to_others(original))}


def _to_others(vectors: Array) -> Array:
    """Similarities of each vector to the others, ``(N, N - 1)``."""
    n = len(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    everything: Array = unit @ unit.T
    return everything[~np.eye(n, dtype=bool)].reshape(n, n - 1)


def _rank_correlations(a: Array, b: Array) -> Array:
    ranks = [x.argsort(1).argsort(1).astype(float) for x in (a, b)]
    centred = [x - x.mean(1, keepdims=True) for x in ranks]
    covariance = (centred[0] * centred[1]).sum(1)
    found: Array = covariance / np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    return found


def shares_of_time(
    paths: Sequence[Path], feeds: Mapping[str, Array], rounds: int
) -> tuple[float, list[list[float]]]:
    """The processor times of models, measured in turns with one thread.

    Args:
        paths: Model files; the others are compared with the first one.
        feeds: The inputs.
        rounds: Number of timings of each.

    Returns:
        The first one's median time in ms, and the share of it that each of the others takes: the
        median over the rounds, with a 95 % interval.
    """
    runs = [_opened(path, feeds) for path in paths]
    times = np.empty((rounds, len(runs)))
    order = np.random.default_rng(0)
    for i in range(-2, rounds):
        for j in order.permutation(len(runs)):
            session, own = runs[j]
            begin_s = time.process_time()
            session.run(None, own)
            taken_ms = 1e3 * (time.process_time() - begin_s)
            if i >= 0:
                times[i, j] = taken_ms
    shares = times[:, 1:] / times[:, :1]
    again = order.integers(0, rounds, (1000, rounds))
    medians = np.array([np.median(shares[index], axis=0) for index in again])
    low, high = np.percentile(medians, (2.5, 97.5), axis=0)
    found = zip(np.median(shares, axis=0), low, high, strict=True)
    return float(np.median(times[:, 0])), [list(map(float, row)) for row in found]


def _opened(
    path: Path, feeds: Mapping[str, Array]
) -> tuple[ort.InferenceSession, dict[str, Array]]:
    session = SessionMaker(threads=1).open_branch(path)
    names = {info.name for info in session.get_inputs()}
    return session, {k: v for k, v in feeds.items() if k in names}
