"""The same model gives the same text in every process, whatever the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
from fxelastic.backends import fusion_rules
from fxelastic.passes import capture, partition_graph
from tests.models import CASES
def texts():
    for name in ("densenet", "albert", "t5", "fpn_detector", "gru_tagger"):
        traced = capture(CASES[name].build(), CASES[name].inputs(2))
        for gamma in (0.02, 0.25):
            partition = partition_graph(traced, gamma, fusion_rules("onnxruntime"))
            yield "\\n".join([partition.to_text(), partition.to_dot(), str(partition)])
"""


def test_another_hash_seed_gives_the_same_text() -> None:
    # Another than this process's, which is drawn at random where the environment has none.
    for seed in ("1", "2"):
        if os.environ.get("PYTHONHASHSEED") != seed:
            break
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    other = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + "print(*texts(), sep='\\n')"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    here: dict[str, object] = {}
    exec(PROGRAM, here)
    expected = "\n".join(here["texts"]()) + "\n"  # type: ignore[operator]
    found, errors = other.communicate()
    assert other.returncode == 0, errors
    assert found.count("digraph") == 10
    assert found == expected
