"""Multi-stage training: a network is trained exit by exit."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fxelastic
from fxelastic import UsageError, kinds
from fxelastic.multi_stage import UPDATES
from fxelastic.spec import EXIT
from fxelastic.train import Callback, History
from tests.models.compare import assert_same_output, snapshot
from tests.train.staged import EXITS, images, loader, network, parts, state, train, validation

both = pytest.mark.parametrize("update", UPDATES)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


class Kept(Callback):
    """Keeps what stages did."""

    def __init__(self) -> None:
        self.histories: list[History] = []

    def on_end(self, history: History | None) -> None:
        assert history is not None
        self.histories.append(history)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that the tests below share.

    Attributes:
        update: How earlier segments were updated.
        supernet: The result.
        histories: What each stage did.
        folder: Its checkpoints.
        before: A `snapshot` of the user's model from before.
    """

    update: str
    supernet: fxelastic.Supernet
    histories: list[History]
    folder: Path
    before: Any


@pytest.fixture(scope="module", params=UPDATES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    before, kept, folder = snapshot(network()), Kept(), tmp_path_factory.mktemp("stages")
    supernet = train(
        loader(16, n=128),
        update=request.param,
        epochs=3,
        lr=0.03,
        validate=validation(),
        callbacks=[kept],
        checkpoints=folder,
        keep=1,
    )
    return Trained(request.param, supernet, kept.histories, folder, before)


def test_the_users_model_stays_as_it_is(trained: Trained) -> None:
    assert_same_output(snapshot(network()), trained.before)
    assert not any(module.training for module in trained.supernet.modules())


def test_each_exit_learns(trained: Trained) -> None:
    assert [h.stage for h in trained.histories] == ["stage-1", "stage-2", "stage-3"]
    scores = [h.epochs[-1].scores for h in trained.histories]
    assert [len(s) for s in scores] == ([1, 1, 1] if trained.update == "freeze" else [1, 2, 3])
    # Chance is a quarter.
    assert all(s[-1] >= 0.45 for s in scores), scores
    # The score of the last stage is that of the supernet's originals.
    x, y = images(24, 1)
    found = (trained.supernet(x).argmax(1) == y).float().mean()
    assert scores[-1][-1] == pytest.approx(float(found))


def test_the_trained_weights_fit_the_users_class(trained: Trained) -> None:
    own = copy.deepcopy(network())
    own.load_state_dict(fxelastic.trained_state(trained.supernet, own))
    x, _ = images()
    assert torch.equal(own.eval()(x), trained.supernet(x))
    assert not torch.equal(copy.deepcopy(network()).eval()(x), trained.supernet(x))
    branches = trained.supernet.branches.values()
    assert [b.start for b in branches if b.kind == EXIT] == list(EXITS)


def test_a_model_without_the_trained_weights_is_refused(trained: Trained) -> None:
    """Wrappers such as DataParallel give weights other names; nothing was loaded then."""
    for other in (nn.DataParallel(network()), nn.Linear(2, 2)):
        with pytest.raises(UsageError, match=r"has no weight .* like the one that was trained"):
            fxelastic.trained_state(trained.supernet, other)
    with pytest.raises(UsageError, match="model must be a module"):
        fxelastic.trained_state(trained.supernet, None)  # type: ignore[arg-type]


def test_earlier_segments_stay_only_where_they_are_frozen(trained: Trained) -> None:
    final = state(trained.supernet)
    for stage in (1, 2):
        (folder,) = trained.folder.glob(f"stage-{stage}-*")
        then = safetensors.torch.load((folder / "state.safetensors").read_bytes())
        names = list(parts(final, stage))
        assert len(names) >= 6
        same = [_in_checkpoint(then, name, final[name]) for name in names]
        assert all(same) if trained.update == "freeze" else not any(same)
    # What was kept for the stages is gone.
    assert not list(trained.folder.glob("features-*"))


def _in_checkpoint(tensors: dict[str, Tensor], name: str, value: Tensor) -> bool:
    inner = name.partition("/")[2] or name
    found = [t for key, t in tensors.items() if key.startswith("weights:") and key.endswith(inner)]
    assert found, name
    return any(t.shape == value.shape and torch.equal(t, value) for t in found)


@pytest.mark.parametrize("options", [{}, {"drop_last": True, "batch_size": 16}])
def test_kept_features_give_the_same_weights(options: dict[str, Any]) -> None:
    """With ``drop_last``, other samples are missing in each epoch."""
    data = loader(options.pop("batch_size", 8), **options)
    plain, kept = (state(train(data, cache_bytes=size)) for size in (0, 2**20))
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-6, msg=name)


