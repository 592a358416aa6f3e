"""What the stages learn, from which batches, and what they report."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.train import Bucketed, Callback, Sandwich, StepReport, TensorBoard, Uniform
from tests.models import CASES
from tests.models.compare import assert_same_output
from tests.train.supernets import (
    conv_supernet,
    image_batches,
    linear_supernet,
    supernet_of,
    vector_batches,
    weights,
)


class Collect(Callback):
    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.begun: list[Any] = []

    def on_begin(self, *facts: Any) -> None:
        self.begun.append(facts)

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)


def soft_supernet() -> Supernet:
    """A model whose linear students can learn what it computes."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]).eval()
    return supernet_of(model, torch.zeros(2, 8), gamma=0.4)


@pytest.mark.parametrize("mode", ["teacher_forced", "chained"])
def test_distillation_learns(mode: str) -> None:
    supernet = conv_supernet()
    history = fxelastic.distill(supernet, image_batches(8), epochs=12, mode=mode, lr=0.02)
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss


def test_tuning_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    data = [(x[i::4], x[i::4, :4].argmax(1)) for i in range(4)]
    history = fxelastic.tune(linear_supernet(), data, epochs=40, lr=0.05, validate=data)
    first, last = history.epochs[0], history.epochs[-1]
    assert last.loss < 0.9 * first.loss
    # The cheapest range is of new branches only.
    low, high = (bucket.mean for bucket in (first.ranges[0], last.ranges[0]))
    assert low is not None
    assert high is not None
    assert high > low + 0.2
    assert "mean scores from the cheapest range" in str(history)


def test_tuning_without_labels_follows_the_original() -> None:
    x = [batch for batch, _ in vector_batches(8)]
    supernet = linear_supernet()
    archs = supernet.space.sample(10)
    before = fxelastic.evaluate(supernet, archs, x)
    history = fxelastic.tune(supernet, x, epochs=40, lr=0.02)
    after = fxelastic.evaluate(supernet, archs, x)
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss
    assert sum(after.values()) > sum(before.values()) + 1
    assert fxelastic.evaluate(supernet, [supernet.space.original], x) == {
        supernet.space.original: 1.0
    }


def test_soft_labels_are_a_share_of_the_loss() -> None:
    losses = {}
    for soft in (0.0, 0.25, 1.0):
        (report,) = collected(linear_supernet(), vector_batches(1), soft=soft)
        losses[soft] = report.loss
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    assert losses[0.0] != losses[1.0]


def collected(supernet: Supernet, loader: Any, **options: Any) -> list[StepReport]:
    seen = Collect()
    fxelastic.tune(supernet, loader, callbacks=[seen], **options)
    return seen.steps


def test_teacher_forced_features_are_the_models() -> None:
    supernet = conv_supernet()
    x = image_batches(1)[0][0]
    branch = supernet.branches["student@2"]
    values = supernet.bind((x,), {})
    for original in supernet.path()[:2]:
        supernet.run_branch(original, values)
    seen: list[Tensor] = []
    branch.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    fxelastic.distill(supernet, [x])
    torch.testing.assert_close(seen[0], values[branch.inputs[0]])
    seen.clear()
    # With these options nothing runs before the first step.
    options: dict[str, Any] = {"lr": 0, "keep_best": False, "norm_statistics": "frozen"}
    history = fxelastic.distill(supernet, [x] * 8, mode="chained", **options)
    assert len(seen) == history.coverage["student@2"]
    assert not all(torch.allclose(s, values[branch.inputs[0]]) for s in seen)


def test_the_chained_loss_is_the_mean_over_the_subnets_new_branches() -> None:
    supernet = conv_supernet()
    seen = Collect()
    fxelastic.distill(supernet, image_batches(6), mode="chained", lr=0, callbacks=[seen])
    assert len({len(report.losses) for report in seen.steps}) > 1
    for report in seen.steps:
        (arch,) = report.archs
        assert set(report.losses) == {n for n in arch if not supernet.branches[n].frozen}
        assert report.loss == pytest.approx(sum(report.losses.values()) / len(report.losses))


def test_branches_take_turns_evenly() -> None:
    supernet = linear_supernet()
    seen = Collect()
    history = fxelastic.distill(
        supernet, vector_batches(9), branches_per_step=2, epochs=3, callbacks=[seen]
    )
    assert {len(report.losses) for report in seen.steps} <= {1, 2}
    assert max(history.coverage.values()) - min(history.coverage.values()) <= 1
    assert sum(history.coverage.values()) >= 2 * history.steps - 3
    assert len({tuple(report.losses) for report in seen.steps}) > 5


