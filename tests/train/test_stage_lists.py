"""A list of stages runs in one loop: names, options and branches of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fxelastic
from fxelastic import UsageError, train
from fxelastic.spec import Arch
from fxelastic.train import (
    Chained,
    EndToEnd,
    Fixed,
    Sandwich,
    Stage,
    TeacherForced,
    Turns,
    Uniform,
)
from tests.models.compare import assert_same_output
from tests.train.supernets import linear_supernet, moved, vector_batches, weights


def test_a_list_does_what_the_functions_do_one_by_one() -> None:
    listed, called = linear_supernet(dropout=0.2), linear_supernet(dropout=0.2)
    stages = [
        Stage(TeacherForced(), sampling=Turns(2), epochs=2),
        Stage(EndToEnd(soft=0.5), sampling=Sandwich(), epochs=3),
    ]
    histories = train.run(listed, vector_batches(), stages, seed=4)
    data = vector_batches()
    expected = (
        fxelastic.distill(called, data, branches_per_step=2, epochs=2, seed=4),
        fxelastic.tune(called, data, soft=0.5, sampling=Sandwich(), epochs=3, seed=4),
    )
    assert_same_output(weights(listed), weights(called))
    for history, other in zip(histories, expected, strict=True):
        assert (history.stage, history.steps) == (other.stage, other.steps)
        assert history.coverage == other.coverage
        assert history.held_out == other.held_out


def test_branches_that_do_not_learn_stay_as_they_are() -> None:
    supernet = linear_supernet()
    before = weights(supernet)
    names = ["student@1", "student@2-4"]
    for objective in (TeacherForced(), Chained(), EndToEnd()):
        stage = Stage(objective, learns=names, lr=0.01, keep_best=False)
        (history,) = train.run(supernet, vector_batches(12), [stage])
        assert set(history.coverage) == set(names)
        assert all(history.coverage.values())
        for name, branch in supernet.branches.items():
            parameters = list(branch.module.parameters())
            assert all(p.grad is None for p in parameters), name
            assert branch.frozen or all(p.requires_grad for p in parameters), name
    assert moved(before, supernet) == set(names)


def test_stages_of_one_objective_have_names_and_subnets_of_their_own(tmp_path: Path) -> None:
    stages = [Stage(EndToEnd()), Stage(EndToEnd()), Stage(Chained(), name="last")]
    log = tmp_path / "log.jsonl"
    options: dict[str, Any] = {"log": log, "checkpoints": tmp_path / "checkpoints", "epochs": 2}
    histories = train.run(linear_supernet(), vector_batches(), stages, **options)
    names = ["tune", "tune-2", "last"]
    assert [history.stage for history in histories] == names
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    drawn = {n: [e["archs"] for e in lines if e["stage"] == n and "archs" in e] for n in names}
    assert len({str(archs) for archs in drawn.values()}) == 3
    found = sorted(path.name.split("-0")[0] for path in (tmp_path / "checkpoints").iterdir())
    assert found == sorted([*names, *names])
    again = train.run(linear_supernet(), vector_batches(), stages, **options)
    assert [history.resumed_at for history in again] == [8, 8, 8]
    assert log.read_text().splitlines() == [json.dumps(line) for line in lines]


def test_a_checkpoint_of_other_learners_is_refused(tmp_path: Path) -> None:
    for learns in (["student@1"], ["student@2"]):
        stage = Stage(TeacherForced(), learns=learns)
        if learns == ["student@1"]:
            train.run(linear_supernet(), vector_batches(), [stage], checkpoints=tmp_path)
        else:
            with pytest.raises(fxelastic.TrainingError, match="distill learns differs"):
                train.run(linear_supernet(), vector_batches(), [stage], checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Stage(TeacherForced(), sampling=Uniform()), "does not take the sampling Uniform"),
        (lambda: Stage(EndToEnd(), sampling=Turns()), "does not take the sampling Turns"),
        (lambda: Stage(EndToEnd(), name="a/b"), "name must consist of letters"),
        (lambda: Stage(EndToEnd(), learns=["original@0"]), "learns must hold ids of new branches"),
        (lambda: Stage(EndToEnd(), learns="student@1"), "learns must hold ids of new branches"),
        (lambda: Stage(EndToEnd(), learns=[]), "learns must hold ids of new branches"),
        (lambda: Stage(EndToEnd(), epoch=3), "did you mean epochs"),
        (lambda: Stage(EndToEnd(), name="distill"), "two stages are named 'distill'"),
        (lambda: Stage(EndToEnd(), sampling=Fixed(())), "hold no branch that learns"),
        (
            lambda: Stage(EndToEnd(), sampling=Fixed((linear_supernet().space.original,))),
            "hold no branch that learns",
        ),
        (
            lambda: Stage(EndToEnd(), sampling=Fixed((Arch(("other@0",)),))),
            "there is no branch 'other@0'",
        ),
        (
            lambda: Stage(EndToEnd(), until=0.9, validate=vector_batches(1), keep_best=False),
            "until is for a stage of fixed subnets",
        ),
    ],
)
def test_what_is_wrong_is_found_before_the_first_stage(make: Any, expected: str) -> None:
    supernet = linear_supernet()
    before = weights(supernet)
    with pytest.raises(UsageError, match=expected):
        train.run(supernet, vector_batches(), [Stage(TeacherForced()), make()])
    assert not moved(before, supernet)
