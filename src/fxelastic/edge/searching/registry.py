"""The search strategies, by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol

from fxelastic.edge.searching.study import Study
from fxelastic.errors import UsageError

ENTRY_POINT_GROUP = "fxelastic.search"

_PACKAGE = "fxelastic.edge.searching"
BUILT_IN = {
    "evolutionary": f"{_PACKAGE}.evolutionary:Evolutionary",
    "plain-evolutionary": f"{_PACKAGE}.evolutionary:PlainEvolutionary",
    "annealing": f"{_PACKAGE}.annealing:Annealing",
    "plain-annealing": f"{_PACKAGE}.annealing:PlainAnnealing",
    "additive": f"{_PACKAGE}.additive:Additive",
    "exhaustive": f"{_PACKAGE}.exhaustive:Exhaustive",
}


class Strategy(Protocol):
    """Decides which subnets to evaluate: a frozen dataclass whose fields are its options.

    The contract: `run` asks `Study.score` for subnets until it raises `SearchEndedError`, or
    returns when nothing is left to try. It keeps no state between runs, and takes all chance from
    ``study.rng``: the same study gives the same subnets.

    A strategy may have a method ``check(study)``, which is called before anything is evaluated and
    raises a `UsageError` where the strategy does not fit the study.
    """

    def run(self, study: Study) -> None:
        """Search."""
        ...  # pragma: no cover


def strategy_names() -> tuple[str, ...]:
    """Every known strategy: the built-in ones, then those of other packages."""
    others = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
    return tuple(dict.fromkeys((*BUILT_IN, *others)))


def strategy(name: str) -> Callable[..., Strategy]:
    """The strategy class of a name.

    Raises:
        UsageError: There is none of that name.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: Callable[..., Strategy] = getattr(import_module(module), attribute)
        return found
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            loaded: Callable[..., Strategy] = entry.load()
            return loaded
    raise UsageError(
        f"there is no search strategy {name!r}",
        expected="one of " + ", ".join(strategy_names()),
        got=repr(name),
        fix=f"other packages add strategies by an entry point in the group {ENTRY_POINT_GROUP!r}",
    )