@pytest.mark.parametrize("sampling", [Uniform(2), Bucketed(4, n=2), Sandwich(2)])
def test_coverage_counts_the_steps_in_which_a_branch_learned(sampling: Any) -> None:
    supernet = linear_supernet()
    seen = Collect()
    history = fxelastic.tune(
        supernet, vector_batches(20), sampling=sampling, callbacks=[seen], seed=3
    )
    expected = dict.fromkeys(history.coverage, 0)
    for report in seen.steps:
        for name in report.losses:
            expected[name] += 1
    assert history.coverage == history.epochs[-1].coverage == expected
    assert all(expected.values())
    assert {len(report.archs) for report in seen.steps} <= {1, 2, 3, 4}


def test_accumulated_batches_are_one_larger_batch() -> None:
    results = []
    for accumulate, size in ((1, 16), (4, 4)):
        supernet = linear_supernet()
        x, y = (torch.cat(part) for part in zip(*vector_batches(6), strict=True))
        data = [(x[i : i + size], y[i : i + size]) for i in range(0, 48, size)]
        history = fxelastic.tune(supernet, data, accumulate=accumulate, epochs=2)
        assert history.steps == 6
        results.append(weights(supernet))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-5)


def test_a_group_of_batches_at_the_end_may_be_smaller() -> None:
    history = fxelastic.tune(linear_supernet(), vector_batches(5), accumulate=2, epochs=2)
    assert history.steps == 6


def test_steps_may_be_given_instead_of_epochs() -> None:
    seen = Collect()
    history = fxelastic.tune(linear_supernet(), vector_batches(4), steps=6, callbacks=[seen])
    assert history.steps == 6
    assert [e.step for e in history.epochs] == [4, 6]
    assert seen.begun == [("tune", 0, 0, 6)]


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    rates = [
        report.lr for report in collected(linear_supernet(), vector_batches(10), warmup=0.2, lr=1.0)
    ]
    assert rates[:3] == pytest.approx([0, 0.5, 1.0])
    assert rates == [*rates[:2], *sorted(rates[2:], reverse=True)]
    assert rates[6] == pytest.approx(0.5)
    constant = collected(linear_supernet(), vector_batches(3), schedule="constant", lr=0.1)
    assert [report.lr for report in constant] == pytest.approx([0.1] * 3)
    own = collected(linear_supernet(), vector_batches(4), schedule=lambda done: 1 - done, lr=1.0)
    assert [report.lr for report in own] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_loader_without_a_length_advances_by_epoch() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(vector_batches(2))

    seen = collected(linear_supernet(), Endless(), epochs=2, lr=1.0)
    assert [report.lr for report in seen] == pytest.approx([1, 1, 0.5, 0.5])


def test_gradients_are_clipped_and_their_norm_reported() -> None:
    steps = {
        limit: collected(
            linear_supernet(),
            vector_batches(1),
            clip_norm=limit,
            optimizer=lambda p: torch.optim.SGD(p, 1.0),
        )
        for limit in (None, 0.01)
    }
    supernet = linear_supernet()
    before = weights(supernet)
    collected(
        supernet,
        vector_batches(1),
        clip_norm=0.01,
        optimizer=lambda p: torch.optim.SGD(p, 1.0),
    )
    after = weights(supernet)
    change = torch.sqrt(sum((after[n] - before[n]).square().sum() for n in after))  # type: ignore[arg-type]
    assert change <= 0.0101
    assert steps[None][0].grad_norm == pytest.approx(steps[0.01][0].grad_norm)
    assert steps[None][0].grad_norm > 0.01


def test_mixed_precision_trains() -> None:
    for stage in (fxelastic.distill, fxelastic.tune):
        supernet = conv_supernet()
        dtypes: list[torch.dtype] = []
        first = supernet.branches["student@1"].module.heads[0].layer[0]
        first.register_forward_hook(lambda *facts, d=dtypes: d.append(facts[2].dtype))
        history = stage(supernet, image_batches(8), precision="bf16", epochs=8, lr=0.01)
        assert set(dtypes) == {torch.bfloat16}
        # The loss of a tuning step depends on the subnet that it draws.
        assert history.stage == "tune" or history.loss < 0.95 * history.epochs[0].loss
        assert all(p.dtype is torch.float32 for p in supernet.parameters())


def test_branches_can_be_compiled() -> None:
    results = []
    for compile in (False, {"backend": "eager"}):
        supernet = linear_supernet()
        fxelastic.distill(supernet, vector_batches(2), compile=compile)
        fxelastic.tune(supernet, vector_batches(2), compile=compile)
        results.append(weights(supernet))
    assert_same_output(results[0], results[1])


