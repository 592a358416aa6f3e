"""The same model gives the same text in every process, whatever the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import fxelastic
from tests.models import CASES
for name in ("resnet18", "densenet", "swin", "bert", "t5", "shufflenet_v2"):
    for gamma in (0.02, 0.25):
        partition = fxelastic.partition(CASES[name].build(), gamma, CASES[name].inputs(2))
        print(partition.to_text())
        print(partition.to_dot())
"""


def dump(seed: str) -> str:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return run.stdout


def test_two_hash_seeds_give_the_same_text() -> None:
    first = dump("1")
    assert first.count("digraph") == 12
    assert first == dump("2")
