"""The runtime: serves the best subnet while the device changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from fxelastic.edge.serving.builder import Builder
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.controller import Controller
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.events import Event, EventLog, describe
from fxelastic.edge.serving.executable import Array, Loader, all_finite
from fxelastic.edge.serving.ladder import Step
from fxelastic.edge.serving.monitor import Monitor, Observation
from fxelastic.edge.serving.policy import Decision, Policy, RatioPolicy, Situation
from fxelastic.edge.serving.recovery import Recovery
from fxelastic.edge.serving.research import Research, Researcher
from fxelastic.edge.serving.residents import FIRST, Residents
from fxelastic.edge.serving.signature import Signature
from fxelastic.edge.serving.standby import Standby
from fxelastic.edge.serving.status import Status
from fxelastic.edge.serving.switcher import Switcher
from fxelastic.edge.serving.table_probe import TableProbe
from fxelastic.edge.serving.upkeep import Upkeep
from fxelastic.errors import ServingError, UsageError
from fxelastic.spec import Arch


class Reply(NamedTuple):
    """A request's result, and where it comes from.

    Attributes:
        value: What the model returns.
        outputs: The arrays in it, in the order of the bundle's outputs.
        arch: The subnet that computed it.
        latency_ms: The time it took, in ms.
    """

    value: Any
    outputs: Sequence[Array]
    arch: Arch
    latency_ms: float


@dataclass(frozen=True)
class ServingOptions:
    """How a runtime behaves.

    Attributes:
        policy: Decides which subnet serves.
        standby: Names the subnets to have in memory besides that.
        monitor: Makes the monitor of the latencies.
        memory_bytes: Memory that the subnets' weights may take; None for no limit.
        tick_s: Time between two decisions, in seconds.
        check_every_s: Time between two checks of the latency table, in seconds; None for none.
        retry_s: How long a subnet that can't be loaded is left alone, in seconds.
        clock: Tells the time in s; must not be set while the runtime lives, but may.
        listener: Called with each event, in the thread in which it happens.
        on_tick: Called after each round of the control loop with what the policy saw, the requests
            since the last round among it, and decided.
    """

    policy: Policy = field(default_factory=RatioPolicy)
    standby: Standby = field(default_factory=Standby)
    monitor: Callable[[], Monitor] = Monitor
    memory_bytes: int | None = None
    tick_s: float = 0.05
    check_every_s: float | None = 300.0
    retry_s: float = 30.0
    clock: Callable[[], float] = time.perf_counter
    listener: Callable[[Event], None] | None = None
    on_tick: Callable[[Situation, Decision], None] | None = None


class Runtime:
    """Answers requests with the best subnet that keeps the budget (§5.3).

    Call it like the model, from any number of threads. A request runs on one subnet from begin to
    end; it waits for no switch. Close it, or use it in a ``with`` statement.

    How it works: each request's latency goes to the *monitor*. Some twenty times a second the
    *controller* asks the *policy* for the subnet to serve; the *builder* loads it in the
    background, and the *switcher* puts it in place between two requests. A request whose subnet
    fails is answered by another one (*recovery*).
    """

    def __init__(
        self,
        loader: Loader,
        signature: Signature,
        entries: Iterable[Step],
        budget_ms: float,
        options: ServingOptions | None = None,
        researcher: Researcher | None = None,
        probe: TableProbe | None = None,
        courtesy: Courtesy | None = None,
    ) -> None:
        """Load the best subnet and begin to serve.

        Args:
            loader: Loads subnets.
            signature: How the model is called and what it returns.
            entries: The pool: subnets with latency and accuracy.
            budget_ms: What a request may take, in ms.
            options: How to behave.
            researcher: Searches for quicker subnets when none keeps the budget; None not to.
            probe: Measures whether the latency table still holds; None not to.
            courtesy: Stops the loader's other process while requests run; None for no such.

        Raises:
            UsageError: The pool is empty, or the budget is no latency.
            ServingError: No subnet of the pool can be loaded.
        """
        options = options or ServingOptions()
        self._loader = loader
        self._signature = signature
        self._clock = clock = options.clock
        self._started_s = clock()
        self._closing = threading.Lock()
        self._closed = self._freed = False
        self._events = EventLog(clock, listener=options.listener)
        self._catalogue = Catalogue(entries, options.retry_s)
        budget_ms = _checked_budget(budget_ms)
        if not len(self._catalogue.ladder):
            raise UsageError(
                "the pool is empty",
                expected="at least one subnet to serve",
                got="no entry",
                fix="search with fxelastic.edge.search, and pass its result.pool",
            )
        self._residents = Residents(loader, options.memory_bytes)
        self._monitor = options.monitor()
        self._switcher = Switcher(self._residents, self._events, clock)
        self._courtesy = courtesy or Courtesy()
        self._courtesy.busy = lambda: not self._residents.idle
        self._builder = Builder(
            *(self._residents, self._catalogue, self._events, clock, self._hurry), self._courtesy
        )
        self._controller = Controller(
            self._monitor,
            options.policy,
            options.standby,
            self._catalogue,
            self._residents,
            self._switcher,
            self._builder,
            self._events,
            clock,
            budget_ms,
            options.tick_s,
            self._unmet,
            options.on_tick,
            self._courtesy,
        )
        self._recovery = Recovery(
            self._residents, self._catalogue, self._switcher, self._events, clock, self._courtesy
        )
        self._research = (
            None
            if researcher is None
            else Research(researcher, self._catalogue, self._events, clock, self._hurry)
        )
        self._upkeep = (
            None
            if probe is None or options.check_every_s is None
            else Upkeep(
                probe,
                self._residents,
                self._catalogue,
                self._events,
                self._hurry,
                every_s=options.check_every_s,
                store=probe.save,
            )
        )
        try:
            self._begin(self._load_first(budget_ms), budget_ms, options.standby)
        except BaseException:
            self._residents.close()
            loader.close()
            raise
        self._builder.start()
        self._controller.start()
        if self._upkeep is not None:
            self._upkeep.start()
        self._hurry()

    def _load_first(self, budget_ms: float) -> Step:
        """Load the best subnet, else the next that can be had."""
        error: Exception | None = None
        while True:
            ladder = self._catalogue.ladder
            step = ladder.best_under(budget_ms) or ladder.quickest
            if step is None:
                raise ServingError(
                    "no subnet of the pool can be loaded",
                    got="nothing" if error is None else describe(error),
                    fix="check the bundle with `fxelastic inspect`, and memory_bytes",
                ) from error
            try:
                self._residents.load(step)
            except Exception as e:  # noqa: BLE001 - the next subnet may do; the last error is told
                error = e
                self._catalogue.bar_for_now(step.arch, self._clock())
                self._events.add("load_failed", describe(e), arch=str(step.arch))
            else:
                return step

    def _begin(self, step: Step, budget_ms: float, standby: Standby) -> None:
        """Have it serve, and the first on standby ready: the load may come with the requests."""
        self._residents.use(step.arch)
        self._events.add(
            "started",
            f"{len(self._catalogue.ladder)} subnets, budget {budget_ms:.3g} ms, "
            f"beginning with {step.latency_ms:.3g} ms estimated",
            arch=str(step.arch),
            latency_ms=step.latency_ms,
            budget_ms=budget_ms,
        )
        for other in standby.steps(self._catalogue.ladder, step, budget_ms, budget_ms)[:1]:
            self._builder.load_now(other)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Answer a request.

        Args:
            *args: The model's inputs as arrays, in its order.
            **kwargs: Inputs by name.

        Returns:
            What the model returns, with arrays for tensors.

        Raises:
            UsageError: The inputs are not the model's.
            ServingError: The runtime is closed, or no subnet can answer.
        """
        return self.infer(*args, **kwargs).value

    def infer(self, /, *args: Any, **kwargs: Any) -> Reply:
        """Answer a request, and say which subnet did.

        Args:
            args: The model's inputs, in order: arrays of the bundle's dtypes and shapes, of any
                batch size where the bundle's is dynamic.
            kwargs: Inputs by name.

        Returns:
            What the model returns, as arrays, with the subnet and the latency in ms.

        Raises:
            UsageError: The inputs are not the model's.
            ServingError: The runtime is closed, or no subnet can answer.
        """
        inputs = self._signature.bind(args, kwargs)
        residents, clock = self._residents, self._clock
        begin_s = clock()
        resident = residents.acquire()
        courtesy = self._courtesy
        # The estimate may be renewed while the request runs.
        step = resident.step
        waited_s = 0.0
        error: Exception | None = None
        try:
            if courtesy.waits:
                waited_s = courtesy.begin(
                    1e-3 * step.latency_ms * (self._controller.load.ratio or 1.0)
                )
            outputs = resident.executable.run(inputs)
        except Exception as e:  # noqa: BLE001 - recovery raises it again where nothing else helps
            error = e
        except BaseException:
            # What a round of the control loop lets go on must not wait for another request.
            self._controller.wake()
            raise
        finally:
            residents.release(resident)
            if courtesy.waits and residents.idle:
                courtesy.end()
        if error is None and (not self._recovery.checks_outputs or all_finite(outputs)):
            end_s = clock()
            latency_ms = 1e3 * (end_s - begin_s)
            first = resident.n_first < FIRST
            if first:
                resident.n_first += 1
            # What it was made to wait is no load.
            actual_ms = latency_ms - 1e3 * waited_s
            self._monitor.record(Observation(end_s, step, actual_ms, first))
            self._controller.wake()
            return Reply(self._signature.result(outputs), outputs, step.arch, latency_ms)
        try:
            if error is not None:
                outputs, step = self._recovery.after_error(inputs, step, error)
            else:
                outputs, step = self._recovery.after_non_finite(inputs, step, outputs)
        finally:
            if residents.idle:
                courtesy.rest()
            self._controller.wake()
        # Answered by another subnet: nothing to learn about the load.
        latency_ms = 1e3 * (clock() - begin_s)
        return Reply(self._signature.result(outputs), outputs, step.arch, latency_ms)

    @property
    def budget_ms(self) -> float:
        """What a request may take, in ms; may be set while serving."""
        return self._controller.budget_ms

    @budget_ms.setter
    def budget_ms(self, budget_ms: float) -> None:
        before, budget_ms = self._controller.budget_ms, _checked_budget(budget_ms)
        self._controller.budget_ms = budget_ms
        self._events.add(
            "budget_changed",
            f"{before:.3g} → {budget_ms:.3g} ms",
            before_ms=before,
            budget_ms=budget_ms,
        )
        self._hurry()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, oldest first; the latest ten thousand."""
        return self._events.snapshot()

    @property
    def entries(self) -> Sequence[Step]:
        """The pool as it is now, with what re-searching found."""
        return self._catalogue.entries

    def status(self) -> Status:
        """How things stand."""
        load, step, events = self._controller.load, self._residents.current, self._events.counts()
        return Status(
            state="closed" if self._closed else "serving",
            uptime_s=self._clock() - self._started_s,
            step=step,
            budget_ms=self._controller.budget_ms,
            budget_met=self._controller.verdict.met,
            ratio=load.ratio,
            n_requests=self._residents.n_acquired,
            n_failed=events.get("request_failed", 0),
            n_switches=self._switcher.n_switches,
            resident=len(self._residents.archs),
            resident_bytes=self._residents.resident_bytes,
            barred=len(self._catalogue.barred),
            searching=self._research is not None and self._research.running,
            events=events,
        )

    def close(self) -> None:
        """Let the running requests end, then free everything; later requests are refused.

        Where it was interrupted, by Ctrl-C for example, it goes on when it is called again.

        Raises:
            ServingError: A listener or a policy called it, in a thread that it waits for.
        """
        parts = (self._research, self._upkeep, self._controller, self._builder)
        if any(part and part.thread is threading.current_thread() for part in parts):
            raise ServingError(
                "the runtime can't be closed by its own threads",
                expected="a call in a thread of yours",
                got=f"one in {threading.current_thread().name}, as of a listener or a policy",
                fix="set a threading.Event there, and close where it is waited for",
            )
        with self._closing:
            if self._freed:
                return
            self._closed = True
            if self._research is not None:
                self._research.close()
            if self._upkeep is not None:
                self._upkeep.close()
            self._controller.close()
            last = self._residents.current
            # No round of the control loop will let it go on after the last request.
            with self._courtesy.hurry():
                self._builder.close()
                self._residents.close()
                self._loader.close()
            self._controller.finish(last)
            self._freed = True
        self._events.add("closed", f"after {self._residents.n_acquired:,} requests")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hurry(self) -> None:
        self._controller.hurry()

    def _unmet(self, limit_ms: float) -> None:
        if self._research is not None:
            self._research.begin(limit_ms)


def _checked_budget(budget_ms: Any) -> float:
    try:
        value = float(budget_ms)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(
            "budget_ms is no latency", expected="a number of ms above 0", got=repr(budget_ms)
        )
    return value
