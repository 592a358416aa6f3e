"""A device whose load is a function of a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.monitoring.forecast import Forecast
from fxelastic.edge.monitoring.lookahead import Lookahead
from fxelastic.edge.monitoring.resource_monitor import Resources
from fxelastic.edge.serving.monitor import Monitor, Observation
from fxelastic.edge.serving.policy import Decision, PastSwitch, RatioPolicy, Situation, SwitchPolicy
from fxelastic.spec import Arch
from fxelastic.spec.pareto import ParetoTable

TICK_S = 0.05


def entry(ms: float, accuracy: float, name: str = "") -> Candidate:
    return Candidate(Arch((name or f"s{ms:g}",)), ms, accuracy)


def table_of(*latencies_ms: float) -> ParetoTable[Candidate]:
    """A table in which accuracy grows with latency."""
    return ParetoTable(entry(ms, 0.5 + ms / 1000) for ms in latencies_ms)


class FakeReader:
    """Reads a load index that is a function of the time."""

    def __init__(self, index: Callable[[float], float], clock: Callable[[], float]) -> None:
        self._index, self._clock = index, clock
        self.restart()

    def read(self) -> Resources:
        index = self._index(self._clock())
        self._forecast.add(index)
        return Resources(self._clock(), cpu=index, load_index=index)

    def forecast(self, steps: int) -> float | None:
        return self._forecast.at(steps)

    def restart(self) -> None:
        self._forecast = Forecast((2,), bounds=(0.0, 1.0))


@dataclass
class Simulation:
    """Sends requests one after another and lets a policy choose their subnet.

    A request takes its subnet's estimate times the load at its start.

    Attributes:
        request: For the next request on a subnet, how many times its estimate it takes on the idle
            device, and how many times the runtime expects.
    """

    table: ParetoTable[Candidate]
    budget_ms: float
    load: Callable[[float], float]
    policy: SwitchPolicy = field(default_factory=RatioPolicy)
    monitor: Monitor = field(default_factory=Monitor)
    now_s: float = 0.0
    request: Callable[[Candidate], tuple[float, float | None]] = lambda _: (1.0, 1.0)
    lookahead: Lookahead | None = None
    current: Candidate = field(init=False)
    switches: list[PastSwitch] = field(default_factory=list)
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    requests: list[tuple[float, float, float]] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        best = self.table.best(self.budget_ms) or self.table.frontier[0]
        self.current = best
        self._next_tick_s = TICK_S

    def run(self, until_s: float) -> Simulation:
        while self.now_s < until_s:
            takes, expected = self.request(self.current)
            actual_ms = self.current.ms * takes * self.load(self.now_s)
            self.now_s += actual_ms / 1000
            self.monitor.record(Observation(self.now_s, self.current, actual_ms, scale=expected))
            self.requests.append((self.now_s, self.current.ms, actual_ms))
            self.accuracies.append(self.current.accuracy)
            if self.now_s >= self._next_tick_s:
                self._next_tick_s = self.now_s + TICK_S
                self._tick()
        return self

    def _tick(self) -> None:
        load, ahead = self.monitor.read(self.now_s), self.lookahead
        if ahead is not None:
            ahead.update(self.now_s, load.recent)
        situation = Situation(
            self.now_s,
            self.budget_ms,
            load,
            self.current,
            self.table,
            tuple(self.switches),
            resources=None if ahead is None else ahead.resources,
            outlook=None if ahead is None else ahead.outlook,
        )
        decision = self.policy.decide(situation)
        self.decisions.append((self.now_s, decision))
        if decision.target.arch != self.current.arch:
            up = decision.target.ms > self.current.ms
            self.switches.append(PastSwitch(self.now_s, up))
            self.current = decision.target

    def switches_between(self, start_s: float, stop_s: float) -> Sequence[PastSwitch]:
        return [past for past in self.switches if start_s <= past.time_s < stop_s]


def steps(*levels: tuple[float, float]) -> Callable[[float], float]:
    """A load of ``(from second, factor)`` levels."""

    def load(now_s: float) -> float:
        return [factor for start_s, factor in levels if start_s <= now_s][-1]

    return load
