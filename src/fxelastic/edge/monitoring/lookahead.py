"""What the load and the latency will be in a moment."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fxelastic.edge.monitoring.forecast import LAST_VALUE, WINDOW, Contest, models
from fxelastic.edge.monitoring.load_model import LoadModel
from fxelastic.edge.monitoring.resource_monitor import ResourceMonitor, Resources

# A step down ahead is cheaper than a broken budget, so models are believed soon: after 4 s. After
# 2 s, a trend was believed while the first rise went on, and expected more of it.
_MEMORY, _LEAST, _BETTER = 0.9, 8, 0.9
# After a pause of so many readings, the series begin anew.
_PAUSE = 4


@dataclass(frozen=True)
class Outlook:
    """The forecast at one moment.

    Attributes:
        horizon_s: How far ahead it looks, in seconds.
        load_index: The load index expected then; None if it is not known.
        ratio: r = actual / estimated latency expected then; None before there were enough requests.
        source: What the expected r comes from: ``load``, the model of the latency under load;
            ``autoregression``, ``trend`` or ``period`` of the course of r itself; ``last value``.
        high: The highest r until then that a model expects or lately expected, of the models that
            were better than the last r for some time. A model may be right about a rise and wrong
            about its moment. None if there is no such model.
    """

    horizon_s: float
    load_index: float | None = None
    ratio: float | None = None
    source: str = LAST_VALUE
    high: float | None = None


class Reader(Protocol):
    """Reads the device's resources, like `ResourceMonitor`."""

    def read(self) -> Resources:
        """Read everything once."""

    def forecast(self, steps: int) -> float | None:
        """The load index so many readings ahead."""

    def restart(self) -> None:
        """Begin the series of readings anew, after a pause."""


class Lookahead:
    """Reads the resources at equal distances, and forecasts the load and r.

    The forecast of the load index becomes an expected r by a `LoadModel`. The course of r itself is
    forecast, too. A `Contest` chooses between both and the last r.

    Attributes:
        resources: The latest reading; None before the first.
        outlook: The latest forecast; None before the first reading.
    """

    def __init__(
        self, reader: Reader | None = None, every_s: float = 0.5, horizon_s: float = 1.0
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            reader: Reads the resources; None for a `ResourceMonitor`.
            every_s: The time between two readings, in seconds.
            horizon_s: How far to look ahead, in seconds.
        """
        self._every_s = every_s
        self._steps = max(1, round(horizon_s / every_s))
        self._horizon_s = self._steps * every_s
        self._reader = ResourceMonitor(steps=(self._steps,)) if reader is None else reader
        self._model = LoadModel()
        self._read_s: float | None = None
        self.resources: Resources | None = None
        self.outlook: Outlook | None = None
        self._restart()

    def update(self, now_s: float, ratio: float | None) -> Outlook | None:
        """Read and forecast, if it is time for it.

        Args:
            now_s: The time, on the runtime's clock.
            ratio: r of the newest requests; None if there were too few.

        Returns:
            The latest forecast.
        """
        since_s = None if self._read_s is None else now_s - self._read_s
        if since_s is not None and 0 <= since_s < self._every_s:
            return self.outlook
        if since_s is not None and not 0 <= since_s <= _PAUSE * self._every_s:
            self._reader.restart()
            self._restart()
        # Late rounds don't shift the readings after them.
        late = since_s is not None and self._every_s <= since_s < 2 * self._every_s
        self._read_s = (self._read_s or 0.0) + self._every_s if late else now_s
        found = self.resources = self._reader.read()
        load = self._reader.forecast(self._steps)
        expected, source = self._expected(found, load, ratio)
        self.outlook = Outlook(self._horizon_s, load, expected, source, self._high())
        return self.outlook

    def _expected(
        self, found: Resources, load: float | None, ratio: float | None
    ) -> tuple[float | None, str]:
        if ratio is None:
            return None, LAST_VALUE
        self._ratios.append(ratio)
        course = models(np.array(self._ratios), self._steps, (0.0, np.inf))
        ahead = {name: float(values[-1]) for name, values in course.items()}
        ahead["load"] = ratio
        if load is not None:
            self._model.add(found, ratio)
            ahead["load"] = self._model.predict(load, found)
        chosen = self._contest.add(ratio, ahead)
        trusted = [ahead[name] for name in self._contest.trusted()]
        self._highs.append(max(trusted, default=None))
        return chosen

    def _high(self) -> float | None:
        return max((high for high in self._highs if high is not None), default=None)

    def _restart(self) -> None:
        self._highs: deque[float | None] = deque(maxlen=self._steps)
        self._ratios: deque[float] = deque(maxlen=WINDOW)
        self._contest = Contest(self._steps, _MEMORY, _LEAST, _BETTER)