@pytest.mark.parametrize(
    "name",
    ["bert", "gpt2", "t5", "image_and_table", "keyword_only", "dict_input", "multi_task",
     "dataclass_output", "fpn_detector", "lstm_classifier"],
)  # fmt: skip
def test_any_signature_trains_without_labels(name: str) -> None:
    item = CASES[name]
    args, kwargs = item.inputs(2)
    supernet = supernet_of(item.build(), (args, kwargs), gamma=0.3)
    batch = (((args, kwargs)), None)
    losses = [e.loss for e in fxelastic.distill(supernet, [batch], epochs=5).epochs]
    assert losses[-1] < losses[0]
    assert fxelastic.tune(supernet, [batch], epochs=3).steps == 3


def test_batches_have_many_forms() -> None:
    x, y = vector_batches(1)[0]
    loss = collected(linear_supernet(), [(x, y)])[0].loss
    forms: list[Any] = [
        [x, y],
        ((x,), y),
        ({"x": x}, y),
        {"x": x, "labels": y},
        {"x": x, "target": y},
        (((x,), {}), y),
        (x.numpy(), y.numpy()),
        (x, y.to(torch.int32)),
        (x, nn.functional.one_hot(y, 4).float()),
    ]
    for form in forms:
        assert collected(linear_supernet(), [form])[0].loss == pytest.approx(loss), form
    unlabelled: list[Any] = [x, (x,), {"x": x}, (x, None), ({"x": x}, None)]
    soft = collected(linear_supernet(), [x])[0].loss
    for form in unlabelled:
        assert collected(linear_supernet(), [form])[0].loss == pytest.approx(soft)
    assert soft != pytest.approx(loss)
    own = collected(
        linear_supernet(), [{"a": y, "b": x}], split=lambda raw: ((raw["b"],), {}, raw["a"])
    )
    assert own[0].loss == pytest.approx(loss)


def test_a_data_loader_that_shuffles_is_reproducible() -> None:
    x, y = (torch.cat(part) for part in zip(*vector_batches(4), strict=True))
    results = []
    for drawn in (0, 5):
        generator = torch.Generator().manual_seed(drawn)
        loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=generator)
        state = generator.get_state()
        supernet = linear_supernet()
        fxelastic.tune(supernet, loader, epochs=2)
        assert torch.equal(generator.get_state(), state)
        results.append(weights(supernet))
    assert_same_output(results[0], results[1])


def test_samplers_are_told_the_epoch() -> None:
    told: list[int] = []

    class Loader(list[Any]):
        class sampler:
            @staticmethod
            def set_epoch(epoch: int) -> None:
                told.append(epoch)

    fxelastic.distill(linear_supernet(), Loader(vector_batches(1)), epochs=3)
    assert told == [0, 1, 2]


def test_validation_does_not_change_what_is_learned() -> None:
    x, y = (torch.cat(part) for part in zip(*vector_batches(2), strict=True))
    results = []
    for validate in (None, DataLoader(TensorDataset(x, y), 4, shuffle=True)):
        supernet = linear_supernet(dropout=0.5)
        options: dict[str, Any] = {"validate": validate, "keep_best": False}
        fxelastic.tune(supernet, vector_batches(), epochs=2, **options)
        results.append(weights(supernet))
    assert_same_output(results[0], results[1])


def test_logs_hold_every_step(tmp_path: Path) -> None:
    jsonl, table = tmp_path / "new" / "log.jsonl", tmp_path / "log.csv"
    seen = Collect()
    options: dict[str, Any] = {"epochs": 2, "callbacks": [seen]}
    fxelastic.distill(linear_supernet(), vector_batches(2), log=jsonl, **options)
    fxelastic.tune(linear_supernet(), vector_batches(2), log=jsonl, **options)
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["step", "step", "epoch"] * 4
    steps = [line for line in lines if line["event"] == "step"]
    for line, report in zip(steps, seen.steps, strict=True):
        assert line["stage"] == report.stage
        assert line["losses"] == report.losses
        assert line["archs"] == [str(arch) for arch in report.archs]
    fxelastic.distill(linear_supernet(), vector_batches(2), log=table, **options)
    fxelastic.tune(linear_supernet(), vector_batches(2), log=table, **options)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["distill"] * 4 + ["tune"] * 4
    assert float(rows[5]["loss"]) == pytest.approx(seen.steps[-3].loss)


def test_tensorboard_is_optional(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UsageError, match="pip install tensorboard"):
            TensorBoard(tmp_path)
    else:
        board = TensorBoard(tmp_path)
        fxelastic.tune(linear_supernet(), vector_batches(2), callbacks=[board])
        assert list(tmp_path.iterdir())


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    fxelastic.tune(linear_supernet(), vector_batches(3), progress=True)
    err = capsys.readouterr().err
    assert "3/3" in err
    assert "loss" in err


def test_a_history_reads_well() -> None:
    history = fxelastic.distill(linear_supernet(), vector_batches(2), epochs=2)
    assert str(history).startswith("distill: 4 steps; 9 branches learned in 4 steps each\n")
    assert np.isfinite(history.loss)
