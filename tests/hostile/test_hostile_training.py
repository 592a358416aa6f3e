"""Hostile checkpoints, supernet files and kept features: none of them raises a raw error."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

import fxelastic
from fxelastic.errors import TrainingError, UsageError
from fxelastic.ir import supernet_file
from fxelastic.row_store import RowStore
from fxelastic.train.loop import Loop
from fxelastic.train.resumption import Resumption
from tests.hostile.mutations import documents, of_bytes, of_json, plain
from tests.hostile.reading import N, check, put
from tests.train.killed_runs import Stop
from tests.train.supernets import supernet_of, vector_batches

DATA, TENSORS = "checkpoint.json", "state.safetensors"
# Reading one is quick; a step of training is not.
RUNS_EACH = 50


def small_supernet() -> Any:
    torch.manual_seed(0)
    return supernet_of(
        nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4)), torch.zeros(2, 8), spans=(1,)
    )


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Refused checkpoints are warned of, thousands of times here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Loop]:
    """A checkpoint of a run that was stopped one step before its end, and the run's loop."""
    folder = tmp_path_factory.mktemp("run")
    options: dict[str, Any] = {"epochs": 2, "checkpoints": folder, "checkpoint_every": 1, "keep": 1}
    supernet = small_supernet()
    with pytest.raises(KeyboardInterrupt):
        fxelastic.tune(supernet, vector_batches(), callbacks=[Stop(8)], **options)
    (place,) = folder.iterdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "run", lambda loop: loop)
        loop: Any = fxelastic.tune(supernet, vector_batches(), **options)
    return place, loop


