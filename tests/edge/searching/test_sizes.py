"""Data whose samples have different sizes: its forms, its checks, and scores on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.cli.app import main
from fxelastic.edge.searching.answers import Answers
from fxelastic.edge.searching.choice import chosen_metric
from fxelastic.edge.searching.columns import Ragged
from fxelastic.edge.searching.data import Dataset, read_data
from fxelastic.edge.searching.distortion import measure
from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.proposals import all_subnets
from fxelastic.errors import UsageError
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.symbols import Symbol
from tests.edge.serving.tiny_bundle import CLASSES, steady, write_bundle

RNG = np.random.default_rng(3)
SIZES = (Symbol("H", 8, 1, 16), Symbol("W", 8, 2, 16, 2))
#: Rows and columns of samples.
AREAS = [(3, 4), (1, 2), (5, 4), (3, 4), (2, 6), (1, 2), (5, 2), (3, 4)]
IMAGES = [RNG.standard_normal((4, *area)).astype(np.float32) for area in AREAS]
CLASS_OF = RNG.integers(0, CLASSES, len(AREAS))
PLACES = [RNG.integers(0, CLASSES, area) for area in AREAS]


def tiny(folder: Path, per_place: bool, **options: Any) -> edge.Bundle:
    return write_bundle(folder, depth=2, width=4, sizes=SIZES, per_place=per_place, **options)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, edge.Bundle]:
    folder = tmp_path_factory.mktemp("sizes")
    return {per_place: tiny(folder / str(per_place), per_place) for per_place in (False, True)}


@pytest.fixture(scope="module")
def executors(bundles: dict[bool, edge.Bundle]) -> dict[bool, edge.Executor]:
    return {name: edge.Executor(bundle, threads=1) for name, bundle in bundles.items()}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    """A bundle of which only the rows vary, with a result for each place."""
    folder = tmp_path_factory.mktemp("rows") / "bundle"
    return write_bundle(folder, depth=1, width=4, size=2, sizes=SIZES[:1], per_place=True)


def padded(samples: list[Any], fill: float = 7) -> np.ndarray[Any, Any]:
    shape = np.max([sample.shape for sample in samples], axis=0)
    found = np.full((len(samples), *shape), fill, samples[0].dtype)
    for row, sample in zip(found, samples, strict=True):
        row[tuple(map(slice, sample.shape))] = sample
    return found


def objects(samples: list[Any]) -> np.ndarray[Any, Any]:
    found = np.empty(len(samples), object)
    found[:] = samples
    return found


def forms(per_place: bool) -> dict[str, Any]:
    """The same data in each form."""
    labels: Any = PLACES if per_place else CLASS_OF
    pad = {"targets": padded(PLACES, -1)} if per_place else {"targets": CLASS_OF}
    own = {"targets.lengths": np.array(AREAS)} if per_place else {}
    return {
        "lists": {"x": IMAGES, "targets": labels},
        "a pair": (IMAGES, labels),
        "arrays of objects": {"x": objects(IMAGES), "y": objects(labels) if per_place else labels},
        "padded": {"x": padded(IMAGES), "lengths": np.array(AREAS), **pad},
        "padded, with lengths of each": {
            **{"x": padded(IMAGES), "x.lengths": np.array(AREAS)},
            **({"targets": PLACES} if per_place else pad),
        },
        "nested lists": {"x": IMAGES, "targets": [x.tolist() for x in PLACES]}
        if per_place
        else {"x": IMAGES, "targets": CLASS_OF.tolist()},
        "padded, with other lengths of the targets": {
            **{"x": padded(IMAGES), "x.lengths": np.array(AREAS), **pad},
            **own,
        }
        if not per_place
        else {"x": IMAGES, "targets": PLACES},
    }


def items(column: Any) -> list[Any]:
    return list(column.items if isinstance(column, Ragged) else column)


def same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("per_place", [False, True])
@pytest.mark.parametrize("form", forms(True))
def test_all_forms_hold_the_same_samples(
    bundles: dict[bool, edge.Bundle], form: str, per_place: bool
) -> None:
    data = read_data(bundles[per_place], forms(per_place)[form])
    same(items(data.inputs["x"]), IMAGES)
    same(items(data.targets), PLACES if per_place else list(CLASS_OF))
    assert data.sizes() == [{"H": h, "W": w} for h, w in AREAS]
    assert data.digest() == read_data(bundles[per_place], forms(per_place)["lists"]).digest()


def test_joined_samples_are_separated(rows: edge.Bundle, tmp_path: Path) -> None:
    heights = [3, 1, 3, 2]
    samples = [RNG.standard_normal((4, h, 2)).astype(np.float32) for h in heights]
    labels = [RNG.integers(0, CLASSES, (h, 2)) for h in heights]
    # Joined along the first dimension of a sample, so only where that is the one that varies.
    data = read_data(rows, {"x": samples, "targets": np.concatenate(labels), "targets.offsets":
                            np.cumsum([0, *heights])})  # fmt: skip
    same(items(data.targets), labels)
    file = tmp_path / "data.npz"
    pads = {"x": padded(samples), "targets": padded(labels), "lengths": np.array(heights)}
    np.savez(file, **pads)
    found = read_data(rows, file)
    same(items(found.inputs["x"]), samples)
    same(items(found.targets), labels)
    assert found.sizes() == [{"H": h} for h in heights]


def test_targets_that_are_not_padded_stay_whole(
    bundles: dict[bool, edge.Bundle], rows: edge.Bundle
) -> None:
    """Lengths are those of the inputs; a target of another width has its own meaning."""
    wide = RNG.standard_normal((len(AREAS), 6)).astype(np.float32)
    data = {"x": padded(IMAGES), "lengths": np.array(AREAS), "targets": wide}
    np.testing.assert_array_equal(read_data(bundles[False], data).targets, wide)
    other = {"x": np.zeros((3, 4, 5, 2), "f4"), "lengths": np.array([5, 4, 1])}
    found = read_data(rows, {**other, "targets": np.zeros((3, 4, 2), int)})
    assert isinstance(found.targets, np.ndarray)


def test_one_size_needs_no_list(bundles: dict[bool, edge.Bundle]) -> None:
    data = read_data(bundles[False], np.zeros((3, 4, 5, 6), np.float32))
    assert data.sizes() == [{"H": 5, "W": 6}] * 3
    assert data.groups is None


X = np.zeros((4, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([X, X[:, :, :3]], "sample 1 of the data: dimension 3 of input 'x' .* W = 3 is outside"),
        ([X, X[:3]], "dimension 1 of input 'x' in sample 1 of the data must be 4, got 3"),
        ([X, X[:, 0]], "'x' in sample 1 of the data must have 3 dimensions, got 2"),
        ([X, X[:, :0]], "sample 1 of the data: dimension 2 of input 'x' .* H = 0 is outside"),
        ([X[None], X[None, :, :1]], "'x' in sample 0 of the data must have 3 dimensions, got 4"),
        ([X, X[:, :1].astype(float)], "sample 1 of 'x' has another dtype"),
        ([X.astype(float), X[:, :1].astype(float)], "has another dtype than the model takes"),
        ({"x": [X, X[:, :1]], "targets": np.zeros(3)}, "the same number of them"),
        ({"x": padded([X, X]), "lengths": [[1, 2], [4, 2]]}, "length of sample 1 in dimension 2"),
        ({"x": padded([X, X]), "lengths": [[1, 2], [1, -2]]}, "length of sample 1 in dimension 3"),
        ({"x": padded([X, X]), "lengths": [[1, 2], [1, 3]]}, "W = 3 is outside"),
        ({"x": padded([X, X]), "lengths": [1, 2]}, "one number for each sample and size"),
        ({"x": padded([X, X]), "lengths": [[1, 2]]}, "lengths of 'x' do not fit"),
        ({"x": padded([X, X]), "lengths": [[1.0, 2], [1, 2]]}, "lengths must be integers"),
        ({"x": padded([X, X]), "z.lengths": [1, 2]}, "has z.lengths, but no z"),
        ({"x": padded([X, X]), "lengths": [[1, 2]] * 2, "offsets": [0, 1]}, "either lengths or"),
        ({"x": padded([X, X]), "x.offsets": [0, 3]}, "offsets of 'x' do not fit"),
        ({"x": padded([X, X]), "x.offsets": [0, 2, 1, 2]}, "offsets of 'x' do not fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sample(
    bundles: dict[bool, edge.Bundle], data: Any, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_data(bundles[False], data)
    assert caught.value.expected
    assert caught.value.got


def one_by_one(executor: edge.Executor, score: str | None, labels: Any) -> dict[Any, float]:
    """The mean of the scores of single samples, each run by itself."""
    bundle = executor.bundle
    metric = chosen_metric(bundle, score, labelled=labels is not None)
    found = {}
    for arch in all_subnets(bundle.space):
        total = count = 0.0
        for i, image in enumerate(IMAGES):
            results = executor.run(arch, {"x": image[None]})
            if labels is None:
                own = executor.run(bundle.space.original, {"x": image[None]})
                target = metric.answers(own)
            else:
                target = np.asarray(labels[i])[None]
            more, n = metric.score(results, target)
            total, count = total + more, count + n
        found[arch] = float(np.mean(total / count))
    return found


@pytest.mark.parametrize(
    ("per_place", "score", "labels"),
    [
        (False, "top1", CLASS_OF),
        (False, "agreement", None),
        (False, "cosine", None),
        (True, "agreement", PLACES),
        (True, "agreement", None),
        (True, "cosine", None),
        (True, "spearman", None),
        (True, "negative_loss", PLACES),
    ],
)
def test_scores_are_those_of_samples_one_by_one(
    executors: dict[bool, edge.Executor], per_place: bool, score: str, labels: Any
) -> None:
    executor = executors[per_place]
    wanted = one_by_one(executor, score, labels)
    data = read_data(executor.bundle, IMAGES if labels is None else (IMAGES, labels))
    metric = chosen_metric(executor.bundle, score, labelled=labels is not None)
    for samples, batch_size in ((data, 50), (data, 1), (data.by_size(3), 3)):
        found = Evaluator(executor, samples, metric, batch_size=batch_size)
        assert found.scores(wanted) == pytest.approx(wanted, abs=1e-6)
        assert found.counts.executed < found.counts.one_by_one
        if found.margins.order is not None:
            found.known.clear()
            assert found.scores(wanted) == pytest.approx(wanted, abs=1e-6)


def test_samples_of_one_size_share_a_batch(bundles: dict[bool, edge.Bundle]) -> None:
    data = read_data(bundles[False], (IMAGES, CLASS_OF))
    n_sizes = len(set(AREAS))
    assert len(list(data.batches(50))) == n_sizes
    assert sum(len(targets) for _, targets in data.batches(3)) == len(AREAS)
    sorted_by_size = data.by_size(3)
    assert len(list(sorted_by_size.batches(3))) < len(list(data.batches(3)))
    assert sorted(map(str, sorted_by_size.sizes())) == sorted(map(str, data.sizes()))


def test_a_fixed_batch_size_gets_batches_of_one_size(tmp_path: Path) -> None:
    bundle = tiny(tmp_path / "bundle", False, batch_size=2)
    data = read_data(bundle, (IMAGES, CLASS_OF)).whole(2).by_size(2)
    assert all(len(targets) == 2 for _, targets in data.batches(2))
    metric = chosen_metric(bundle, "top1", labelled=True)
    with edge.Executor(bundle, threads=1) as executor:
        scores = Evaluator(executor, data, metric).scores(bundle.space.sample(4, 0))
    assert all(0 <= score <= 1 for score in scores.values())


@pytest.fixture(scope="module")
def table(bundles: dict[bool, edge.Bundle]) -> LatencyTable:
    return steady(edge.profile(bundles[True], n_samples=3, n_subnets=0, n_held_out=0))


def test_a_search_and_its_command_find_the_best_subnet(
    executors: dict[bool, edge.Executor], table: LatencyTable, tmp_path: Path
) -> None:
    bundle = executors[True].bundle
    wanted = one_by_one(executors[True], "agreement", PLACES)
    options: dict[str, Any] = {"budget": "80%", "score": "agreement", "held_out": 0.0}
    found = edge.search(bundle, table, (IMAGES, PLACES), **options)
    limit_ms = found.budgets_ms[0]
    best = max(score for arch, score in wanted.items() if found.table.predict_ms(arch) <= limit_ms)
    assert found.best.accuracy == pytest.approx(best, abs=1e-6)
    assert {e.arch: pytest.approx(e.accuracy, abs=1e-6) for e in found.pool} == {
        e.arch: wanted[e.arch] for e in found.pool
    }
    file, out = tmp_path / "data.npz", tmp_path / "pool.json"
    np.savez(file, x=padded(IMAGES), targets=padded(PLACES, -1), lengths=np.array(AREAS))
    table.save(tmp_path / "table.json")
    where = ["--table", str(tmp_path / "table.json"), "--data", str(file), "-o", str(out)]
    how = ["--budget", "80%", "--score", "agreement", "--held-out", "0", "--force", "--quiet"]
    assert main(["search", str(bundle.path), *where, *how]) == 0
    assert edge.SubnetPool.load(out).data_digest == found.pool.data_digest
    hasty = edge.search(bundle, table, (IMAGES, PLACES), **options, time_budget_s=5.0)
    assert hasty.pool.data_digest == found.pool.data_digest


def test_a_score_of_ones_own_gets_results_of_one_size(
    bundles: dict[bool, edge.Bundle], table: LatencyTable
) -> None:
    shapes = set()

    def score(outputs: Any, targets: Any) -> tuple[float, float]:
        assert outputs[0].argmax(1).shape == targets.shape
        shapes.add(targets.shape[1:])
        return float((outputs[0].argmax(1) == targets).sum()), float(targets.size)

    edge.search(
        *(bundles[True], table, (IMAGES, PLACES)),
        **{"budget": "80%", "score": score, "max_subnets": 3},
    )
    assert shapes == set(AREAS)


def test_answers_of_different_shapes_are_kept(executors: dict[bool, edge.Executor]) -> None:
    executor = executors[True]
    data = read_data(executor.bundle, IMAGES)
    metric = chosen_metric(executor.bundle, "cosine", labelled=False)
    answers = Answers(executor, metric, len(data))
    for inputs, numbers in data.batches(50):
        first = answers.targets(inputs, numbers, lambda: False)
        again = answers.targets(inputs, numbers, lambda: True)
        assert first is not None
        np.testing.assert_array_equal(first, again)


def test_errors_of_branches_are_means_over_samples_of_all_sizes(
    executors: dict[bool, edge.Executor],
) -> None:
    executor = executors[True]
    found = measure(executor, read_data(executor.bundle, IMAGES), 50)
    assert not found.unknown.any()
    wanted = np.zeros(len(found.errors))
    for area in set(AREAS):
        same_size = [image for image in IMAGES if image.shape[1:] == area]
        one = measure(executor, read_data(executor.bundle, same_size), 50)
        wanted += len(same_size) / len(IMAGES) * one.errors
    np.testing.assert_allclose(found.errors, wanted, rtol=1e-5)


def test_data_of_other_sizes_has_another_digest() -> None:
    flat = np.arange(12.0)
    one = Dataset({"x": Ragged((flat[:5], flat[5:]))}, np.arange(2))
    two = replace(one, inputs={"x": Ragged((flat[:6], flat[6:]))})
    assert one.digest() != two.digest()


def test_an_input_without_samples_may_vary_with_the_size() -> None:
    masks = Ragged((np.ones(2), np.zeros(2), np.ones(3), np.ones(2)))
    data = Dataset({"x": Ragged(tuple(np.zeros(n) for n in (2, 2, 3, 2)))}, np.arange(4),
                   {"mask": masks})  # fmt: skip
    found = {tuple(targets): inputs["mask"].tolist() for inputs, targets in data.batches(9)}
    assert found == {(0, 3): [1, 1], (1,): [0, 0], (2,): [1, 1, 1]}


def test_a_file_of_objects_is_refused_with_the_other_forms(
    bundles: dict[bool, edge.Bundle], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", x=objects(IMAGES))
    with pytest.raises(UsageError, match="can't be read") as caught:
        read_data(bundles[False], tmp_path / "x.npz")
    assert "lengths" in str(caught.value.fix)
