"""``fxelastic prepare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxelastic.cli import main
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.pool import PoolEntry, SubnetPool
from tests.edge.serving.tiny_bundle import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def pool(bundle: Bundle, tmp_path: Path) -> Path:
    archs = dict.fromkeys([*bundle.space.sample(3, seed=0), bundle.space.original])
    entries = [PoolEntry(arch, 1.0 + i, 0.5 + i / 10) for i, arch in enumerate(archs)]
    SubnetPool.of(bundle.digest, entries).save(tmp_path / "pool.json")
    return tmp_path / "pool.json"


def test_a_pool_is_prepared_once(
    bundle: Bundle, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", str(bundle.path), "--pool", str(pool), "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    first = json.loads(printed.out)
    n = first["n_subnets"]
    assert n >= 2
    assert (first["n_prepared"], first["n_ready_before"]) == (n, 0)
    assert Path(first["folder"]).parent == bundle.path.with_name("bundle.prepared")
    assert f"{n} of {n}" in printed.err
    assert main([*command, "--quiet"]) == 0
    printed = capsys.readouterr()
    again = json.loads(printed.out)
    assert (again["n_prepared"], again["n_ready_before"]) == (0, n)
    assert again["size_bytes"] == first["size_bytes"] > 0
    assert printed.err == ""


def test_branches_are_prepared_in_a_folder_of_choice(
    bundle: Bundle, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--prepared", str(tmp_path / "mine"), "--mode", "paged"]
    assert main(["prepare", str(bundle.path), "--pool", str(pool), *folder]) == 0
    assert "branches prepared" in capsys.readouterr().out
    assert not bundle.path.with_name("bundle.prepared").exists()


def test_a_pool_of_another_bundle_is_a_usage_error(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_bundle(tmp_path / "other", seed=1)
    assert main(["prepare", str(other.path), "--pool", str(pool)]) == 2
    assert "another bundle" in capsys.readouterr().err


def test_a_damaged_bundle_is_a_failure(
    bundle: Bundle, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle.path / bundle.segment("original@0").file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert main(["prepare", str(bundle.path), "--pool", str(pool)]) == 1
    assert "different digest" in capsys.readouterr().err
