"""Tables and pools have a checksum: a damaged number is noticed."""

from __future__ import annotations

import json
import logging
import random

import pytest

from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.errors import UsageError
from fxelastic.spec import Arch


def pool() -> SubnetPool:
    entries = [PoolEntry(Arch((f"original@{i}",)), 1.0 + i, 0.5 + 0.1 * i) for i in range(4)]
    return SubnetPool.of("d" * 64, entries, "e" * 64, "top1", "given")


def test_no_flipped_bit_changes_a_number_unnoticed() -> None:
    data, rng = pool().to_json(), random.Random(0)
    for _ in range(2_000):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            found = SubnetPool.from_json(bytes(flipped))
        except UsageError:
            continue
        assert found == pool()  # spaces between the parts, or the case of the checksum's name


def test_a_changed_layout_is_the_same_content() -> None:
    compact = json.dumps(json.loads(pool().to_json()), separators=(",", ":")).encode()
    assert SubnetPool.from_json(compact) == pool()


def test_a_file_without_a_checksum_is_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    value = json.loads(pool().to_json())
    del value["sha256"]
    with caplog.at_level(logging.WARNING):
        assert SubnetPool.from_json(json.dumps(value).encode(), "old.json") == pool()
    assert "old.json has no checksum" in caplog.text


def test_an_edited_file_is_refused() -> None:
    value = json.loads(pool().to_json())
    value["entries"][0]["accuracy"] = 0.99
    with pytest.raises(UsageError, match="is not a pool") as caught:
        SubnetPool.from_json(json.dumps(value).encode())
    assert "its content does not match its checksum" in str(caught.value)
