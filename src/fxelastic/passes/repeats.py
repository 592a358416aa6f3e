"""Find the model's repeating units: the modules that users think of as its blocks.

A repeating unit is a module with at least two weight operators of its own that stands in a row of
its like: ``layer3.0 … layer3.5``, ``blocks.0 … blocks.11``, ``down1 … down4``, ``Mixed_5b …
Mixed_5d``. A convolution with its normalisation repeats too, but is one kernel, not a unit.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

_NUMBER = re.compile(r"\d+[a-z]?")
#: Classes that only hold others: being of the same one makes two modules no relatives.
_CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict"})
_MIN_WEIGHTS = 2


@dataclass
class _Module:
    path: str
    cls: str
    weights: set[fx.Node] = field(default_factory=set)


def instance_path(node: fx.Node) -> tuple[str, ...]:
    """The calls of modules that an operator is part of, outermost first.

    The model itself is not among them. The second call of a module is another instance
    (``layer@1``), so weight-tied layers are told apart.
    """
    stack: Mapping[str, tuple[str, str]] = node.meta.get("nn_module_stack") or {}
    return tuple(key for key in stack if key)


def repeating_units(
    nodes: Iterable[fx.Node], parameters: Mapping[fx.Node, Mapping[str, int]]
) -> frozenset[str]:
    """Instances (keys of ``nn_module_stack``) of the model's repeating units.

    Args:
        nodes: The operators of the data stream.
        parameters: Parameters that each operator reads.

    Returns:
        Keys of the units. Units may nest (stages of blocks); the innermost is the one that counts.
    """
    modules = _collect(nodes, parameters)
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, module in modules.items():
        if len(module.weights) >= _MIN_WEIGHTS and not _is_container(module):
            parent, _, name = module.path.rpartition(".")
            rows[parent, _pattern(name)].append(key)
    numbered = _numbered_units(rows, modules)
    numbered_paths = {modules[key].path for key in numbered}
    named = {
        key
        for (_, pattern), keys in rows.items()
        if "#" in pattern and pattern != "#" and _same_class(keys, modules)
        for key in keys
        if not _inside(key, numbered_paths, modules)
    }
    called_again = {key for key in modules if "@" in key}
    again = {modules[key].path for key in called_again}
    unit_paths = {modules[key].path for key in numbered | named}
    repeated_calls = {
        key
        for key, module in modules.items()
        if module.path in again
        and len(module.weights) >= _MIN_WEIGHTS
        and not _is_container(module)
        and not _inside(key, unit_paths, modules)
        and modules[key].path.rpartition(".")[0] not in again
    }
    return frozenset(numbered | named | repeated_calls)


def _collect(
    nodes: Iterable[fx.Node], parameters: Mapping[fx.Node, Mapping[str, int]]
) -> dict[str, _Module]:
    modules: dict[str, _Module] = {}
    for node in nodes:
        for key, (path, cls) in (node.meta.get("nn_module_stack") or {}).items():
            if not key:
                continue
            module = modules.get(key)
            if module is None:
                module = modules[key] = _Module(path, cls.rpartition(".")[2])
            if parameters.get(node) and _has_matrix(node):
                module.weights.add(node)
    return modules


def _has_matrix(node: fx.Node) -> bool:
    """Whether the operator has a weight of two or more dimensions (a scale or a bias has one)."""
    if node.op == "call_module":
        return True
    return any(
        operand.op == "get_attr" and getattr(operand.meta.get("val"), "ndim", 0) >= 2
        for operand in node.all_input_nodes
    )


def _numbered_units(
    rows: Mapping[tuple[str, str], list[str]], modules: Mapping[str, _Module]
) -> set[str]:
    """Members of numbered containers.

    All members of a container count when two of them are of one class, in it or in a container of
    the same pattern: the only block of ``layer1`` is a unit because ``layer2`` has several.
    """
    families: dict[str, list[list[str]]] = defaultdict(list)
    for (parent, pattern), keys in rows.items():
        if pattern == "#":
            families[_pattern(parent)].append(keys)
    units: set[str] = set()
    for containers in families.values():
        alone = all(len(keys) == 1 for keys in containers)
        across = [key for keys in containers for key in keys]
        if any(_same_class(keys, modules) for keys in containers) or (
            alone and _same_class(across, modules)
        ):
            units.update(across)
    return units


def _same_class(keys: list[str], modules: Mapping[str, _Module]) -> bool:
    classes = [modules[key].cls for key in keys]
    return len(classes) > len(set(classes))


def _inside(key: str, unit_paths: set[str], modules: Mapping[str, _Module]) -> bool:
    """Whether a module lies in one of the units."""
    path, dot, _ = modules[key].path.rpartition(".")
    while dot:
        if path in unit_paths:
            return True
        path, dot, _ = path.rpartition(".")
    return path in unit_paths and path != modules[key].path


def _is_container(module: _Module) -> bool:
    return module.cls in _CONTAINERS


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name)
