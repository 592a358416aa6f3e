"""Every printed install line is right, a device needs no torch, and errors say what is missing."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fxelastic
from fxelastic import extras
from fxelastic.errors import UsageError
from tests.cli.commands import ROOT, environment
from tests.edge.serving.tiny_bundle import write_bundle
from tests.import_layers import LAYERS

SOURCE = Path(fxelastic.__file__).parent
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
EXTRAS = dict(CONFIG["options.extras_require"])
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Packages that no extra has: the user chooses among several ways to log.
FOREIGN = {"tensorboard"}


def names(requirements: str) -> set[str]:
    """The packages of a list in setup.cfg, with those of the extras that it names."""
    found: set[str] = set()
    for line in requirements.split():
        if (inner := re.fullmatch(r"fxelastic\[(.*)\]", line)) is not None:
            for extra in inner[1].split(","):
                found |= names(EXTRAS[extra])
        else:
            found.add(re.split(r"[<>=!~]", line)[0])
    return found


BASE = names(CONFIG["options"]["install_requires"])


def calls() -> Iterator[tuple[str, str, str, str]]:
    """Every call of `required` in the package: its file, and its three arguments."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text("utf-8")
        if "required(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "required":
                yield path.name, *(ast.literal_eval(argument) for argument in node.args)


def printed(paths: list[Path]) -> list[tuple[str, str]]:
    """Every ``pip install …`` that files have, with the file's name."""
    found = []
    for path in paths:
        for line in re.findall(r"pip install (?!-)('[^']+'|[a-z.]\S*)", path.read_text("utf-8")):
            found.append((path.name, line.strip("'`").rstrip("`,;:)")))
    return found


LINES = [
    (file, line)
    for file, line in printed([*sorted(SOURCE.rglob("*.py")), *PAGES])
    if "{extra}" not in line
]


def distribution(module: str) -> str:
    """The package that installs a module."""
    found = importlib.metadata.packages_distributions().get(module, [module])
    return found[0].lower().replace("_", "-")


def needed(requirements: set[str]) -> set[str]:
    """The packages with everything that they depend on, as installed here."""
    found, left = set(), set(requirements)
    while left:
        name = left.pop()
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in lines:
            if "extra ==" not in line:
                left.add(re.split(r"[^\w.-]", line)[0].lower().replace("_", "-"))
        left -= found
    return found


@pytest.mark.parametrize(("file", "line"), LINES, ids=lambda value: str(value))
def test_every_printed_line_names_what_can_be_installed(file: str, line: str) -> None:
    named = re.fullmatch(r"(?:fxelastic|\.)\[([\w,]+)\]", line)
    if named is None:
        assert line in BASE | FOREIGN | {"."}, f"{file} prints pip install {line}"
    else:
        assert set(named[1].split(",")) <= set(EXTRAS), f"{file} prints pip install {line}"


def test_there_are_lines() -> None:
    assert len(LINES) >= 8
    assert len(list(calls())) >= 5


@pytest.mark.parametrize(("file", "module", "what", "extra"), list(calls()))
def test_an_extra_has_what_the_message_says_is_missing(
    file: str, module: str, what: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distribution(module) in names(EXTRAS[extra])
    assert module in what
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'fxelastic\[{extra}\]'"):
        extras.required(module, what, extra)


def test_a_wrong_extra_would_be_found() -> None:
    assert distribution("jinja2") not in names(EXTRAS["serve"])


def test_the_extra_torch_has_every_module_that_building_imports() -> None:
    assert {distribution(module) for module in extras.OF_TORCH} == names(EXTRAS["torch"])
    building = set().union(*(layer.libraries for layer in LAYERS.values()))
    # Only commands read and write recipes.
    recipes = {"tomli", "tomli_w"}
    assert building - {"cryptography", *BASE} == extras.OF_TORCH - recipes


def test_the_base_is_what_a_device_imports() -> None:
    device = LAYERS["spec"].libraries | LAYERS["edge"].libraries
    assert device - {"cryptography"} == BASE == {"numpy", "onnx", "onnxruntime", "psutil"}


@pytest.mark.parametrize("extra", ["", "serve", "report", "sign"])
def test_a_device_gets_nothing_of_torch(extra: str) -> None:
    wanted = BASE | (names(EXTRAS[extra]) if extra else set())
    assert needed(wanted) & {"torch", "onnxscript", "onnx-ir", "networkx"} == set()


def test_torch_would_be_found() -> None:
    assert "torch" in needed(names(EXTRAS["torch"]))
    assert "networkx" in needed({"torch"})


# Begins a program in which the packages of the extra torch can't be imported.
WITHOUT = """
import sys
from fxelastic.extras import OF_TORCH

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OF_TORCH:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def without_torch(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["explain", "model.py:build"],
        ["check", "model.py:build", "--golden", "blocks.txt"],
        ["train", "model.py:build", "--data", "data.npz", "--out", "trained"],
        [
            "specialise",
            "model.py:build",
            "--arch",
            "original",
            "--data",
            "data.npz",
            "--out",
            "special",
        ],
        ["export", "model.py:build", "bundle"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_command_that_needs_torch_says_so(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import torch\n")
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3), np.float32))
    done = without_torch(f"from fxelastic.cli import main\nsys.exit(main({argv!r}))", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "fxelastic: error: this command needs torch" in done.stderr
    assert "fix:      pip install 'fxelastic[torch]'" in done.stderr


def test_a_public_name_that_needs_torch_says_so(tmp_path: Path) -> None:
    code = "import fxelastic\ntry:\n    fxelastic.expand\nexcept fxelastic.UsageError as e:\n"
    done = without_torch(code + "    print(e)\nfxelastic.kinds", tmp_path)
    assert "fxelastic.expand needs torch" in done.stdout
    assert "UsageError: fxelastic.kinds needs" in done.stderr


def test_another_missing_module_is_not_torch() -> None:
    assert extras.without_torch(ModuleNotFoundError(name="torchvision"), "this") is None
    assert extras.without_torch(ValueError("torch"), "this") is None
    assert extras.without_torch(ModuleNotFoundError(name="torch.export"), "this") is not None


def test_a_device_works_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_bundle(tmp_path / "bundle")
    code = """
import numpy as np
from fxelastic.cli import main
rng = np.random.default_rng(0)
x = rng.standard_normal((30, 8, 8, 8)).astype(np.float32)
np.savez("local.npz", x=x, targets=rng.integers(0, 5, 30))
np.savez("one.npz", x=x[:1])
pool = ["--pool", "bundle.pool.json"]
for argv in (
    ["inspect", "bundle"],
    ["assemble", "bundle", "original", "model.onnx"],
    ["profile", "bundle", "--samples", "3", "--subnets", "0", "--held-out", "0"],
    ["search", "bundle", "--data", "local.npz", "--budget", "90%", "--max-subnets", "5", "--force"],
    ["prepare", "bundle", *pool],
    ["serve", "bundle", *pool, "--budget-ms", "1000", "--inputs", "in", "--outputs", "out"],
    ["report", "."],
):
    import os
    os.makedirs("in", exist_ok=True)
    np.save("in/x.npy", x[:1])
    code = main(argv)
    assert code == 0, (argv, code)
"""
    done = without_torch(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()
