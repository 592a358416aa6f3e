"""The backends' fusion rules, by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from fxelastic.backends.onnxruntime.fusion_rules import ONNXRUNTIME
from fxelastic.errors import UsageError
from fxelastic.ir.fusion import FusionRules

ENTRY_POINT_GROUP = "fxelastic.fusion_rules"

BUILT_IN: tuple[FusionRules, ...] = (
    ONNXRUNTIME,
    FusionRules("none"),
)


def fusion_rules(name: str) -> FusionRules:
    """Return the fusion rules of a backend.

    Args:
        name: ``onnxruntime``, ``none`` (every cut is allowed), or the name of an entry point in
            the group ``fxelastic.fusion_rules``, which must refer to a `FusionRules`.

    Returns:
        The rules.

    Raises:
        UsageError: No backend or several backends have this name, or its entry point can't be
            loaded or does not refer to fusion rules.
    """
    built_in = {rules.name: rules for rules in BUILT_IN}
    third_party = _third_party(built_in)
    if name in built_in:
        return built_in[name]
    if name in third_party:
        return _load(third_party[name])
    raise UsageError(
        "unknown backend for fusion rules",
        expected="one of " + ", ".join([*built_in, *sorted(third_party)]),
        got=repr(name),
        fix=f"choose one of these, or provide an entry point in the group {ENTRY_POINT_GROUP!r}",
    )


def _third_party(built_in: dict[str, FusionRules]) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        # A distribution that is on the path twice gives equal entry points.
        if entry_point.name in built_in or found.get(entry_point.name, entry_point) != entry_point:
            raise UsageError(
                f"fusion rules {entry_point.name!r} are registered twice",
                expected=f"unique names in the entry-point group {ENTRY_POINT_GROUP!r}",
                got=f"{entry_point.value!r}",
                fix="rename one of them, or uninstall the package that provides it",
            )
        found[entry_point.name] = entry_point
    return found


def _load(entry_point: EntryPoint) -> FusionRules:
    try:
        rules = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"fusion rules {entry_point.name!r} can't be loaded",
            expected=f"an importable {entry_point.value!r}",
            got=f"{type(error).__name__}: {error}",
            fix="repair or uninstall the package that provides them",
        ) from error
    if not isinstance(rules, FusionRules):
        raise UsageError(
            f"entry point {entry_point.name!r} does not refer to fusion rules",
            expected="a fxelastic.ir.fusion.FusionRules",
            got=f"{entry_point.value!r}, a {type(rules).__name__}",
            fix=f"correct the entry point in the group {ENTRY_POINT_GROUP!r}",
        )
    return rules