def sealed(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text + b"\n"


def of_tensors(good: bytes, rng: random.Random) -> bytes:
    """A safetensors file with other entries in its header, or other bytes."""
    if rng.random() < 0.3:
        return of_bytes(good, rng)
    n = int.from_bytes(good[:8], "little")
    header = plain(of_json(json.loads(good[8 : 8 + n]), rng))
    return len(header).to_bytes(8, "little") + header + good[8 + n :]


def of_checkpoint(place: Path, kind: str) -> Iterator[dict[str, bytes]]:
    """Hostile variants of a checkpoint's files, with seals that fit."""
    good = {name: (place / name).read_bytes() for name in (DATA, TENSORS)}
    record = json.loads(good[DATA].split(b"\n", 1)[1])
    rng = random.Random(kind)
    if kind == "record":
        for text in documents(record, N // 3, kind, plain):
            yield {**good, DATA: sealed(text)}
    elif kind == "data":
        for text in documents(record["data"], N // 3, kind, plain):
            head = plain({k: v for k, v in record.items() if k != "data"})
            yield {**good, DATA: sealed(head[:-1] + b',"data":' + text + b"}")}
    else:
        for _ in range(N - N // 3 * 2):
            packed = of_tensors(good[TENSORS], rng)
            text = plain({**record, "sha256": hashlib.sha256(packed).hexdigest()})
            yield {TENSORS: packed, DATA: sealed(text)}


@pytest.mark.parametrize("kind", ["record", "data", "tensors"])
def test_checkpoints(
    kind: str, stopped: tuple[Path, Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, loop = stopped
    monkeypatch.setattr(Resumption, "write", lambda self, position: False)
    good = {name: (place / name).read_bytes() for name in (DATA, TENSORS)}
    written: list[dict[str, bytes]] = [good]
    n_read = 0

    def read(_: bytes) -> None:
        nonlocal n_read
        for name, data in written[-1].items():
            put(place / name, data)
        loop._resumption.resume()
        n_read += 1
        if n_read % RUNS_EACH == 0:
            loop.run()

    def variants() -> Iterator[bytes]:
        for files in of_checkpoint(place, kind):
            written.append(files)
            yield b""
            written.pop()

    try:
        check(read, b"", variants(), least_refused=0.1)
    finally:
        for name, data in good.items():
            put(place / name, data)
    assert n_read > RUNS_EACH


@pytest.mark.parametrize(
    ("key", "problem"),
    [("exp_avg_sq", "optimiser can't go on"), ("lr", "can't be used"), ("betas", "can't go on")],
)
def test_a_state_that_the_optimiser_cannot_use_is_named(
    key: str, problem: str, stopped: tuple[Path, Loop]
) -> None:
    place, loop = stopped
    good = (place / DATA).read_bytes()
    record = json.loads(good.split(b"\n", 1)[1])
    state = json.dumps(record["data"]["optimisation"]).replace(f'["{key}"', '["other"')
    record["data"]["optimisation"] = json.loads(state)
    put(place / DATA, sealed(plain(record)))
    try:
        with pytest.raises(TrainingError, match=problem) as raised:
            loop.run()
    finally:
        put(place / DATA, good)
    assert key in str(raised.value)
    assert re.search("remove (it|the checkpoint)", str(raised.value))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [DATA, TENSORS])
def test_a_pipe_in_a_checkpoint_is_refused(name: str, stopped: tuple[Path, Loop]) -> None:
    place, loop = stopped
    good = (place / name).read_bytes()
    (place / name).unlink()
    os.mkfifo(place / name)
    try:
        with pytest.raises(TrainingError, match="is not a regular file"):
            loop._resumption.resume()
    finally:
        put(place / name, good)


def of_supernet(good: bytes, rng: random.Random) -> bytes:
    """A variant of a supernet file; two in three state the digest of their content."""
    found = of_tensors(good, rng)
    n = int.from_bytes(found[:8], "little")
    try:
        header = json.loads(found[8 : 8 + n])
        facts = json.loads(header["__metadata__"]["fxelastic"])
        tensors = safetensors.torch.load(found)
        facts["content"] = supernet_file._content(tensors.items())
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return found
    if rng.random() < 0.5:
        facts = of_json(facts, rng)
    header["__metadata__"]["fxelastic"] = rng.choice((json.dumps(facts), "[" * 5000, "[1]", '"'))
    packed = plain(header)
    return len(packed).to_bytes(8, "little") + packed + found[8 + n :]


def test_supernet_files(tmp_path: Path) -> None:
    supernet = small_supernet()
    path = tmp_path / "supernet.safetensors"
    supernet.save(path)
    good = path.read_bytes()
    rng = random.Random("supernet")

    def read(data: bytes) -> None:
        put(path, data)
        supernet.load(path)

    check(read, good, (of_supernet(good, rng) for _ in range(N)))


def test_kept_features(tmp_path: Path) -> None:
    """Rows of another process are read as they were written, or computed again."""
    store = RowStore(tmp_path / "rows", {"model": "1"})
    for i in range(3):
        store.add(bytes([i]) * 16, ((2,),), [np.full(2, i, np.float32).tobytes()])
    store.seal()
    store.close()
    good = {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()}
    record = json.loads(good["rows.json"])
    rng = random.Random("rows")
    n_used = 0

    def write(record: Any, packed: bytes) -> None:
        if isinstance(record, dict):
            record = {**record, "index": hashlib.sha256(packed).hexdigest()}
        put(tmp_path / "rows" / "rows.json", plain(record))
        put(tmp_path / "rows" / "index.npy", packed)

    for i in range(N):
        packed = good["index.npy"]
        write(of_json(record, rng) if i % 2 else record, packed if i % 2 else of_bytes(packed, rng))
        found = RowStore.existing(tmp_path / "rows", {"model": "1"})
        if found is not None:
            n_used += 1
            for key in map(bytes.fromhex, found._places.index()["key"].astype(str)):
                assert found.form([key]) in range(len(found.forms))
                with contextlib.suppress(TrainingError):  # a place at the end of the file
                    assert found.read([key], 8).shape == (1, 8)
            found.close()
    assert 0 < n_used < N * 0.75


def test_a_supernet_file_with_deep_metadata_is_refused(tmp_path: Path) -> None:
    tensors = {"x": torch.zeros(1)}
    path = tmp_path / "supernet.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, {"fxelastic": "[" * 100_000}))
    with pytest.raises(UsageError, match="can't be loaded"):
        small_supernet().load(path)