@both
def test_a_stage_ends_when_its_exit_is_good_enough(update: str) -> None:
    kept = Kept()
    train(
        update=update,
        epochs=(3, 3, 1),
        until=(0.0, 2.0, None),
        validate=validation(),
        callbacks=[kept],
    )
    assert [len(h.epochs) for h in kept.histories] == [1, 3, 1]


@pytest.mark.parametrize("update", UPDATES)
def test_the_best_state_may_be_kept(update: str) -> None:
    kept = Kept()
    train(loader(16, n=32), update=update, epochs=2, keep_best=True, callbacks=[kept])
    assert all(history.held_out.best for history in kept.histories)


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    data = loader(n=8)
    first, again, other = (state(train(data, epochs=1, seed=seed)) for seed in (0, 0, 1))
    assert_same_output(first, again)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": [images()[0]]}, "a batch of the loader has no target"),
        ({"validate": [images()[0]], "epochs": 1}, "batch 0 of validate has no target"),
        ({"until": 0.9}, "until needs labelled data"),
        ({"until": 0.9, "validate": [images()], "keep_best": True}, "exclude one another"),
        ({"until": (0.9, 0.8), "validate": [images()]}, "one for each of 3 stages"),
        ({"epochs": (1, 2)}, "one for each of 3 stages"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"update": "thaw"}, "update must be"),
        ({"lr": "auto"}, "needs a learning rate"),
        ({"norm_statistics": "frozen"}, "no option norm_statistics"),
        ({"cache_bytes": -1}, "cache_bytes must be at least 0"),
        ({"exits": (9,)}, "no exit after 9 blocks"),
        ({"epoch": 3}, "epoch"),
    ],
)
def test_what_cannot_be_met_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(**options)


class Boxes(nn.Module):
    """Its result has three dimensions, so that no head fits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).reshape(-1, 3, 4)


@pytest.mark.parametrize("exits", [(1,), "auto"])
def test_a_model_that_can_have_no_exit_is_refused_with_the_reason(exits: Any) -> None:
    data = [(torch.zeros(4, 8), torch.zeros(4, 3, 4))]
    with pytest.raises(UsageError, match=r"can't have exits there[\s\S]*3 dimensions"):
        train(data, Boxes(), exits=exits, example_inputs=torch.zeros(2, 8), gamma=0.5)


class Pair(nn.Module):
    """Two inputs: tokens, and a mask from which it computes a context."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        x, hidden = self.embed(tokens), ~keep
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=hidden)
        return self.head((x * keep[..., None]).sum(1))


@functools.cache
def pair() -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pair()


@both
def test_several_inputs_in_a_dict(update: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (24, 5), generator=generator)
    keep = torch.arange(5)[None] < torch.randint(2, 6, (24, 1), generator=generator)
    data = [
        {"tokens": tokens[i : i + 8], "keep": keep[i : i + 8], "label": tokens[i : i + 8, 0] % 3}
        for i in (0, 8, 16)
    ]
    model = pair()
    before = snapshot(model)
    example = {"tokens": tokens[:2], "keep": keep[:2]}
    options: dict[str, Any] = {"example_inputs": example, "gamma": 0.3, "exits": kinds.Exit()}
    first, other = (
        state(train(data, model, update=update, cache_bytes=size, epochs=1, **options))
        for size in (0, 2**20)
    )
    assert_same_output(first, other)
    assert_same_output(snapshot(model), before)


def test_another_loss_and_another_score() -> None:
    x, classes = images()
    wanted = nn.functional.one_hot(classes, 4).float()

    def score(result: Tensor, target: Tensor) -> float:
        return -float(nn.functional.mse_loss(result, target))

    kept = Kept()
    train(
        [(x, wanted)],
        loss=nn.functional.mse_loss,
        metric=score,
        validate=[(x, wanted)],
        until=-10.0,
        callbacks=[kept],
    )
    assert [len(h.epochs) for h in kept.histories] == [1, 1, 1]
