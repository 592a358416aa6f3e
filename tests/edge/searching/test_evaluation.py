"""Scores do not depend on what is reused, kept or ended early; the bound on bytes holds."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from fxelastic.edge.searching.evaluation import Evaluator
from fxelastic.edge.searching.prefixes import PrefixCache
from fxelastic.edge.searching.scores import METRICS, Metric, mean
from fxelastic.edge.searching.tally import Margins
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from tests.edge.fake_executor import FakeExecutor, dataset
from tests.spec.spaces import chain

SPACE = chain(8)
DATA = dataset(60)
BATCH = 7


def by_hand(arch: Arch) -> float:
    """The score by the fake's own run, and numpy."""
    executor = FakeExecutor(SPACE)
    hits = 0
    for inputs, targets in DATA.batches(BATCH):
        hits += int((executor.run(arch, inputs)[0].argmax(1) == targets).sum())
    return hits / len(DATA)


def evaluator(**options: object) -> Evaluator:
    options = {"batch_size": BATCH, **options}
    return Evaluator(FakeExecutor(SPACE), DATA, METRICS["top1"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("cache_bytes", [None, 0, 200, 700, 3000])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_the_same_whatever_is_kept(cache_bytes: int | None, seed: int) -> None:
    archs = SPACE.sample(40, seed)
    watched: list[int] = []
    found = evaluator(cache_bytes=cache_bytes, watch=watched.append)
    scores = found.scores(archs)
    assert scores == {arch: by_hand(arch) for arch in archs}
    assert scores == evaluator(reuse=False).scores(archs)
    if cache_bytes is not None:
        assert max(watched, default=0) <= cache_bytes
        assert found.cache.peak_bytes <= cache_bytes
    assert found.cache.bytes == 0


def test_states_are_kept_by_default_and_save_runs() -> None:
    archs = SPACE.sample(100, 1)
    found = evaluator()
    found.scores(archs)
    assert found.counts.executed < found.counts.one_by_one
    prefixes = {arch.branches[:i] for arch in archs for i in range(1, len(arch) + 1)}
    n_batches = math.ceil(len(DATA) / BATCH)
    # Each distinct prefix is run once for each batch: no fewer runs are possible.
    assert found.counts.executed == len(prefixes) * n_batches
    assert found.counts.one_by_one == n_batches * sum(map(len, set(archs)))
    bounded = evaluator(cache_bytes=300)
    bounded.scores(archs)
    assert found.counts.executed < bounded.counts.executed <= found.counts.one_by_one
    alone = evaluator(reuse=False)
    alone.scores(archs)
    assert alone.counts.executed == alone.counts.one_by_one == found.counts.one_by_one


def test_no_subnet_is_evaluated_twice() -> None:
    archs = SPACE.sample(10, 2)
    found = evaluator()
    first = found.scores([*archs, *archs])
    executed = found.counts.executed
    assert found.scores(archs) == first
    assert found.counts.executed == executed
    assert found.counts.subnets == len(set(archs))


@pytest.mark.parametrize("seed", range(6))
def test_ending_early_changes_no_score(seed: int) -> None:
    archs = SPACE.sample(40, seed)
    exact = evaluator().scores(archs)
    floor = sorted(exact.values())[len(exact) // 2]
    found = evaluator()
    scores = found.scores(archs, dict.fromkeys(archs, floor))
    assert found.counts.ended_early
    assert {a: s for a, s in exact.items() if s >= floor} == {
        a: s for a, s in scores.items() if s >= floor
    }
    assert all(exact[arch] == score for arch, score in scores.items())
    assert found.counts.executed < evaluator_runs(archs)
    # What ended early is not taken for known: it is evaluated when it counts.
    assert found.scores(archs) == exact


@pytest.mark.parametrize("seed", range(4))
def test_scores_do_not_depend_on_the_order_of_samples(seed: int) -> None:
    first, archs = SPACE.sample(5, seed), SPACE.sample(40, seed + 100)
    exact = {arch: by_hand(arch) for arch in (*first, *archs)}
    floor = sorted(exact.values())[-10]
    found = evaluator()
    found.scores(first)
    order = found.margins.order
    assert order is not None
    assert sorted(order) == list(range(len(DATA)))
    scores = found.scores(archs, dict.fromkeys(archs, floor))
    assert found.counts.ended_early
    assert all(exact[arch] == score for arch, score in scores.items())
    assert {a for a in archs if exact[a] >= floor} <= scores.keys()
    for arch, margins in found.margins.by_arch.items():
        (logits,) = FakeExecutor(SPACE).run(arch, DATA.inputs)
        right = logits.argmax(1) == DATA.targets
        # As far as the subnet was evaluated, in the order that is kept for all.
        assert np.array_equal(margins > 0, right[order[: len(margins)]])
        assert (len(margins) == len(DATA)) == (arch in found.known)


def test_samples_that_were_nearly_missed_come_first_and_show_bad_subnets_soon() -> None:
    n = 40
    hard = np.random.default_rng(0).permutation(n)[:10]
    margins = np.full(n, 5.0)
    margins[hard] = np.linspace(-1, 1, 10)
    found = Margins(n, 10, reorder=True)
    # A subnet that ended before its last batch does not tell which samples are hard.
    found.add({SPACE.original: [margins[:10]]})
    assert found.order is None
    assert not found.by_arch
    found.add({SPACE.original: np.split(margins, 4)})
    assert found.order is not None
    assert list(found.order[:10]) == list(hard)
    assert np.array_equal(found.by_arch[SPACE.original], np.sort(margins).astype(np.float32))


def test_only_the_first_samples_are_reordered() -> None:
    n = 1100
    found = Margins(n, 300, reorder=True)
    assert [found.wanted(seen) for seen in (0, 300, 600, 900)] == [True] * 4
    margins = np.random.default_rng(0).standard_normal(n)
    found.add({SPACE.original: np.split(margins, [300, 600, 900])})
    assert found.order is not None
    assert sorted(found.order) == list(range(n))
    long = Margins(5000, 300, reorder=True)
    assert [long.wanted(seen) for seen in (900, 1200)] == [True, False]
    margins = np.random.default_rng(0).standard_normal(1200)
    long.add({SPACE.original: np.split(margins, 4)})
    assert long.order is not None
    assert list(long.order[1200:]) == list(range(1200, 5000))


def test_a_bound_by_probability_takes_samples_as_they_come() -> None:
    found = evaluator(confidence=0.9)
    found.scores(SPACE.sample(5, 0))
    assert found.margins.order is None
    assert found.margins.by_arch


def evaluator_runs(archs: list[Arch]) -> int:
    found = evaluator()
    found.scores(archs)
    return found.counts.executed


def test_a_score_that_is_nan_names_the_subnet() -> None:
    metric = Metric("bad", lambda outputs, targets: (float("nan"), 1.0))
    found = Evaluator(FakeExecutor(SPACE), DATA, metric)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="original@0"):
        found.scores([SPACE.original])


def test_a_user_score_without_a_bound_never_ends_early() -> None:
    metric = Metric("sum", lambda outputs, targets: (float(outputs[0].sum()), float(len(targets))))
    found = Evaluator(FakeExecutor(SPACE), DATA, metric, batch_size=BATCH)  # type: ignore[arg-type]
    archs = SPACE.sample(5, 3)
    assert len(found.scores(archs, dict.fromkeys(archs, 1e9))) == len(set(archs))


@pytest.mark.parametrize("seed", range(20))
def test_a_cache_counts_what_states_share_once(seed: int) -> None:
    rng = random.Random(seed)
    values = [np.zeros(rng.randint(1, 9)) for _ in range(6)]
    limit = rng.choice((None, 100, 200))
    cache = PrefixCache(limit)
    held: dict[int, list[np.ndarray]] = {}
    for _ in range(40):
        depth = rng.randrange(5)
        if rng.random() < 0.3:
            cache.forget(depth)
        else:
            state = dict(enumerate(rng.sample(values, rng.randint(1, 3))))
            cache.keep(depth, state, rng.random())  # type: ignore[arg-type]
        held = {d: list(kept.state.values()) for d, kept in cache._kept.items()}
        distinct = {id(v): v.nbytes for state in held.values() for v in state}
        assert cache.bytes == sum(distinct.values())
        assert limit is None or cache.bytes <= limit
    cache.clear()
    assert cache.bytes == 0


def test_the_least_important_state_goes() -> None:
    cache = PrefixCache(250)
    for depth, importance in ((1, 5.0), (2, 1.0), (3, 3.0), (4, 4.0)):
        cache.keep(depth, {"v": np.zeros(10)}, importance)
    assert sorted(cache._kept) == [1, 3, 4]
    assert cache.deepest(2) is not None
    assert cache.deepest(2)[0] == 1  # type: ignore[index]
    assert cache.n_dropped == 1


# --- scores --------------------------------------------------------------------------------------


def test_top1_and_negative_loss() -> None:
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    assert METRICS["top1"].score([logits], np.array([0, 1, 0])) == (2.0, 3.0)
    total, count = METRICS["negative_loss"].score([logits], np.array([0, 1, 2]))
    expected = sum(
        np.log(np.exp(row)[k] / np.exp(row).sum()) for row, k in zip(logits, (0, 1, 2), strict=True)
    )
    assert total == pytest.approx(expected)
    assert count == 3


def test_miou_adds_up_over_batches() -> None:
    random_ = np.random.default_rng(0)
    logits, targets = random_.normal(size=(6, 3, 4, 4)), random_.integers(-1, 3, (6, 4, 4))
    sums = [METRICS["miou"].score([logits[i : i + 2]], targets[i : i + 2]) for i in (0, 2, 4)]
    split = mean(sum(s for s, _ in sums), sum(c for _, c in sums))
    assert split == mean(*METRICS["miou"].score([logits], targets))
    predicted, known = logits.argmax(1), targets >= 0
    ious = [
        ((predicted == k) & (targets == k)).sum()
        / (((predicted == k) & known) | (targets == k)).sum()
        for k in range(3)
    ]
    assert split == pytest.approx(float(np.mean(ious)))
    perfect = np.eye(3)[np.maximum(targets, 0)].transpose(0, 3, 1, 2)
    assert mean(*METRICS["miou"].score([perfect], targets)) == 1.0


@pytest.mark.parametrize("name", ["top1", "negative_loss", "miou", "agreement"])
def test_targets_that_are_no_classes(name: str) -> None:
    shape = (2, 3, 4, 4) if name == "miou" else (2, 3)
    targets = np.full((2, 4, 4) if name == "miou" else (2,), 3)
    with pytest.raises(UsageError, match="0 to 2"):
        METRICS[name].score([np.zeros(shape)], targets)
    with pytest.raises(UsageError, match="can't compare"):
        METRICS[name].score([np.zeros(shape)], np.zeros((5,), int))
