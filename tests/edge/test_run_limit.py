"""A model that never ends is ended."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fxelastic import edge
from fxelastic.edge import run_limit
from fxelastic.edge.candidates import Candidate
from fxelastic.edge.run_limit import RunTooLongError
from fxelastic.edge.sessions import SessionMaker
from fxelastic.errors import BundleError, ServingError
from tests.edge.endless import write_endless
from tests.edge.serving.tiny_bundle import write_bundle

X = np.ones((1, 2, 2, 2), np.float32)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> edge.Bundle:
    return write_endless(tmp_path_factory.mktemp("endless") / "bundle")


def test_an_endless_loop_is_ended_and_others_are_not(endless: edge.Bundle) -> None:
    maker = SessionMaker(1, run_s=0.2)
    for _ in range(2):
        with pytest.raises(RunTooLongError, match=r"more than 0\.2 s"):
            maker.open_branch(endless.model("original@0")).run(None, {"x": X})
    head = maker.open_branch(endless.model("original@1"))
    assert head.run(None, {"h0": X} if "h0" in endless.values else {"h1": X})[0].shape == (1, 5)


def test_profile_ends_with_an_error(endless: edge.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_limit, "RUN_S", 0.2)
    with pytest.raises(BundleError, match=r"original@0.* does not end"):
        edge.profile(endless, n_samples=3, n_subnets=0, n_held_out=0)


@pytest.mark.parametrize("mode", ["paged", "assembled"])
def test_a_request_ends_with_an_error(endless: edge.Bundle, mode: str) -> None:
    pool = [Candidate(endless.space.original, 1.0, 0.5)]
    with (
        edge.serve(endless, None, pool, budget_ms=5, mode=mode, run_timeout_s=0.2) as runtime,
        pytest.raises(ServingError, match="took more than"),
    ):
        runtime(X)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_refuses_and_closes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", depth=1, width=2, size=2)
    pool = [Candidate(bundle.space.original, 1.0, 0.5)]
    with edge.serve(bundle, None, pool, budget_ms=5, mode="paged") as runtime:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                runtime(X)
            except ServingError as e:
                runtime.close()
                code = 0 if "spawn" in str(e) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert runtime(X).shape == (1, 5)
