"""The model's repeating units: the modules that users think of as its blocks.

A repeating unit is a module of several layers, or of one layer with a connection around it, in a
row of similar modules: ``layer3.0 … layer3.5``, ``blocks.0 … blocks.11``, ``down1 … down4``,
``Mixed_5b … Mixed_5d``. A convolution with its normalisation repeats too, but is one kernel. In
code without modules, `structural_units` finds repetition by the sequence of operators.
`block_label` names a block by the modules that it covers.
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
#: Classes that only hold modules: two modules of such a class need not be similar.
_CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict"})
_MIN_PARTS = 2


@dataclass
class _Module:
    path: str
    cls: str
    parts: set[fx.Node] = field(default_factory=set)  # operators with weights, and joins of streams


def instance_path(node: fx.Node) -> tuple[str, ...]:
    """The module calls that contain an operator, outermost first, without the model itself.

    The second call of a module is another instance (``layer@1``), which distinguishes weight-tied
    layers.
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
        Keys of the units. Units may nest (stages of blocks); the innermost one counts.
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
    """Whether an operator with parameters is more than a scale, a bias or a filter.

    A depthwise convolution mixes no channels and forms one layer with the pointwise one beside it.
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

    Containers of the same pattern count together: the only block of ``layer1`` is a unit if
    ``layer2`` has several similar blocks, or if each layer has a single block.
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
    """The modules whose class repeats, if modules of the class have several layers."""
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
    """Whether a module is inside one of the units."""
    path, dot, _ = modules[key].path.rpartition(".")
    while dot:
        if path in unit_paths:
            return True
        path, dot, _ = path.rpartition(".")
    return path in unit_paths and path != modules[key].path


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name)


_MAX_PERIOD = 64

#: Prefix of the names of such repetitions; no module path contains a colon.
STRUCTURAL = "unit:"


def structural_units(kinds: Sequence[str]) -> list[str | None]:
    """Divide a sequence into repetitions of the pattern that covers most of it.

    Args:
        kinds: The structure of each element; equal strings mean equal structure.

    Returns:
        For each element the name of its repetition (``unit:0``, ``unit:1``, …), or None if it does
        not repeat.
    """
    homes: list[str | None] = [None] * len(kinds)
    count = 0
    start = 0
    while start < len(kinds):
        period, repeats = _best_period(kinds, start)
        if repeats < 2:
            start += 1
            continue
        for r in range(repeats):
            for i in range(period):
                homes[start + r * period + i] = f"{STRUCTURAL}{count + r}"
        count += repeats
        start += period * repeats
    return homes


def _best_period(kinds: Sequence[str], start: int) -> tuple[int, int]:
    """The period that covers most from ``start``, the shortest of equals, and its repeats."""
    best, best_cover, best_repeats = 1, 0, 1
    for period in range(1, min(_MAX_PERIOD, (len(kinds) - start) // 2) + 1):
        repeats = 1
        pattern = kinds[start : start + period]
        while kinds[start + repeats * period : start + (repeats + 1) * period] == pattern:
            repeats += 1
        cover = repeats * period
        if repeats >= 2 and cover > best_cover:
            best, best_cover, best_repeats = period, cover, repeats
    return best, best_repeats


_COUNTER = re.compile(r"_\d+$")


def block_label(
    nodes: Sequence[fx.Node],
    path: tuple[str, ...],
    unit: str | None,
    sizes: Mapping[str, int],
) -> str:
    """A name from the module calls that a block covers.

    Names contain no numbers of graph nodes, so a change elsewhere doesn't rename a block.

    Args:
        nodes: The block's stream operators.
        path: Module calls that contain all of them, outermost first.
        unit: The repeating unit that the block belongs to, or None.
        sizes: For each module call, the number of its stream operators in the whole graph.

    Returns:
        The module's path if the block is a whole module call (``layer3.0``), else the range of its
        parts (``conv1..maxpool``, ``layer4.0.conv2..bn2``).
    """
    covered = [key for key in path if sizes.get(key) == len(nodes)]
    if unit in covered:
        return str(unit)
    if covered:
        return covered[0]
    inside: dict[str, int] = {}
    for node in nodes:
        for key in instance_path(node)[len(path) :]:
            inside[key] = inside.get(key, 0) + 1
    prefix = path[-1].partition("@")[0] if path else ""
    first, last = (_part(node, len(path), inside, sizes, prefix) for node in (nodes[0], nodes[-1]))
    span = first if first == last else f"{first}..{last}"
    return f"{path[-1]}.{span}" if path else span


def _part(
    node: fx.Node, depth: int, inside: Mapping[str, int], sizes: Mapping[str, int], prefix: str
) -> str:
    """The outermost call inside ``prefix`` that contains the node and that the block covers."""
    keys = instance_path(node)[depth:]
    for key in keys:
        if inside[key] == sizes[key]:
            return _relative(key, prefix)
    operator = _COUNTER.sub("", node.name)
    return f"{_relative(keys[-1], prefix)}.{operator}" if keys else operator


def _relative(key: str, prefix: str) -> str:
    return key.removeprefix(f"{prefix}.") if prefix else key
