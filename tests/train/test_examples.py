"""The generated data, the two-stage example, and the benchmark's bars."""

from __future__ import annotations

import copy
import importlib
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import train_report
from benchmarks.train_measures import mutated
from examples.data import digits, glyphs, scenes
from tests.cli.commands import ROOT
from tests.train.supernets import linear_supernet

SMALL = glyphs.Glyphs(n_train=60, n_validation=10, n_test=20, seed=3)


def test_glyphs_are_the_same_each_time(tmp_path: Path) -> None:
    made, again = SMALL.make(), SMALL.make()
    assert {name: array.shape for name, array in made.items()} == {
        "train_x": (60, 32, 32),
        "train_y": (60,),
        "validation_x": (10, 32, 32),
        "validation_y": (10,),
        "test_x": (20, 32, 32),
        "test_y": (20,),
    }
    assert all(np.array_equal(made[name], again[name]) for name in made)
    other = glyphs.Glyphs(n_train=60, n_validation=10, n_test=20, seed=4).make()
    assert not np.array_equal(made["train_x"], other["train_x"])
    loaded = SMALL.load(tmp_path)
    kept = SMALL.load(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for name, data in loaded.items():
        images, classes = data.tensors
        assert images.shape[1:] == (1, 32, 32)
        assert abs(float(images.mean())) < 0.6
        assert 0.4 < float(images.std()) < 2
        assert torch.equal(classes, torch.from_numpy(made[f"{name}_y"]))
        assert torch.equal(images, kept[name].tensors[0])


def test_every_character_has_ink_in_every_font() -> None:
    atlas = glyphs.render_all()
    assert atlas.shape == (36, len(glyphs.FONTS), 48, 48)
    assert float(atlas.flatten(2).sum(2).min()) > 20
    assert len({x.numpy().tobytes() for x in atlas.flatten(0, 1)}) == 36 * len(glyphs.FONTS)


def test_digits_are_real_and_split() -> None:
    pytest.importorskip("sklearn")
    data = digits.load()
    assert {name: len(part) for name, part in data.items()} == {
        "train": 1197,
        "validation": 200,
        "test": 400,
    }
    images, classes = data["train"].tensors
    assert images.shape == (1197, 1, 32, 32)
    assert set(classes.tolist()) == set(range(10))
    seen = {x.numpy().tobytes() for x in images}
    assert sum(x.numpy().tobytes() in seen for x in data["test"].tensors[0]) < 5


def test_scenes_have_shapes_where_the_boxes_are() -> None:
    images, masks, boxes = scenes.scenes(20)
    assert images.shape == (20, 3, 64, 64)
    classes, sizes = scenes.centres(boxes)
    for i in range(20):
        shown = [box for box in boxes[i].tolist() if box[0] >= 0]
        assert shown
        last, x, y, *_ = shown[-1]  # What is drawn last is not covered.
        assert masks[i, int(y), int(x)] == last + 1
        assert 1 <= int((classes[i] > 0).sum()) <= len(shown)
    assert bool(((sizes > 0).all(1) == (classes > 0)).all())


@pytest.fixture
def two_stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("two_stage")
    yield module
    for name in ("two_stage", "data", "data.scenes"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_two_stages_run(two_stage: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stages = two_stage.run(two_stage.TASKS[name], n=20, epochs=1)
    assert len(stages) == 3
    assert "tuned on D2" in capsys.readouterr().out


def test_boxes_are_scored(two_stage: Any) -> None:
    _, _, boxes = scenes.scenes(8)
    classes, sizes = scenes.centres(boxes)
    logits = 20 * torch.nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).float()
    score = two_stage.f1_at_half
    assert score({"logits": logits, "sizes": sizes}, (classes, sizes)) > 0.9
    assert score({"logits": logits, "sizes": 0.4 * sizes}, (classes, sizes)) == 0
    assert score({"logits": logits.roll(1, 1), "sizes": sizes}, (classes, sizes)) < 0.5


RESULT: dict[str, Any] = {
    "model": "net",
    "seed": 0,
    "teacher": 0.9,
    "points": [2, 5],
    "space": "a space",
    "epochs": {"tune": 1},
    "seconds": {"tuned": 1.0},
    "buckets": {
        way: [{"low": 0.3, "high": 1.0, "mean": mean, "best": mean, "n": 3}]
        for way, mean in (("untrained", 0.1), ("tuned", 0.5), ("distilled, tuned", 0.6))
    },
    "best": {
        "70%": {"test": 0.885, "flops": 0.68},
        "50%": {"test": 0.86, "flops": 0.48},
    },
    "curves": {
        "chained": [{"step": 9, "seconds": 10.0, "chained": 0.3, "alone": 0.2}],
        "teacher_forced": [{"step": 3, "seconds": 4.0, "chained": 0.3, "alone": 0.2}],
    },
    "recalibration": {"layers": 2, "before": [0.5, 0.6], "after": [0.5, 0.7]},
}


def test_bars_can_be_missed() -> None:
    assert all(train_report.bars(RESULT).values())
    assert "MISSED" not in train_report.report(RESULT)
    summary = train_report.summary({"net": [RESULT, RESULT]})
    assert summary["data"]["net"]["met"]
    for i, (path, value) in enumerate(
        [
            (("buckets", "tuned", 0, "mean"), 0.61),
            (("best", "70%", "test"), 0.87),
            (("best", "50%", "test"), 0.84),
            (("curves", "teacher_forced", 0, "alone"), 0.21),
            (("recalibration", "after"), [0.5, 0.5]),
        ]
    ):
        bad = copy.deepcopy(RESULT)
        owner: Any = bad
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = value
        assert [*train_report.bars(bad).values()] == [j != i for j in range(5)]
        assert train_report.report(bad).count("MISSED") == 1
        assert not train_report.summary({"net": [RESULT, bad]})["data"]["net"]["met"]


def test_changed_subnets_are_subnets() -> None:
    supernet = linear_supernet()
    rng = random.Random(0)
    arch = supernet.space.original
    seen = set()
    for _ in range(50):
        arch = mutated(supernet, arch, rng)
        supernet.space.validate(arch)
        seen.add(arch)
    assert len(seen) > 20
