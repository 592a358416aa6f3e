"""The random number generators that a training step may draw from."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one purpose of a run, in [0, 2^63), the same in every process."""
    text = ":".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_all(seed: int) -> None:
    """Seed torch's (every device's), Python's and numpy's global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def seed_loader(loader: Any, seed: int) -> None:
    """Seed a loader's own generators for an epoch."""
    for generator in _generators(loader):
        generator.manual_seed(derived_seed(seed, "loader"))


def set_epoch(loader: Any, epoch: int) -> None:
    """Pass the epoch to a loader's samplers, as `DistributedSampler` requires."""
    for name in ("sampler", "batch_sampler"):
        announce = getattr(getattr(loader, name, None), "set_epoch", None)
        if callable(announce):
            announce(epoch)


def random_state() -> bytes:
    """The state of all global generators."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    state = {
        "torch": _encoded(torch.get_rng_state()),
        "cuda": [_encoded(value) for value in cuda],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }
    return json.dumps(state).encode()


def restore_random_state(state: bytes) -> None:
    """Restore what `random_state` returned, for the devices that are present."""
    data = json.loads(state)
    torch.set_rng_state(_decoded(data["torch"]))
    for i, value in enumerate(data["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_decoded(value), i)
    version, internal, following = data["python"]
    random.setstate((version, tuple(internal), following))
    name, keys, *rest = data["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


@contextlib.contextmanager
def preserved(*loaders: Any) -> Iterator[None]:
    """Leave the global generators, and those of loaders, as they are now."""
    state = random_state()
    own = [(generator, generator.get_state()) for x in loaders for generator in _generators(x)]
    try:
        yield
    finally:
        restore_random_state(state)
        for generator, value in own:
            generator.set_state(value)


def _generators(loader: Any) -> list[torch.Generator]:
    owners = (loader, getattr(loader, "sampler", None))
    found = {id(g): g for owner in owners if (g := getattr(owner, "generator", None)) is not None}
    return [generator for generator in found.values() if isinstance(generator, torch.Generator)]


def _encoded(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decoded(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
