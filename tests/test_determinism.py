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
for name in ("resnet18", "densenet", "swin", "bert", "t5", "fpn_detector"):
    traced = capture(CASES[name].build(), CASES[name].inputs(2))
    for gamma in (0.02, 0.25):
        partition = partition_graph(traced, gamma, fusion_rules("onnxruntime"))
        print(partition.to_text(), partition.to_dot(), partition, sep="\\n")
"""


def test_two_hash_seeds_give_the_same_text() -> None:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    (first, errors), (second, _) = (process.communicate() for process in processes)
    assert processes[0].returncode == 0, errors
    assert first.count("digraph") == 12
    assert first == second
