"""Find the model's repeating units: the modules that users think of as its blocks.

A repeating unit is a module of several layers, or of one with a connection around it, that stands
in a row of its like: ``layer3.0 … layer3.5``, ``blocks.0 … blocks.11``, ``down1 … down4``,
``Mixed_5b … Mixed_5d``. A convolution with its normalisation repeats too, but is one kernel.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fxelastic.ir.operators import is_matrix_operator

_NUMBER = re.compile(r"\d+[a-z]?")
#: Classes that only hold others: being of the same one makes two modules no relatives.
_CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict"})
_MIN_PARTS = 2


@dataclass
class _Module:
    path: str
    cls: str
    parts: set[fx.Node] = field(default_factory=set)  # weight operators, and joins of streams


def instance_path(node: fx.Node) -> tuple[str, ...]:
    """The calls of modules that an operator is part of, outermost first.

    The model itself is not among them. The second call of a module is another instance
    (``layer@1``), so weight-tied layers are told apart.
    """
    stack: Mapping[str, tuple[str, str]] = node.meta.get("nn_module_stack") or {}
    return tuple(key for key in stack if key)


def repeating_units(
    operands: Mapping[fx.Node, Sequence[fx.Node]], parameters: Mapping[fx.Node, Mapping[str, int]]
) -> frozenset[str]:
    """Instances (keys of ``nn_module_stack``) of the model's repeating units.

    Args:
        operands: The operators of the data stream, and the stream values that each reads.
        parameters: Parameters that each operator reads.

    Returns:
        Keys of the units. Units may nest (stages of blocks); the innermost is the one that counts.
    """
    modules = _collect(operands, parameters)
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, module in modules.items():
        if module.parts and module.cls not in _CONTAINERS:
            parent, _, name = module.path.rpartition(".")
            rows[parent, _pattern(name)].append(key)
    numbered = _numbered_units(rows, modules)
    numbered_paths = {modules[key].path for key in numbered}
    named = {
        key
        for (_, pattern), keys in rows.items()
        if "#" in pattern and pattern != "#"
        for key in _members_of_families(keys, modules)
        if not _inside(key, numbered_paths, modules)
    }
    again = {module.path for key, module in modules.items() if "@" in key}
    unit_paths = {modules[key].path for key in numbered | named}
    repeated_calls = {
        key
        for key, module in modules.items()
        if module.path in again
        and len(module.parts) >= _MIN_PARTS
        and module.cls not in _CONTAINERS
        and not _inside(key, unit_paths, modules)
        and module.path.rpartition(".")[0] not in again
    }
    return frozenset(numbered | named | repeated_calls)


def _collect(
    operands: Mapping[fx.Node, Sequence[fx.Node]], parameters: Mapping[fx.Node, Mapping[str, int]]
) -> dict[str, _Module]:
    modules: dict[str, _Module] = {}
    for node, reads in operands.items():
        counts = len(reads) > 1 or bool(parameters.get(node) and _mixes_channels(node))
        for key, (path, cls) in (node.meta.get("nn_module_stack") or {}).items():
            if not key:
                continue
            module = modules.get(key)
            if module is None:
                module = modules[key] = _Module(path, cls.rpartition(".")[2])
            if counts:
                module.parts.add(node)
    return modules


def _mixes_channels(node: fx.Node) -> bool:
    """Whether the operator, one with parameters, is more than a scale, a bias or a filter.

    A depthwise kernel mixes no channels and makes one layer with the pointwise one beside it.
    """
    if node.op == "call_module":
        return True
    if not is_matrix_operator(node):
        return False
    weight = node.args[1] if len(node.args) > 1 else None
    value = weight.meta.get("val") if isinstance(weight, fx.Node) else None
    shape = list(value.shape) if isinstance(value, torch.Tensor) else []
    return not ("conv" in str(node.target) and shape[1:2] == [1] and shape[0] > 1)


def _numbered_units(
    rows: Mapping[tuple[str, str], list[str]], modules: Mapping[str, _Module]
) -> set[str]:
    """Members of numbered containers whose class repeats there.

    Containers of the same pattern count together: the only block of ``layer1`` is a unit because
    ``layer2`` has several of its like, or because each of the layers has just one.
    """
    families: dict[str, list[list[str]]] = defaultdict(list)
    for (parent, pattern), keys in rows.items():
        if pattern == "#":
            families[_pattern(parent)].append(keys)
    units: set[str] = set()
    for containers in families.values():
        across = [key for keys in containers for key in keys]
        single = all(len({modules[key].path for key in keys}) == 1 for keys in containers)
        if single or any(_members_of_families(keys, modules) for keys in containers):
            classes = {modules[key].cls for key in _members_of_families(across, modules)}
            units.update(
                key
                for key in across
                if modules[key].cls in classes or len(modules[key].parts) >= _MIN_PARTS
            )
    return units


def _members_of_families(keys: list[str], modules: Mapping[str, _Module]) -> list[str]:
    """Those that share their class with another, in families of more than one layer each."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        by_class[modules[key].cls].append(key)
    return [
        key
        for members in by_class.values()
        if len(members) > 1 and max(len(modules[key].parts) for key in members) >= _MIN_PARTS
        for key in members
    ]


def _inside(key: str, unit_paths: set[str], modules: Mapping[str, _Module]) -> bool:
    """Whether a module lies in one of the units."""
    path, dot, _ = modules[key].path.rpartition(".")
    while dot:
        if path in unit_paths:
            return True
        path, dot, _ = path.rpartition(".")
    return path in unit_paths and path != modules[key].path


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name)
