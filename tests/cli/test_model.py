"""MODEL: what it may name, and one clear error for each way of getting it wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from fxelastic.cli.model import load_model
from fxelastic.errors import UsageError


@pytest.fixture(autouse=True)
def fresh_imports() -> Iterator[None]:
    """Forget what a test imports from its own folder."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "torch" not in name:
            del sys.modules[name]


@pytest.mark.parametrize("name", ["build", "Net", "instance", "Zoo.small", "needs"])
@pytest.mark.parametrize("source", ["model.py", "./model.py", "model"])
def test_what_model_may_name(folder: Path, source: str, name: str) -> None:
    arguments = ["size=4"] if name == "needs" else []
    assert isinstance(load_model(f"{source}:{name}", arguments), nn.Module)


def test_installed_module() -> None:
    assert isinstance(load_model("torch.nn:Linear", ["in_features=3", "out_features=2"]), nn.Linear)


def test_package_in_the_current_folder(folder: Path) -> None:
    (folder / "zoo").mkdir()
    (folder / "zoo" / "__init__.py").write_text("")
    (folder / "zoo" / "nets.py").write_text("from model import build\n")
    assert isinstance(load_model("zoo.nets:build"), nn.Module)


def test_file_imports_its_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "layers.py").write_text("from torch import nn\n")
    (folder / "deep" / "net.py").write_text("import layers\nbuild = layers.nn.ReLU\n")
    assert isinstance(load_model("deep/net.py:build"), nn.ReLU)


def test_file_called_like_a_package_does_not_hide_it(folder: Path) -> None:
    (folder / "json.py").write_text("import json\nfrom torch import nn\nbuild = nn.ReLU\n")
    assert isinstance(load_model("json.py:build"), nn.ReLU)
    assert sys.modules["json"].loads("1") == 1


def test_file_that_defines_dataclasses(folder: Path) -> None:
    (folder / "config.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "@dataclass\nclass Config:\n    width: int = 3\n"
        "def build():\n    return nn.Linear(Config().width, 2)\n"
    )
    assert isinstance(load_model("config.py:build"), nn.Linear)


def test_arguments_are_literals_or_strings(folder: Path) -> None:
    (folder / "echo.py").write_text(
        "from torch import nn\n"
        "def build(**values):\n    net = nn.ReLU()\n    net.values = values\n    return net\n"
    )
    arguments = ["a=3", "b=0.5", "c=(1, 2)", "d=text", "e=None", "f='3'", "g=", "h=a=b"]
    model = load_model("echo.py:build", arguments)
    assert model.values == {
        "a": 3, "b": 0.5, "c": (1, 2), "d": "text", "e": None, "f": "3", "g": "", "h": "a=b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("model.py", r"'model.py', without a colon\n.*e\.g\. model\.py:build_model"),
        ("model", r"without a colon"),
        ("model.py:", r"without a name after the colon"),
        (":build", r"without a module before the colon"),
        ("", r"without a colon"),
        ("mode.py:build", r"no file 'mode\.py'(.|\n)*did you mean model\.py\?"),
        ("nowhere/model.py:build", r"no file 'nowhere/model\.py'"),
        ("nowhere/model:build", r"no file 'nowhere/model'"),
        ("nothing:build", r"no module 'nothing'"),
        ("torch.nothing:build", r"no module 'torch\.nothing'"),
        ("model.nothing:build", r"importing 'model\.nothing' failed|no module 'model\.nothing'"),
        ("model.py:biuld", r"'model\.py' has no 'biuld'(.|\n)*did you mean build\?"),
        ("model.py:zzzzzz", r"has no 'zzzzzz'(.|\n)*it defines Net, Zoo, build"),
        ("model.py:Zoo.smal", r"'model\.py:Zoo' has no 'smal'(.|\n)*did you mean small\?"),
        ("model.py:number", r"neither a model nor callable(.|\n)*int"),
        ("model.py:several", r"did not return a model(.|\n)*expected: a torch\.nn\.Module\n.*list"),
        ("model.py:inputs", r"did not return a model(.|\n)*torch\.Tensor"),
        (
            "model.py:fails",
            r"raised an error while building(.|\n)*RuntimeError: no weights to be found .*line",
        ),
        ("model.py:leaves", r"raised an error while building(.|\n)*SystemExit"),
        ("model.py:needs", r"can't be called(.|\n)*needs\(size\)(.|\n)*--model-arg"),
    ],
)
def test_wrong_model(folder: Path, model: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('odd')", r"importing 'broken\.py' failed(.|\n)*ValueError: odd"),
        ("def build(:", r"importing 'broken\.py' failed(.|\n)*SyntaxError"),
        ("import not_installed_here", r"ModuleNotFoundError(.|\n)*install 'not_installed_here'"),
        ("from . import layers", r"relative import(.|\n)*package\.module:name"),
        ("import sys; sys.exit(3)", r"SystemExit(.|\n)*__main__"),
    ],
)
def test_file_that_cannot_be_imported(folder: Path, text: str, message: str) -> None:
    (folder / "broken.py").write_text(f"{text}\n")
    with pytest.raises(UsageError, match=message) as raised:
        load_model("broken.py:build")
    assert raised.value.__cause__ is not None


def test_module_whose_own_import_fails_is_not_called_missing(folder: Path) -> None:
    (folder / "broken.py").write_text("import not_installed_here\n")
    with pytest.raises(UsageError, match="importing 'broken' failed"):
        load_model("broken:build")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["width"], "must be KEY=VALUE"),
        (["=3"], "must be KEY=VALUE"),
        (["a b=3"], "must be KEY=VALUE"),
        (["width=3", "width=4"], "given twice"),
        (["widht=3"], "unexpected keyword argument 'widht'"),
    ],
)
def test_wrong_arguments(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model("model.py:build", arguments)


def test_an_object_takes_no_arguments(folder: Path) -> None:
    with pytest.raises(UsageError, match="is already a model"):
        load_model("model.py:instance", ["width=3"])
