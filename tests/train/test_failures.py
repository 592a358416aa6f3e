"""What goes wrong ends a run with one clear error, before a weight has moved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import TrainingError, UsageError
from fxelastic.train import Callback, StepReport
from fxelastic.train.batches import BatchReader
from tests.train.supernets import (
    conv_supernet,
    image_batches,
    linear_supernet,
    moved,
    supernet_of,
    vector_batches,
    weights,
)

STAGES: dict[str, Any] = {
    "teacher_forced": lambda *args, **options: fxelastic.distill(*args, **options),
    "chained": lambda *args, **options: fxelastic.distill(*args, mode="chained", **options),
    "tune": lambda *args, **options: fxelastic.tune(*args, **options),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_data_that_is_not_finite_is_named(stage: str, value: float, tmp_path: Path) -> None:
    data = vector_batches(4)
    data[2][0][3, 5] = value
    supernet = linear_supernet()
    with pytest.raises(TrainingError) as raised:
        STAGES[stage](supernet, data, checkpoints=tmp_path, checkpoint_every=1)
    message = str(raised.value)
    assert "step 3, epoch 0, batch 2" in message
    assert "1 of 64 values of input in batch 2 are NaN or infinite" in message
    # The last good checkpoint is there, and a run over mended data goes on from it.
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == [f"{supernet_stage(stage)}-0000000{i}-0000" for i in (1, 2)]
    history = STAGES[stage](
        linear_supernet(), vector_batches(4), checkpoints=tmp_path, checkpoint_every=1
    )
    assert history.resumed_at == 2


def supernet_stage(stage: str) -> str:
    return "tune" if stage == "tune" else "distill"


@pytest.mark.parametrize("stage", STAGES)
def test_a_branch_that_diverges_is_named_and_nothing_has_moved(stage: str) -> None:
    supernet = linear_supernet()
    for name, branch in supernet.branches.items():
        if name.startswith("student@1"):
            with torch.no_grad():
                next(branch.module.parameters()).fill_(math.nan)
    before = weights(supernet)
    with pytest.raises(TrainingError, match=r"branch 'student@1(-3)?' computes NaN") as raised:
        STAGES[stage](supernet, vector_batches(), epochs=10)
    assert "step " in str(raised.value)
    if stage == "teacher_forced":
        changed = {n for n in moved(before, supernet) if not n.startswith("student@1")}
        assert not changed


def test_a_model_that_computes_nan_is_named() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).log()

    supernet = supernet_of(Bad().eval(), torch.zeros(2, 8), gamma=0.9)
    with pytest.raises(TrainingError, match="the model's own block 'original@"):
        fxelastic.distill(supernet, vector_batches())


def test_a_loss_that_is_not_finite_is_named() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return output.sum() * math.inf

    with pytest.raises(TrainingError, match="though its operands are finite"):
        fxelastic.tune(linear_supernet(), vector_batches(), loss=loss)


def test_a_loss_that_takes_something_else_is_told() -> None:
    def loss(output: Tensor) -> Tensor:
        return output.sum()

    with pytest.raises(TrainingError, match=r"the loss can't be computed(.|\n)*takes 1 positional"):
        fxelastic.tune(linear_supernet(), vector_batches(), loss=loss)


def test_a_loss_of_other_shapes_is_told() -> None:
    data = [(torch.randn(4, 8), torch.randn(4, 3))]
    with pytest.raises(TrainingError, match=r"the loss can't be computed(.|\n)*RuntimeError"):
        fxelastic.tune(linear_supernet(), data, loss=lambda y, t: (y - t[:3]).square().mean())


def test_gradients_that_are_not_finite_move_nothing() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        # Its value is 0 and its gradient infinite.
        return (output - output.detach()).abs().sqrt().sum()

    supernet = linear_supernet()
    before = weights(supernet)
    with pytest.raises(TrainingError, match="the gradients of the subnet are not finite at step 1"):
        fxelastic.tune(supernet, vector_batches(), loss=loss)
    assert not moved(before, supernet)


def test_a_mask_of_minus_infinity_is_no_fault() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (self.layers(x) + mask).softmax(1)

    mask = torch.zeros(2, 8)
    mask[:, 4:] = -math.inf
    supernet = supernet_of(Masked().eval(), (torch.zeros(2, 8), mask), gamma=0.4)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    history = fxelastic.distill(supernet, [((x, mask), None)] * 3)
    assert math.isfinite(history.loss)
    bad = x.clone()
    bad[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"values of .* in batch 0 are NaN"):
        fxelastic.distill(supernet, [((bad, mask), None)])


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        ([], "an empty list"),
        (iter([]), "an iterator that is exhausted"),
        (3, "can't be iterated over"),
        ([torch.zeros(2, 9)], r"batch 0 of the loader: input 'x' has another shape"),
        ([torch.zeros(2, 8).double()], "float64"),
        ([torch.zeros(2, 8)] * 2 + [torch.zeros(2, 1)], "batch 2 of the loader"),
        (["text"], "the form of batch 0 of the loader is not understood"),
        ([(torch.zeros(2, 8), 1, 2)], "a tuple of Tensor, int, int"),
        ([{"y": torch.zeros(2, 8)}], "structure"),
    ],
)
def test_batches_that_are_not_the_models_are_refused(loader: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        fxelastic.distill(linear_supernet(), loader)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("paired", [False, True])
def test_a_dict_of_inputs_may_be_the_models_only_argument(labelled: bool, paired: bool) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))

        def forward(self, features: dict[str, Tensor]) -> Tensor:
            return self.layers(features["a"] + features["labels"])

    a, b = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    supernet = supernet_of(Sum().eval(), ({"a": a, "labels": b},))
    target = torch.zeros(4, dtype=torch.int64) if labelled else None
    # The order of the keys is another than the capture's.
    inputs = {"labels": b, "a": a}
    batch = (inputs, target) if paired or labelled else inputs
    read = BatchReader(supernet).read(batch, 0)
    assert supernet.bind(read.args, read.kwargs).keys() == {"features_a", "features_labels"}
    assert read.target is target
    if not paired:
        named = BatchReader(supernet).read(inputs | {"target": 3}, 0)
        assert (named.args[0].keys(), named.target) == ({"a", "labels"}, 3)
    fxelastic.distill(supernet, [batch] * 2)


@pytest.mark.parametrize("kind", ["tune", "distill"])
def test_a_batch_without_anything_to_learn_is_passed_over(kind: str) -> None:
    """As a last batch may be; it used to end with: the loss has no gradient."""
    empty = (torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    ignored = (torch.zeros(3, 8), torch.full((3,), -100))
    supernet = linear_supernet()
    before = weights(supernet)
    history = getattr(fxelastic, kind)(supernet, [*vector_batches(), empty, ignored])
    assert math.isfinite(history.loss)
    assert moved(before, supernet)


def test_nan_in_held_out_data_is_refused() -> None:
    bad = torch.zeros(4, 8)
    bad[1, 2] = math.nan
    held_out = [torch.zeros(4, 8), bad]
    with pytest.raises(TrainingError, match=r"in the data held out: .* in batch 1 are NaN"):
        fxelastic.distill(linear_supernet(), vector_batches(), held_out=held_out)


def test_an_iterator_lasts_for_one_epoch() -> None:
    history = fxelastic.distill(linear_supernet(), iter(vector_batches()))
    assert history.steps == 4
    with pytest.raises(UsageError, match="can be iterated over again"):
        fxelastic.distill(linear_supernet(), iter(vector_batches()), epochs=2)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.full((8,), 4), "classes that the model does not have"),
        (torch.full((8,), -1), "expected: 0 to 3"),
        (torch.zeros(8, 1, dtype=torch.int64), "does not match the model's logits"),
        (torch.zeros(8), "torch.float32 of shape"),
        ("cat", "str"),
    ],
)
def test_targets_that_are_not_the_models_are_refused(target: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        fxelastic.tune(linear_supernet(), [(torch.zeros(8, 8), target)])


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(UsageError, match="the loss must be a scalar"):
        fxelastic.tune(linear_supernet(), vector_batches(), loss=lambda y, t: y)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epoch": 2}, "did you mean epochs"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"steps": 1.5}, "steps must be at least 1, got 1.5"),
        ({"lr": -1}, "lr must be at least 0 or 'auto', got -1"),
        ({"clip_norm": "1"}, "clip_norm must be at least 0, got"),
        ({"precision": "int8"}, "precision must be one of 'fp32', 'bf16', 'fp16', got 'int8'"),
        ({"schedule": "linear"}, "schedule must be one of 'cosine', 'constant', got 'linear'"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"log": "log.txt"}, ".jsonl or .csv"),
        ({"callbacks": [print]}, "callbacks must be instances of Callback"),
        (
            {"optimizer": lambda p: None},
            "Optimizer, got NoneType",
        ),
        (
            {"optimizer": lambda p: torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1)},
            "do not belong to the branches that learn",
        ),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS needs a closure"),
        ({"optimizer": "adam"}, "optimizer must be a function, got 'adam'"),
        ({"split": 3}, "split must be a function, got 3"),
        ({"split": lambda batch: (batch, None)}, "split gives no arguments for batch 0"),
        ({"metric": 3}, "metric must be a function, got 3"),
        ({"callbacks": 3}, "callbacks must be a sequence, got 3"),
        ({"checkpoints": 3}, "checkpoints must be a path, got 3"),
        ({"compile": "yes"}, "compile must be True, False or options, got 'yes'"),
        ({"loss": lambda outputs, targets: 1}, "the loss must be a scalar"),
        ({"mode": "student"}, "no mode 'student'"),
        ({"mode": "chained", "branches_per_step": 2}, "no meaning in the mode 'chained'"),
        ({"sampling": fxelastic.train.Uniform()}, "no meaning in the mode 'teacher_forced'"),
        ({"branches_per_step": 0}, "branches_per_step must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        fxelastic.distill(linear_supernet(), vector_batches(), **options)


@pytest.mark.parametrize("soft", [0.0, 0.5])
def test_a_loss_without_a_gradient_is_refused(soft: float) -> None:
    """The run once ended as if it had trained."""

    def accuracy(result: Any, target: Any) -> Any:
        return (result.argmax(1) == target).float().mean()

    with pytest.raises(TrainingError, match="the loss has no gradient"):
        fxelastic.tune(linear_supernet(), vector_batches(), loss=accuracy, soft=soft)


def test_only_a_supernet_trains() -> None:
    with pytest.raises(UsageError, match="supernet must be a Supernet, got Linear"):
        fxelastic.tune(nn.Linear(2, 2), vector_batches())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="soft must be between 0 and 1, got 2"):
        fxelastic.tune(linear_supernet(), vector_batches(), soft=2)


def test_what_a_callback_raises_ends_the_run_and_closes_the_observers() -> None:
    ends: list[Any] = []

    class Raises(Callback):
        def on_step(self, report: StepReport) -> None:
            raise RuntimeError("enough")

        def on_end(self, history: Any) -> None:
            ends.append(history)

    supernet = conv_supernet()
    with pytest.raises(RuntimeError, match="enough"):
        fxelastic.tune(supernet, image_batches(), callbacks=[Raises()])
    assert ends == [None]
    assert not any(module.training for module in supernet.modules())


@pytest.mark.parametrize("stage", STAGES)
def test_half_weights_are_refused_before_they_move(stage: str) -> None:
    """Their steps round to nothing, and the optimiser's small numbers to 0."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)]
    model = nn.Sequential(*layers).eval().half()
    supernet = fxelastic.expand(model, 0.5, example_inputs=torch.randn(4, 8).half())
    before = weights(supernet)
    data = [(torch.randn(8, 8).half(), torch.zeros(8, dtype=torch.long)) for _ in range(3)]
    with pytest.raises(UsageError, match="float16 can't be trained"):
        STAGES[stage](supernet, data)
    assert not moved(before, supernet)
