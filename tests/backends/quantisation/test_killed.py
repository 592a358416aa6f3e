"""An export with 8-bit branches that is killed leaves no bundle, and can be repeated."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from fxelastic import edge
from tests import int8_bundles as int8
from tests import warm

# Dies after a step of the export, before the files, or between them and the manifest.
KILLED = """
import os, signal, sys
from pathlib import Path

from fxelastic.backends.onnxruntime import export
from tests import int8_bundles

def dying(function):
    def run(*args, **options):
        function(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return run

part, _, name = sys.argv[2].rpartition(".")
owner = getattr(export, part) if part else export
setattr(owner, name, dying(getattr(owner, name)))
int8_bundles.tiny(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("step", ["quantise_branches", "FileWriter.write"])
def test_kill_9_leaves_no_bundle(tmp_path: Path, step: str) -> None:
    path, program = tmp_path / "bundle", tmp_path / "killed.py"
    program.write_text(KILLED)
    done = warm.run(str(program), str(path), step, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    bundle = int8.tiny(path)
    assert any(spec.kind == "int8" for spec in bundle.space.branches)
    with edge.Executor(edge.load(path), 1) as executor:
        x = np.zeros((2, 64), np.float32)
        (found,) = executor.run(bundle.space.original, {bundle.inputs[0].name: x})
    assert found.shape == (2, 8)
