"""Run a bundle with the oldest onnxruntime that the package claims to support.

    python tools/check_oldest_onnxruntime.py BUNDLE

Makes a virtual environment without torch in a temporary folder, installs the oldest onnxruntime of
setup.cfg there, and in it loads the bundle, assembles the original and two random subnets, and runs
the files of each subnet one after another and assembled, which have to agree. Needs the network.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_PROGRAM = """
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

from fxelastic import edge

bundle = edge.load(sys.argv[1])
random = np.random.default_rng(0)
inputs = {}
for value in bundle.inputs:
    shape = value.shape_at(bundle.manifest.model.batch_size)
    real = value.dtype.startswith("float")
    array = random.normal(size=shape) if real else np.zeros(shape)
    inputs[value.name] = array.astype(value.dtype)
for arch in (bundle.space.original, *bundle.space.sample(2, seed=0)):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "subnet.onnx"
        edge.assemble(bundle, arch, path)
        whole = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results = whole.run(None, dict(zip((i.name for i in whole.get_inputs()), inputs.values())))
    values = {**bundle.constants, **inputs}
    for branch in arch:
        segment = bundle.segment(branch)
        session = ort.InferenceSession(
            str(bundle.model_path(branch)), providers=["CPUExecutionProvider"]
        )
        feeds = {name: values[name] for name in segment.inputs}
        values.update(zip(segment.outputs, session.run(None, feeds)))
    for value, result in zip(bundle.outputs, results):
        np.testing.assert_allclose(values[value.name], result, rtol=1e-3, atol=1e-4)
    print("agrees:", arch)
assert "torch" not in sys.modules
print("onnxruntime", ort.__version__)
"""


def oldest() -> str:
    """The version in setup.cfg: ``onnxruntime>=1.22`` gives ``1.22``."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    (version,) = re.findall(
        r"^onnxruntime>=([0-9.]+)$", config["options"]["install_requires"], re.MULTILINE
    )
    return str(version)


def main() -> int:
    """Make the environment and run the program in it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--version", default=oldest(), help="another onnxruntime (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        packages = [f"onnxruntime=={args.version}.*", "numpy", "onnx", "psutil"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [python, "-c", _PROGRAM, os.path.abspath(args.bundle)]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
