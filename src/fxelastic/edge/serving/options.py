"""The options of `edge.serve`."""

from __future__ import annotations

import difflib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fxelastic.edge.candidates import MODES
from fxelastic.edge.monitoring.lookahead import Lookahead
from fxelastic.edge.monitoring.recent_latencies import check_percentile
from fxelastic.edge.searching.scores import Score
from fxelastic.edge.serving.background_search import Searcher
from fxelastic.edge.serving.events import Event
from fxelastic.edge.serving.monitor import Monitor
from fxelastic.edge.serving.policy import Decision, RatioPolicy, Situation, SwitchPolicy
from fxelastic.edge.serving.preload import Preload
from fxelastic.errors import UsageError
from fxelastic.spec.costs_by_size import Sizes
from fxelastic.spec.limits import Bound
from fxelastic.spec.options import check_count

# Names of earlier versions.
_RENAMED = {"researcher": "searcher", "standby": "preload"}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Options of `edge.serve`.

    Attributes:
        mode: ``assembled`` runs each subnet as one model, which is quickest, and keeps a few of
            them loaded. ``paged`` runs branch by branch and keeps only the branches of the subnet
            in use; a switch loads the branches that differ. ``auto`` is assembled if there is
            enough memory for it.
        limits: Bounds on resources other than the latency, such as ``{"weight_bytes": "70%"}``,
            if their costs are known. Subnets that exceed them are not served.
        sizes: The sizes of inputs that the budget is for, such as ``{"seq": 128}``, if other sizes
            than the batch vary; the budget of other requests is larger or smaller in proportion to
            their estimated latency. By default, those of the search, which are the mean over its
            samples unless it had ``sizes`` or ``size_percentile``.
        latency_percentile: The share of requests that are to keep the budget, in percent: with 95,
            a subnet is too slow if more than 5 % of the latest requests took longer. By default
            that of ``monitor``, which is 50, the median.
        memory_bytes: Maximum memory for weights, in bytes. None means no limit: the preloaded
            subnets in ``assembled`` mode, the subnet in use in ``paged`` mode, and during a switch
            the next subnet too.
        threads: The number of threads; 0 means one for each core that the process may use, by its
            affinity and its control group.
        prepared: The folder that `edge.prepare` wrote to; by default ``BUNDLE.prepared`` next to
            the bundle. Missing files are prepared in the background.
        data: Samples, in any of the forms that `edge.search` accepts, to search for quicker
            subnets in the background while no subnet of the pool keeps the budget. Without
            targets, subnets are compared with the results of the original.
        score: The score of the pool's accuracies, as for `edge.search`. By default the score that
            the pool names; a function must be passed.
        held_out: The held-out share of the samples, as for `edge.search`.
        table_path: The file for the corrected table; None to not write it.
        pool_path: The file for a pool with the subnets found; None to not write it.
        searcher: Replaces `edge.search` on ``data``.
        force: Whether to search on ``data`` even if the table is marked unusable; see
            `LatencyTable.problem`.
        policy: Decides which subnet serves.
        preload: Chooses the subnets to keep in memory besides the one in use.
        monitor: Creates the monitor of latencies.
        lookahead: Creates what reads the device's resources twice a second and forecasts the load,
            for the policy and the status; None not to read them.
        tick_s: Time between two decisions, in seconds.
        check_every_s: Time between two checks of the latency table, in seconds; None for no
            checks.
        retry_s: Time until a subnet that can't be loaded is retried, in seconds.
        run_timeout_s: How long a model may run for one request (in ``paged`` mode, each branch),
            in seconds; then it is ended, and the request fails.
        clock: Returns the time in s. The system may set it back while the runtime serves.
        listener: Called with each event, in the thread in which it happens.
        on_tick: Called after each round of the control loop with the situation, which includes the
            requests since the last round, and the policy's decision.
    """

    mode: str = "auto"
    limits: Mapping[str, Bound] | None = None
    sizes: Sizes | None = None
    latency_percentile: float | None = None
    memory_bytes: int | None = None
    threads: int = 0
    prepared: str | os.PathLike[str] | None = None
    data: Any = None
    score: str | Score | None = None
    held_out: float = 0.2
    table_path: str | os.PathLike[str] | None = None
    pool_path: str | os.PathLike[str] | None = None
    searcher: Searcher | None = None
    force: bool = False
    policy: SwitchPolicy = field(default_factory=RatioPolicy)
    preload: Preload = field(default_factory=Preload)
    monitor: Callable[[], Monitor] = Monitor
    lookahead: Callable[[], Lookahead] | None = Lookahead
    tick_s: float = 0.05
    check_every_s: float | None = 300.0
    retry_s: float = 30.0
    run_timeout_s: float = 30.0
    clock: Callable[[], float] = time.perf_counter
    listener: Callable[[Event], None] | None = None
    on_tick: Callable[[Situation, Decision], None] | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UsageError: An option has the wrong type or value.
        """
        if self.mode not in MODES:
            raise UsageError(
                f"unknown mode {self.mode!r}", expected=", ".join(MODES), got=repr(self.mode)
            )
        _check("memory_bytes", self.memory_bytes, optional=True)
        check_count("threads", self.threads, 0)
        for name in ("tick_s", "retry_s", "run_timeout_s"):
            _check(name, getattr(self, name))
        _check("check_every_s", self.check_every_s, optional=True)
        check_percentile(self.latency_percentile)
        for name in ("monitor", "lookahead", "clock", "listener", "on_tick"):
            value = getattr(self, name)
            required = value is None and name in ("monitor", "clock")
            if required or (value is not None and not callable(value)):
                expected = "a function"
                if name in ("monitor", "lookahead"):
                    expected = "a class, or a function that returns an instance, not an instance"
                raise UsageError(f"{name} must be callable", expected=expected, got=repr(value))
        if not callable(getattr(self.policy, "decide", None)):
            raise UsageError(
                "policy must be a SwitchPolicy, with a method decide",
                expected="for example ForecastPolicy()",
                got=repr(self.policy),
            )
        if not hasattr(self.preload, "candidates"):
            raise UsageError(
                "preload must be a Preload",
                expected="for example Preload(limit=0), which keeps no other subnet in memory",
                got=repr(self.preload),
            )
        if self.sizes is not None and not isinstance(self.sizes, Mapping):
            raise UsageError(
                "sizes must be a mapping", expected="for example {'seq': 128}", got=repr(self.sizes)
            )
        if isinstance(self.data, (str, os.PathLike)) and not os.path.isfile(self.data):
            # Check now: the file is read only later, while no subnet keeps the budget.
            raise UsageError(
                f"there is no file {os.fspath(self.data)}", expected="an .npz file of samples"
            )

    @classmethod
    def of(cls, options: Serving | None, changes: Mapping[str, Any]) -> Serving:
        """A copy of options with some replaced by keyword arguments.

        Args:
            options: The options; None for the defaults.
            changes: The new values by name.

        Raises:
            UsageError: An option is unknown, or has the wrong type or value.
        """
        known = [option.name for option in fields(cls)]
        changes = {_RENAMED.get(name, name): value for name, value in changes.items()}
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known)
                raise UsageError(
                    f"unknown option {name!r}",
                    expected=", ".join(known),
                    got=repr(name),
                    fix=f"did you mean {' or '.join(close)}?" if close else None,
                )
        values = {name: getattr(options, name) for name in known} if options is not None else {}
        return cls(**{**values, **changes})


def _check(name: str, value: object, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:  # type: ignore[operator]
        raise UsageError(
            f"{name} must be above 0, got {value!r}",
            expected="a number",
            got=repr(value),
        )
