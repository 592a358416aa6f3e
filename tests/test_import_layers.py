"""The layers import only what they may, and the torch-free part imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fxelastic
from tests.import_layers import FACADE, LAYERS, check_import, violations

SOURCE = Path(fxelastic.__file__).parent


def test_the_package_keeps_to_its_layers() -> None:
    assert violations(SOURCE) == []


def test_every_member_of_the_package_has_a_rule() -> None:
    members = {p.stem if p.suffix == ".py" else p.name for p in SOURCE.iterdir()}
    members -= {"__init__", "__pycache__", "py.typed"}
    assert members <= set(LAYERS) | FACADE


def tree(root: Path, where: str, code: str) -> Path:
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return root


ALLOWED = [
    ("edge/a.py", "import numpy as np\nimport onnxruntime\nimport onnx.helper\nimport psutil"),
    ("edge/a.py", "from fxelastic.spec import Arch"),
    ("edge/search/a.py", "from . import b\nfrom ..pool import Pool\nfrom ...errors import X"),
    ("spec/a.py", "import json, numpy"),
    ("ir/a.py", "import torch\nfrom fxelastic.spec.arch import Arch\nfrom fxelastic import spec"),
    ("passes/a.py", "import networkx\nfrom fxelastic.ir import Block\nfrom fxelastic import ir"),
    ("passes/__init__.py", "from .capture import capture"),
    ("backends/onnxruntime/a.py", "import onnx\nfrom ...ir import Block\nfrom .. import base"),
    ("api.py", "import torch\nfrom fxelastic.backends import x\nfrom fxelastic.passes import y"),
    ("cli/a.py", "import fxelastic\nfrom fxelastic.passes import capture"),
]


@pytest.mark.parametrize(("where", "code"), ALLOWED)
def test_allowed_import_passes(tmp_path: Path, where: str, code: str) -> None:
    assert violations(tree(tmp_path, where, code)) == []


FORBIDDEN = [
    ("errors.py", "import numpy", "errors imports numpy"),
    ("errors.py", "from fxelastic.ir import Block", "errors imports ir"),
    ("spec/a.py", "import torch", "spec imports torch"),
    ("spec/a.py", "import onnx", "spec imports onnx"),
    ("spec/a.py", "from fxelastic.edge import load", "spec imports edge"),
    ("edge/a.py", "import torch.nn", "edge imports torch"),
    ("edge/a.py", "def f():\n    import torch", "edge imports torch"),
    ("edge/a.py", "def f():\n    from torch import nn", "edge imports torch"),
    (
        "edge/a.py",
        "from importlib import import_module\nimport_module('torch.nn')",
        "edge imports torch",
    ),
    ("edge/a.py", "__import__('torch')", "edge imports torch"),
    ("edge/a.py", "import onnxscript", "edge imports onnxscript"),
    ("edge/a.py", "from fxelastic.ir import Block", "edge imports ir"),
    ("edge/a.py", "from ..ir import Block", "edge imports ir"),
    ("edge/search/a.py", "from ... import backends", "edge imports backends"),
    ("edge/__init__.py", "from .. import ir", "edge imports ir"),
    ("edge/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "torch"),
    ("ir/a.py", "from fxelastic.passes import capture", "ir imports passes"),
    ("ir/a.py", "if TYPE_CHECKING:\n    from fxelastic.edge import load", "ir imports edge"),
    ("ir/a.py", "import onnx", "ir imports onnx"),
    ("passes/a.py", "from fxelastic.backends.base import fusion_rules", "passes imports backends"),
    ("passes/a.py", "def f():\n    from ..branches import make", "passes imports branches"),
    ("passes/a.py", "from fxelastic import partition", "passes imports the facade"),
    ("passes/a.py", "import fxelastic", "passes imports the facade"),
    ("passes/a.py", "from fxelastic import *", "passes imports the facade"),
    ("branches/a.py", "from fxelastic.train import loop", "branches imports train"),
    ("branches/a.py", "from fxelastic.passes import capture", "branches imports passes"),
    ("train/a.py", "import fxelastic.branches", "train imports branches"),
    ("train/a.py", "from fxelastic.cli import main", "train imports the facade"),
    ("backends/a.py", "from fxelastic.passes import capture", "backends imports passes"),
    ("backends/a.py", "from fxelastic.edge import load", "backends imports edge"),
    ("backends/a.py", "import tensorflow", "backends imports tensorflow"),
    ("tricks/a.py", "x = 1", "no rule for 'tricks'"),
    ("tricks.py", "x = 1", "no rule for 'tricks'"),
]


@pytest.mark.parametrize(("where", "code", "message"), FORBIDDEN)
def test_forbidden_import_is_found(tmp_path: Path, where: str, code: str, message: str) -> None:
    found = violations(tree(tmp_path, where, code))
    assert len(found) == 1
    assert found[0].startswith(where)
    assert message in found[0]


def test_violation_names_file_line_and_import(tmp_path: Path) -> None:
    tree(tmp_path, "edge/a.py", '"""Docs."""\n\nimport json\nfrom torch import nn\n')
    assert violations(tmp_path) == ["edge/a.py:4: edge imports torch (torch.nn)"]


def test_edge_may_not_import_torch_by_rule() -> None:
    assert check_import("edge", "torch") == "torch"
    assert check_import("spec", "torch") == "torch"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = "; import sys; print('torch' in sys.modules)"


@pytest.mark.parametrize(
    "code",
    [
        "import fxelastic; from fxelastic import edge",
        "import fxelastic; fxelastic.edge; dir(fxelastic); fxelastic.testing",
        "from fxelastic import UsageError, __version__",
        "import fxelastic.cli",
        "import fxelastic.spec",
    ],
)
def test_import_leaves_torch_out(code: str) -> None:
    assert run(code + LOADED) == "False"


def test_torch_is_noticed_when_it_is_imported() -> None:
    assert run("import fxelastic; fxelastic.Partition" + LOADED) == "True"
