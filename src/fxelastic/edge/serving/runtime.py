"""The runtime: serves the best subnet while the device changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from fxelastic.edge.arguments import check_loaded
from fxelastic.edge.candidates import Candidate
from fxelastic.edge.cascades.exit_counts import ExitCounts
from fxelastic.edge.cascades.running import CascadeResults
from fxelastic.edge.executor import Array
from fxelastic.edge.monitoring.table_probe import TableProbe
from fxelastic.edge.serving.background_search import BackgroundSearch, Searcher
from fxelastic.edge.serving.cache import FIRST, SubnetCache
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.controller import Controller
from fxelastic.edge.serving.drift import DriftDetector
from fxelastic.edge.serving.events import Event, EventLog, describe
from fxelastic.edge.serving.loaders import Loader
from fxelastic.edge.serving.monitor import Observation
from fxelastic.edge.serving.options import Serving
from fxelastic.edge.serving.preload import Preloader
from fxelastic.edge.serving.recovery import Recovery, all_finite
from fxelastic.edge.serving.status import Status
from fxelastic.edge.signature import BundleSignature
from fxelastic.edge.size_estimates import SizeEstimates
from fxelastic.errors import ServingError, UsageError
from fxelastic.spec.cascade import Cascade, Servable
from fxelastic.spec.limits import Bound, Limits
from fxelastic.spec.resources import LATENCY


class Reply(NamedTuple):
    """A request's result, and the subnet or cascade that computed it.

    Attributes:
        value: What the model returns.
        outputs: The arrays in it, in the order of the bundle's outputs.
        arch: The subnet, or the cascade, that computed it.
        latency_ms: The time it took, in ms.
        estimated_ms: The subnet's estimated latency on the idle device, at the request's sizes, in
            ms; None if unknown. In a cascade, the estimate for the exits at which samples left.
        left_at: For a cascade, the number of the subnet that gave each sample's result, ``(N,)``;
            otherwise None.
    """

    value: Any
    outputs: Sequence[Array]
    arch: Servable
    latency_ms: float
    estimated_ms: float | None = None
    left_at: Array | None = None


def _ranked(entries: Iterable[Any]) -> list[Candidate]:
    return [Candidate.of(entry) for entry in entries]


class Runtime:
    """Answers requests with the best subnet that keeps the budget (§5.3).

    Call it like the model, from any number of threads. A request runs on one subnet from start to
    end; it waits for no switch. Close it, or use it in a ``with`` statement.

    Each request's latency goes to the *monitor*. Some twenty times a second the *controller* asks
    the *policy* for the subnet to serve; the *preloader* loads it in the background, and the
    *cache* makes it the one in use between two requests. *Recovery* answers a request whose subnet
    fails with another one.
    """

    def __init__(
        self,
        loader: Loader,
        signature: BundleSignature,
        candidates: Iterable[Candidate],
        budget_ms: float,
        options: Serving | None = None,
        searcher: Searcher | None = None,
        probe: TableProbe | None = None,
        limits: Limits | None = None,
        estimates: SizeEstimates | None = None,
        serves: Callable[[Servable], bool] = lambda _: True,
        absolute: Callable[[Mapping[str, Bound] | None], Limits | None] = lambda _: None,
        ranked: Callable[[Iterable[Any]], Iterable[Candidate]] = _ranked,
    ) -> None:
        """Load the best subnet and begin to serve.

        Args:
            loader: Loads subnets.
            signature: Binds calls to inputs, and outputs to results.
            candidates: The pool: subnets with their estimates.
            budget_ms: What a request may take, in ms.
            options: Other options.
            searcher: Searches for quicker subnets when none keeps the budget; None not to search.
            probe: Checks the latency table; None not to check it.
            limits: Absolute limits on other resources than the latency.
            estimates: Estimates requests at their own sizes; None if only the batch size varies.
            serves: Whether a subnet may be served: one with the caches that requests hold.
            absolute: Converts limits that are set while serving to absolute ones.
            ranked: Checks entries that are added while serving, and gives them their costs.

        Raises:
            UsageError: No subnet keeps the limits, or the budget is not above 0.
            ServingError: No subnet of the pool can be loaded.
        """
        options = options or Serving()
        self._loader = loader
        self._signature = signature
        self._estimates = estimates
        self._absolute = absolute
        self._ranked = ranked
        self._clock = clock = options.clock
        self._started_s = clock()
        self._closing = threading.Lock()
        self._pid = os.getpid()
        self._closed = self._freed = False
        self._events = events = EventLog(clock, listener=options.listener)
        budget_ms = _checked_budget(budget_ms)
        self._catalogue = catalogue = Catalogue(candidates, options.retry_s, limits, serves)
        if not len(catalogue.table):
            empty = not catalogue.candidates
            raise UsageError(
                "the pool is empty" if empty else "no subnet of the pool keeps the limits",
                expected="at least one subnet to serve",
                got="no entry" if empty else str(limits),
                fix="search with fxelastic.edge.search, and pass its result.pool",
            )
        self._cache = cache = SubnetCache(loader, events, clock, options.memory_bytes)
        self._monitor = options.monitor()
        if options.latency_percentile is not None:
            self._monitor.percentile = options.latency_percentile
        self._preloader = Preloader(cache, catalogue, events, clock, self._hurry)
        self._controller = Controller(
            *(self._monitor, options.policy, options.preload, catalogue, cache, self._preloader),
            *(events, clock, budget_ms, options.tick_s, self._unmet, options.on_tick),
            missing=None if estimates is None else estimates.missing,
            lookahead=None if options.lookahead is None else options.lookahead(),
        )
        self._recovery = Recovery(cache, catalogue, events, clock)
        self._exits = ExitCounts()
        self._search: BackgroundSearch | None = None
        if searcher is not None:
            self._search = BackgroundSearch(searcher, catalogue, events, clock, self._hurry)
        self._drift: DriftDetector | None = None
        if probe is not None and options.check_every_s is not None:
            self._drift = DriftDetector(
                *(probe, cache, catalogue, events, self._hurry),
                every_s=options.check_every_s,
                store=probe.save,
            )
        try:
            self._begin(self._load_first(budget_ms), budget_ms, options)
        except BaseException:
            cache.close()
            loader.close()
            raise
        self._preloader.start()
        self._controller.start()
        if self._drift is not None:
            self._drift.start()
        self._hurry()

    def _load_first(self, budget_ms: float) -> Candidate:
        """Load the best subnet, or the next one that can be loaded."""
        error: Exception | None = None
        while True:
            table = self._catalogue.table
            candidate = table.best(budget_ms) or table.quickest
            if candidate is None:
                raise ServingError(
                    "no subnet of the pool can be loaded",
                    got="nothing" if error is None else describe(error),
                    fix="check the bundle with `fxelastic inspect`, and memory_bytes",
                ) from error
            try:
                self._cache.load(candidate, urgent=True)
            except Exception as e:  # noqa: BLE001 - the next one may load; the last error is raised
                error = e
                self._catalogue.bar_for_now(candidate.arch, self._clock())
                self._events.add("load_failed", describe(e), arch=str(candidate.arch))
            else:
                return candidate

    def _begin(self, candidate: Candidate, budget_ms: float, options: Serving) -> None:
        """Serve with a subnet, and load one more: a load may come with the first requests."""
        self._cache.use(candidate)
        table = self._catalogue.table
        self._events.add(
            "started",
            f"{len(table)} subnets, budget {budget_ms:.3g} ms, "
            f"beginning with {candidate.ms:.3g} ms estimated",
            arch=str(candidate.arch),
            budget_ms=budget_ms,
            **{LATENCY: candidate.ms},
        )
        for other in options.preload.candidates(table, candidate, budget_ms, budget_ms)[:1]:
            self._preloader.load_now(other)

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
        if os.getpid() != self._pid:
            raise ServingError(
                "the runtime belongs to the process that this one was forked from",
                expected="a runtime that this process made",
                got=f"a runtime of process {self._pid}",
                fix="start processes by spawn: multiprocessing.get_context('spawn')",
            )
        inputs = self._signature.bind(args, kwargs)
        cache, clock = self._cache, self._clock
        begin_s = clock()
        subnet = cache.acquire()
        # The estimate may be corrected while the request runs.
        candidate = subnet.candidate
        error: Exception | None = None
        try:
            outputs = subnet.loaded.run(inputs)
        except Exception as e:  # noqa: BLE001 - recovery raises it again if no subnet can answer
            error = e
        finally:
            cache.release(subnet)
        if error is None and (not self._recovery.checks_outputs or all_finite(outputs)):
            end_s = clock()
            latency_ms = 1e3 * (end_s - begin_s)
            first = subnet.n_first < FIRST
            if first:
                subnet.n_first += 1
            scale: float | None = 1.0
            sizes = None
            if self._estimates is not None:
                sizes = self._signature.sizes(inputs)
                scale = self._estimates.scale(candidate.arch, sizes)
            left = 1.0
            if isinstance(outputs, CascadeResults):
                left = candidate.scale_of(outputs.left_at)
            seen = Observation(end_s, candidate, latency_ms, first, scale, sizes, left)
            self._monitor.record(seen)
            self._controller.wake()
            return self._reply(outputs, candidate, latency_ms, seen.estimated_ms)
        if error is not None:
            outputs, candidate = self._recovery.after_error(inputs, candidate, error)
        else:
            outputs, candidate = self._recovery.after_non_finite(inputs, candidate, outputs)
        self._controller.wake()
        # Another subnet answered, so this latency does not show the load.
        return self._reply(outputs, candidate, 1e3 * (clock() - begin_s))

    def _reply(
        self,
        outputs: Sequence[Array],
        candidate: Candidate,
        latency_ms: float,
        estimated_ms: float | None = None,
    ) -> Reply:
        left_at = None
        if isinstance(outputs, CascadeResults) and isinstance(candidate.arch, Cascade):
            left_at = outputs.left_at
            self._exits.add(candidate.arch, left_at)
        value = self._signature.result(outputs)
        return Reply(value, outputs, candidate.arch, latency_ms, estimated_ms, left_at)

    @property
    def budget_ms(self) -> float:
        """What a request of the budget's sizes may take, in ms; may be set while serving."""
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
    def limits(self) -> Limits | None:
        """Absolute limits on other resources than the latency; may be set while serving.

        They may be set as for `edge.serve`: to bounds by resource, where shares are relative to the
        original's costs. A bound on the latency sets the budget. None removes all limits.

        Raises:
            UsageError: A bound is out of range, or no subnet keeps them; they stay as they were.
        """
        return self._catalogue.limits

    @limits.setter
    def limits(self, limits: Mapping[str, Bound] | None) -> None:
        bounds = dict(Limits({} if limits is None else limits))
        budget_ms = bounds.pop(LATENCY, None)
        checked = None if budget_ms is None else _checked_budget(budget_ms)
        before = self._catalogue.limits
        self._catalogue.limit(self._absolute(bounds))
        after = self._catalogue.limits
        self._events.add("limits_changed", f"{before or 'no limits'} → {after or 'no limits'}")
        if checked is not None:
            self.budget_ms = checked
        self._hurry()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, oldest first; the latest ten thousand."""
        return self._events.snapshot()

    @property
    def entries(self) -> Sequence[Candidate]:
        """The pool as it is now, with the subnets that searches found."""
        return self._catalogue.candidates

    def add(self, entries: Iterable[Any]) -> None:
        """Serve further subnets from now on; they replace those with the same arch.

        Args:
            entries: A pool of the same bundle, or some of its entries; see `serve` on whose
                latencies count.

        Raises:
            UsageError: The pool belongs to another bundle, or an entry can't be ranked or is not in
                the search space; nothing is added then.
        """
        check_loaded(pool=entries)
        found = self._ranked(entries)
        fresh = {candidate.arch: candidate for candidate in found}

        def changed(known: Sequence[Candidate]) -> Iterable[Candidate]:
            return (*(c for c in known if c.arch not in fresh), *fresh.values())

        self._catalogue.update(changed)
        self._events.add("subnets_added", f"{len(fresh)} subnets", n_added=len(fresh))
        self._hurry()

    def status(self) -> Status:
        """The state of the runtime now."""
        load, step, events = self._controller.load, self._cache.current, self._events.counts()
        latencies, ahead = self._controller.latencies, self._controller.lookahead
        return Status(
            state="closed" if self._closed else "serving",
            uptime_s=self._clock() - self._started_s,
            step=step,
            budget_ms=self._controller.budget_ms,
            budget_met=self._controller.state.met,
            ratio=load.median,
            n_requests=self._cache.n_acquired,
            n_failed=events.get("request_failed", 0),
            n_switches=self._cache.n_switches,
            n_unmeasured=self._controller.n_unmeasured,
            resident=len(self._cache.archs),
            resident_bytes=self._cache.resident_bytes,
            barred=len(self._catalogue.barred),
            searching=self._search is not None and self._search.running,
            events=events,
            latency=latencies.summary,
            n_over=latencies.n_over,
            exits=self._exits.snapshot(),
            resources=None if ahead is None else ahead.resources,
            outlook=None if ahead is None else ahead.outlook,
        )

    def close(self) -> None:
        """Let the running requests end, then free everything; later requests raise an error.

        After an interruption, by Ctrl-C for example, another call continues from there.

        Raises:
            ServingError: A listener or a policy called it, in a thread that it waits for.
        """
        if os.getpid() != self._pid:
            return  # a forked child has neither the threads nor the locks in a known state
        parts = (self._search, self._drift, self._controller, self._preloader)
        if any(part and part.thread is threading.current_thread() for part in parts):
            raise ServingError(
                "the runtime can't be closed by its own threads",
                expected="a call in a thread of yours",
                got=f"a call in {threading.current_thread().name}, by a listener or a policy",
                fix="set a threading.Event there, and close in the thread that waits for it",
            )
        with self._closing:
            if self._freed:
                return
            self._closed = True
            if self._search is not None:
                self._search.close()
            if self._drift is not None:
                self._drift.close()
            self._controller.close()
            last = self._cache.current
            # A load may wait for the background process, which ends here.
            self._loader.close()
            self._preloader.close()
            self._cache.close()
            self._controller.finish(last)
            self._freed = True
        self._events.add("closed", f"after {self._cache.n_acquired:,} requests")

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
        if self._search is not None:
            self._search.begin(limit_ms)


def _checked_budget(budget_ms: Any) -> float:
    try:
        value = float(budget_ms)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(
            f"budget_ms must be above 0, got {budget_ms!r}",
            expected="a number of ms",
            got=repr(budget_ms),
        )
    return value
