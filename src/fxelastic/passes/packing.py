"""Join neighbouring units into blocks, up to the cap and along the model's modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from torch import fx

from fxelastic.ir.fusion import FusionRule
from fxelastic.passes.flow import Flow
from fxelastic.passes.regions import Unit
from fxelastic.passes.repeats import instance_path, structural_units

#: Returns the fusion rule of an edge (producer, consumer), or None.
FindRule = Callable[[fx.Node, fx.Node], FusionRule | None]


@dataclass(frozen=True)
class Kept:
    """A value at which a block could have been cut and was not.

    Attributes:
        value: The value.
        reason: Why it was not, in words.
        openable: Whether it ends a region that is whole only because it fits the cap.
        rule: Name of the fusion rule, if a rule is the reason.
    """

    value: fx.Node
    reason: str
    openable: bool = False
    rule: str = ""


@dataclass(frozen=True)
class Pack:
    """A future block.

    Attributes:
        nodes: Stream operators, in graph order.
        reads: Stream values and model inputs that it reads.
        writes: Values that others read.
        glue: Whether it joins or splits streams.
        reason: Why it is glue or not split further.
        parameters: Distinct parameters that it reads: name → elements.
        home: The repeating unit that it belongs to, or None.
        path: Module calls that contain all of it.
        kept: The untaken cuts inside.
    """

    nodes: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]
    glue: bool
    reason: str
    parameters: Mapping[str, int]
    home: str | None
    path: tuple[str, ...]
    kept: tuple[Kept, ...] = ()

    @property
    def n_params(self) -> int:
        """Elements of its parameters."""
        return sum(self.parameters.values())


def pack_units(
    units: Sequence[Unit],
    flow: Flow,
    cap: float,
    repeating: frozenset[str],
    find_rule: FindRule,
) -> list[Pack]:
    """Join units into blocks.

    Args:
        units: The minimal regions, in execution order.
        flow: The classified graph.
        cap: Most parameters of a block, unless a single unit has more.
        repeating: Instances of the repeating units.
        find_rule: The backend's fusion rules.

    Returns:
        The blocks in execution order.
    """
    packs = [_from_unit(unit, flow, repeating) for unit in units]
    joiner = _Joiner(flow, cap)
    packs = _join_fused(packs, joiner, find_rule)
    packs = _with_structural_homes(packs, joiner)
    return joiner.absorb_loose(joiner.pack(packs, 0))


def _from_unit(unit: Unit, flow: Flow, repeating: frozenset[str]) -> Pack:
    parameters: dict[str, int] = {}
    for node in unit.nodes:
        parameters.update(flow.parameters[node])
    path = _common_path([instance_path(node) for node in unit.nodes])
    home = next((key for key in reversed(path) if key in repeating), None)
    kept: tuple[Kept, ...] = ()
    if len(unit.nodes) > 1 and unit.reason and not unit.glue and len(unit.writes) == 1:
        kept = (Kept(unit.writes[0], f"region not opened: {unit.reason}", unit.openable),)
    return Pack(
        unit.nodes,
        unit.reads,
        unit.writes,
        unit.glue,
        unit.reason,
        parameters,
        home,
        path,
        kept,
    )


def _common_path(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    if not paths:
        return ()
    common = paths[0]
    for path in paths[1:]:
        n = 0
        for a, b in zip(common, path, strict=False):
            if a != b:
                break
            n += 1
        common = common[:n]
    return common


class _Joiner:
    def __init__(self, flow: Flow, cap: float) -> None:
        self.flow = flow
        self.cap = cap

    def can_join(self, first: Pack, second: Pack) -> bool:
        """Whether two neighbours together have one input and one output."""
        if first.glue or second.glue or len(first.writes) != 1:
            return False
        return second.reads == first.writes and self.is_only_reader(second, first.writes[0])

    def is_only_reader(self, reader: Pack, value: fx.Node) -> bool:
        inside = set(reader.nodes)
        return all(node in inside for node in self.flow.readers[value])

    def join(self, packs: Sequence[Pack], reason: str, rule: str = "") -> Pack:
        """Join packs, and record the cuts between them."""
        if len(packs) == 1:
            return packs[0]
        parameters: dict[str, int] = {}
        kept: list[Kept] = []
        for i, pack in enumerate(packs):
            parameters.update(pack.parameters)
            kept += pack.kept
            if i + 1 < len(packs):
                kept.append(Kept(pack.writes[0], reason, rule=rule))
        homes = {pack.home for pack in packs if pack.parameters}
        return Pack(
            tuple(node for pack in packs for node in pack.nodes),
            packs[0].reads,
            packs[-1].writes,
            any(pack.glue for pack in packs),
            next((pack.reason for pack in packs if pack.reason), ""),
            parameters,
            homes.pop() if len(homes) == 1 else None,
            _common_path([pack.path for pack in packs]),
            tuple(kept),
        )

    def fits(self, packs: Sequence[Pack]) -> bool:
        parameters: dict[str, int] = {}
        for pack in packs:
            parameters.update(pack.parameters)
        return sum(parameters.values()) <= self.cap

    def pack(self, packs: list[Pack], depth: int) -> list[Pack]:
        """Join the packs of one module call (or of the model), outermost module first."""
        if self._is_one_block(packs):
            return [self.join(packs, self.fits_reason(packs))]
        if len(packs) == 1:
            return packs
        parts: list[Pack] = []
        for key, members in groupby(packs, key=lambda p: _key(p, depth)):
            group = list(members)
            parts += group if key is None else self.pack(group, depth + 1)
        return self._join_neighbours(parts)

    def _is_one_block(self, packs: list[Pack]) -> bool:
        if len({p.home for p in packs if p.parameters}) > 1:
            return False
        chain = all(self.can_join(a, b) for a, b in pairwise(packs))
        return chain and (len(packs) == 1 or self.fits(packs))

    def _join_neighbours(self, packs: list[Pack]) -> list[Pack]:
        """Join the packs of the inner modules, from the first to the last."""
        result: list[Pack] = []
        run = _Run(self)
        for pack in packs:
            if not run.may_extend(pack):
                result += run.finish()
                run = _Run(self)
            run.extend(pack)
        return result + run.finish()

    def fits_reason(self, packs: Sequence[Pack]) -> str:
        path = _common_path([pack.path for pack in packs])
        where = f"of {path[-1]}" if path else "of neighbouring layers"
        return f"both sides {where} fit the cap together"

    def absorb_loose(self, packs: list[Pack]) -> list[Pack]:
        """Join blocks without parameters to a neighbour: they have nothing to replace."""
        result: list[Pack] = []
        for pack in packs:
            previous = result[-1] if result else None
            if previous and not pack.parameters and self.can_join(previous, pack):
                result[-1] = self._keep_home(previous, [previous, pack])
            elif (
                previous
                and not previous.parameters
                and self.can_join(previous, pack)
                and not previous.glue
            ):
                result[-1] = self._keep_home(pack, [previous, pack])
            elif previous and self.extends_glue(previous, pack):
                joined = self.join([previous, pack], "nothing to replace after the join")
                result[-1] = replace(joined, glue=True, reason=previous.reason)
            else:
                result.append(pack)
        return result

    def _keep_home(self, pack: Pack, packs: list[Pack]) -> Pack:
        joined = self.join(packs, "one side has no parameters")
        return replace(joined, home=pack.home, path=pack.path)

    def extends_glue(self, glue: Pack, pack: Pack) -> bool:
        return (
            glue.glue
            and not pack.parameters
            and len(glue.writes) == 1
            and pack.reads == glue.writes
            and not glue.parameters
            and len(pack.writes) == 1
            and self.is_only_reader(pack, glue.writes[0])
        )


class _Run:
    """Neighbouring packs to join; adding a pack takes time linear in its size."""

    def __init__(self, joiner: _Joiner) -> None:
        self._joiner = joiner
        self._packs: list[Pack] = []
        self._parameters: dict[str, int] = {}
        self._n_params = 0
        self._homes: set[str | None] = set()

    def may_extend(self, pack: Pack) -> bool:
        if not self._packs or not self._joiner.can_join(self._packs[-1], pack):
            return False
        # Pieces of one unit may be joined, and so may layers outside of units, but never two units.
        if pack.parameters and self._homes and self._homes != {pack.home}:
            return False
        # Operators without parameters after a unit (a pooling) start the next block.
        if not pack.parameters and self._homes - {None, pack.home}:
            return False
        new = sum(n for name, n in pack.parameters.items() if name not in self._parameters)
        return self._n_params + new <= self._joiner.cap

    def extend(self, pack: Pack) -> None:
        self._packs.append(pack)
        if pack.parameters:
            self._homes.add(pack.home)
        for name, n in pack.parameters.items():
            if name not in self._parameters:
                self._parameters[name] = n
                self._n_params += n

    def finish(self) -> list[Pack]:
        if not self._packs:
            return []
        return [self._joiner.join(self._packs, self._joiner.fits_reason(self._packs))]


def _key(pack: Pack, depth: int) -> str | None:
    return pack.path[depth] if depth < len(pack.path) else None


def _join_fused(packs: list[Pack], joiner: _Joiner, find_rule: FindRule) -> list[Pack]:
    """Join the operators that the inference framework computes with one kernel."""
    result: list[Pack] = []
    for pack in packs:
        previous = result[-1] if result else None
        if previous is None or len(previous.writes) != 1:
            result.append(pack)
            continue
        rule = _hard_rule(previous, pack, joiner, find_rule)
        if rule is None:
            result.append(pack)
        elif joiner.can_join(previous, pack):
            result[-1] = joiner.join([previous, pack], f"fused: {rule.reason}", rule.name)
        elif joiner.extends_glue(previous, pack):
            joined = joiner.join([previous, pack], f"fused: {rule.reason}", rule.name)
            result[-1] = replace(joined, glue=True, reason=previous.reason)
        else:
            result.append(pack)
    return result


def _hard_rule(
    first: Pack, second: Pack, joiner: _Joiner, find_rule: FindRule
) -> FusionRule | None:
    value = first.writes[0]
    readers = joiner.flow.readers[value]
    if len(readers) != 1 or readers[0] not in set(second.nodes):
        return None
    rule = find_rule(value, readers[0])
    return rule if rule is not None and not rule.soft else None


def _with_structural_homes(packs: list[Pack], joiner: _Joiner) -> list[Pack]:
    """Mark repetitions in code without modules as units."""
    result: list[Pack] = []
    for nameless, members in groupby(packs, key=lambda p: not p.path):
        group = list(members)
        if not nameless or any(pack.home for pack in packs):
            result += group
            continue
        homes = structural_units([_kind(pack) for pack in group])
        weighty = {home for pack, home in zip(group, homes, strict=True) if pack.parameters}
        for pack, home in zip(group, homes, strict=True):
            unit = home if home in weighty else None
            result.append(replace(pack, home=unit, path=(unit,) if unit else ()))
    return result


def _kind(pack: Pack) -> str:
    return " ".join(str(node.target) for node in pack.nodes)
