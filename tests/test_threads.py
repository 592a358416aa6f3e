"""How many threads torch computes with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxelastic
from fxelastic import UsageError
from fxelastic.threads import computing_with, processors, usual_threads
from tests.train.supernets import linear_supernet, vector_batches


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def test_the_number_holds_inside_alone() -> None:
    torch.set_num_threads(2)
    with computing_with(3):
        assert torch.get_num_threads() == 3
        with computing_with(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 2


def test_an_exception_restores_the_number() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), computing_with(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_a_decorated_function_computes_with_the_number() -> None:
    torch.set_num_threads(2)
    assert computing_with(1)(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == 2


def test_no_more_threads_than_processors_are_usual() -> None:
    torch.set_num_threads(processors() + 3)
    assert usual_threads() == processors()
    torch.set_num_threads(1)
    assert usual_threads() == 1


BAD = [0, -1, 1.0, "2", "auto", True, [1]]


def everything(threads: Any, tmp_path: Path) -> Iterator[Callable[[], object]]:
    supernet = linear_supernet()
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    yield lambda: fxelastic.expand(model, 0.5, threads=threads)
    yield lambda: fxelastic.distill(supernet, vector_batches(), threads=threads)
    yield lambda: fxelastic.tune(supernet, vector_batches(), threads=threads)
    yield lambda: fxelastic.export(supernet, tmp_path / "bundle", threads=threads)


@pytest.mark.parametrize("threads", BAD)
def test_a_number_that_makes_no_sense_is_refused(threads: Any, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    for call in everything(threads, tmp_path):
        with pytest.raises(UsageError, match="threads must be") as caught:
            call()
        assert caught.value.got == repr(threads)
    assert torch.get_num_threads() == before
    assert not (tmp_path / "bundle").exists()


def quota(root: Path, own: str, **limits: str) -> Path:
    """A file system in which cgroups, by the depth of their folders, have these limits."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:name=systemd:/a\n0::/{own}\n")
    for depth, limit in limits.items():
        parts = own.split("/")[: int(depth.removeprefix("depth"))]
        folder = root.joinpath("sys/fs/cgroup", *parts)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{limit}\n")
    return root


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("", {"depth0": "100000 100000"}, 1),
        ("a/b", {"depth2": "max 100000", "depth1": "50000 100000"}, 1),
        ("elsewhere/b", {"depth0": "100000 100000"}, 1),
        ("a", {"depth1": "max 100000"}, None),
        ("a", {"depth1": "99900000 100000"}, None),
        ("a", {"depth1": "nonsense"}, None),
        ("a", {}, None),
    ],
)
def test_the_quota_of_a_container_counts(
    tmp_path: Path, own: str, limits: dict[str, str], expected: int | None
) -> None:
    assert processors(quota(tmp_path, own, **limits)) == (expected or processors(tmp_path / "-"))


def test_processors_outside_the_affinity_mask_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mask in ({3}, {0, 5, 7}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, m=mask: m, raising=False)
        assert processors(tmp_path) == len(mask)


@pytest.mark.parametrize("threads", [None, 2])
def test_a_calibrated_supernet_does_not_depend_on_torchs_number(threads: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4)])
    data = torch.randn(512, 16)
    found = []
    for around in (1, 2):
        torch.set_num_threads(around)
        supernet = fxelastic.expand(
            model, 0.5, example_inputs=data[:2], calibration=data, threads=threads
        )
        assert torch.get_num_threads() == around
        found.append(supernet.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
