"""Which layer of the package may import what, and who does not keep to it.

The rules are ARCHITECTURE.md's. An import counts wherever it stands: inside a function, under
`if TYPE_CHECKING`, relative, or as `import_module("literal")`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "fxelastic"


@dataclass(frozen=True)
class Layer:
    """What a layer may import besides itself and the standard library.

    Attributes:
        layers: Other top-level members of the package.
        libraries: Third-party top-level modules.
    """

    layers: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()


def _layer(layers: str = "", libraries: str = "") -> Layer:
    return Layer(frozenset(layers.split()), frozenset(libraries.split()))


LAYERS: Mapping[str, Layer] = {
    "errors": _layer(),
    "files": _layer(),
    "extras": _layer("errors"),
    "threads": _layer("errors", "torch"),
    "processes": _layer("errors", "torch"),
    "randomness": _layer("", "numpy torch"),
    "row_store": _layer("errors files spec", "numpy"),
    "spec": _layer("errors files", "numpy"),
    "edge": _layer("errors extras files spec", "cryptography numpy onnx onnxruntime psutil"),
    "ir": _layer("errors files spec", "networkx numpy safetensors sympy torch"),
    "passes": _layer("errors files spec ir", "networkx numpy sympy torch"),
    "branches": _layer("errors files spec ir", "numpy torch"),
    "train": _layer(
        "errors files spec ir threads processes randomness row_store",
        "numpy safetensors torch tqdm",
    ),
    "backends": _layer("errors files spec ir", "numpy onnx onnx_ir onnxruntime onnxscript torch"),
}

# The outermost ring puts the layers together and may import all of them.
FACADE = frozenset(
    {
        *(
            "",
            "__main__",
            "api",
            "cli",
            "expansion",
            "exporting",
            "exporting_int8",
            "kinds",
            "multi_stage",
        ),
        *("probing", "report", "specialising", "testing"),
    }
)


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        target: What is imported, absolute: ``fxelastic.ir.block.Block``, ``torch.nn``.
        line: Where.
    """

    target: str
    line: int


def violations(root: Path, package: str = PACKAGE) -> list[str]:
    """Every import under a package that its layer does not allow.

    Args:
        root: The package's folder (``src/fxelastic``).
        package: Its name.

    Returns:
        One line for each: ``ir/text.py:12: ir imports passes (fxelastic.passes.capture)``.
    """
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root)
        layer = layer_of(where)
        if layer in FACADE:
            continue
        if layer not in LAYERS:
            found.append(f"{where}: no rule for {layer!r}; add one to LAYERS")
            continue
        for imported in imports_of(path, module_name(where, package)):
            problem = check_import(layer, imported.target, package)
            if problem:
                found.append(
                    f"{where}:{imported.line}: {layer} imports {problem} ({imported.target})"
                )
    return found


def check_import(layer: str, target: str, package: str = PACKAGE) -> str:
    """What a layer must not import about a target; empty when it may."""
    top, _, rest = target.partition(".")
    if top == package:
        member = rest.partition(".")[0]
        if member == layer or member in LAYERS[layer].layers:
            return ""
        return member if member in LAYERS else "the facade"
    if top in sys.stdlib_module_names or top in LAYERS[layer].libraries:
        return ""
    return top


def layer_of(where: Path) -> str:
    """The top-level member that holds a file: ``ir`` for ``ir/text.py``, empty for the root."""
    first = where.parts[0]
    return first if len(where.parts) > 1 else first.removesuffix(".py").replace("__init__", "")


def module_name(where: Path, package: str = PACKAGE) -> str:
    """A file's dotted name; a package's ends in ``.__init__``, so that its parent is itself."""
    return ".".join((package, *where.with_suffix("").parts))


def imports_of(path: Path, module: str) -> Iterator[Import]:
    """Every import in a file, relative ones resolved."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _resolve(node.module or "", node.level, module)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call):
            name = _dynamic_import(node)
            if name:
                level = len(name) - len(name.lstrip("."))
                yield Import(_resolve(name[level:], level, module), node.lineno)


def _resolve(name: str, level: int, module: str) -> str:
    if level == 0:
        return name
    parents = module.split(".")[:-level]
    return ".".join((*parents, name) if name else parents)


def _dynamic_import(call: ast.Call) -> str:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in ("import_module", "__import__") or not call.args:
        return ""
    argument = call.args[0]
    return (
        argument.value
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        else ""
    )
