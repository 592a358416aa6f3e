"""The device runtime, which loads and runs bundles exported on another machine.

Nothing in this package imports torch, not even inside a function. Each public name is imported
when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxelastic.edge.assembling import assemble
    from fxelastic.edge.bundle import Bundle, load
    from fxelastic.edge.cascades.entry import CascadeEntry
    from fxelastic.edge.cascades.running import CascadeResults, run_cascade
    from fxelastic.edge.executor import Executor
    from fxelastic.edge.monitoring.energy_meter import Energy, EnergyMeter
    from fxelastic.edge.monitoring.power_model import PowerModel
    from fxelastic.edge.monitoring.resource_monitor import ResourceMonitor, Resources
    from fxelastic.edge.pool import PoolEntry, SubnetPool
    from fxelastic.edge.preparing import Preparation, prepare
    from fxelastic.edge.profiling import profile
    from fxelastic.edge.searching.options import SearchOptions
    from fxelastic.edge.searching.planning import PlanPoint, ScorePlan, plan
    from fxelastic.edge.searching.prediction import ScorePrediction
    from fxelastic.edge.searching.result import SearchResult
    from fxelastic.edge.searching.search import search
    from fxelastic.edge.serving.options import Serving
    from fxelastic.edge.serving.runtime import Runtime
    from fxelastic.edge.serving.serve import serve
    from fxelastic.edge.table_match import TableMatch, match_table
    from fxelastic.spec.cascade import Cascade
    from fxelastic.spec.latency_table import LatencyTable
    from fxelastic.spec.limits import Limits

__all__ = [
    "Bundle",
    "Cascade",
    "CascadeEntry",
    "CascadeResults",
    "Energy",
    "EnergyMeter",
    "Executor",
    "LatencyTable",
    "Limits",
    "PlanPoint",
    "PoolEntry",
    "PowerModel",
    "Preparation",
    "ResourceMonitor",
    "Resources",
    "Runtime",
    "ScorePlan",
    "ScorePrediction",
    "SearchOptions",
    "SearchResult",
    "Serving",
    "SubnetPool",
    "TableMatch",
    "assemble",
    "load",
    "match_table",
    "plan",
    "prepare",
    "profile",
    "run_cascade",
    "search",
    "serve",
]

# Public name -> the module that defines it.
_LAZY_NAMES = {
    "PlanPoint": "fxelastic.edge.searching.planning",
    "ScorePlan": "fxelastic.edge.searching.planning",
    "ScorePrediction": "fxelastic.edge.searching.prediction",
    "plan": "fxelastic.edge.searching.planning",
    "Preparation": "fxelastic.edge.preparing",
    "prepare": "fxelastic.edge.preparing",
    "Serving": "fxelastic.edge.serving.options",
    "Runtime": "fxelastic.edge.serving.runtime",
    "serve": "fxelastic.edge.serving.serve",
    "TableMatch": "fxelastic.edge.table_match",
    "match_table": "fxelastic.edge.table_match",
    "Bundle": "fxelastic.edge.bundle",
    "assemble": "fxelastic.edge.assembling",
    "load": "fxelastic.edge.bundle",
    "Cascade": "fxelastic.spec.cascade",
    "CascadeEntry": "fxelastic.edge.cascades.entry",
    "CascadeResults": "fxelastic.edge.cascades.running",
    "run_cascade": "fxelastic.edge.cascades.running",
    "Executor": "fxelastic.edge.executor",
    "Energy": "fxelastic.edge.monitoring.energy_meter",
    "EnergyMeter": "fxelastic.edge.monitoring.energy_meter",
    "PowerModel": "fxelastic.edge.monitoring.power_model",
    "ResourceMonitor": "fxelastic.edge.monitoring.resource_monitor",
    "Resources": "fxelastic.edge.monitoring.resource_monitor",
    "LatencyTable": "fxelastic.spec.latency_table",
    "Limits": "fxelastic.spec.limits",
    "PoolEntry": "fxelastic.edge.pool",
    "SubnetPool": "fxelastic.edge.pool",
    "profile": "fxelastic.edge.profiling",
    "SearchOptions": "fxelastic.edge.searching.options",
    "SearchResult": "fxelastic.edge.searching.result",
    "search": "fxelastic.edge.searching.search",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
