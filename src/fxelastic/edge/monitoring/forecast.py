"""Forecast a series some steps ahead, by the model that was best lately or by the last value."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from fxelastic.edge.executor import Array

#: The largest order of the autoregression, and the number of values that models are fitted to:
#: two minutes of readings at two a second.
MAX_ORDER, WINDOW = 16, 240
# Values for each coefficient, at least.
_FOR_EACH = 6
# The values that a trend is fitted to, and by how much it weakens with each step ahead.
_TREND, _DAMPING = 7, 0.9
# The least correlation of a series with itself one period earlier.
_PERIODIC = 0.3

#: The name of the fallback.
LAST_VALUE = "last value"


class Contest:
    """Chooses between forecasts of a value and its last value, by how good they were lately.

    A forecast counts only if its mean error is clearly below that of the last value, and the more
    so the better it was: a model that happens to be right a few times must not be worse than the
    last value afterwards.
    """

    # A forecast alone counts at a share of the last value's error that is lower than the one at
    # which it begins to count by this number.
    _SURE = 0.1

    def __init__(self, n: int, memory: float = 0.98, least: int = 20, better: float = 0.85) -> None:
        """Compare forecasts of n steps ahead.

        Args:
            n: The number of steps.
            memory: By how much the weight of an error falls with each later one.
            least: How many forecasts are compared before one is used.
            better: The share of the last value's error at which a forecast begins to count.
        """
        self._n = n
        self._memory = memory
        self._least = least
        self._better = better
        self._made: deque[Mapping[str, float]] = deque(maxlen=n)
        self._count = 0
        self._errors: dict[str, float] = {}

    def add(self, value: float, forecasts: Mapping[str, float]) -> tuple[float, str]:
        """Compare earlier forecasts of a value with it, and choose the next forecast.

        Args:
            value: The value now.
            forecasts: The value n steps ahead, by the name of the model; always the same names.

        Returns:
            The forecast, and the name of the model that it comes from, or `LAST_VALUE`.
        """
        if len(self._made) == self._n:
            self._count += 1
            share = max(1 - self._memory, 1 / self._count)
            for name, forecast in self._made[0].items():
                before = self._errors.get(name, 0.0)
                self._errors[name] = before + share * (abs(forecast - value) - before)
        self._made.append({LAST_VALUE: value, **forecasts})
        trusted = self.trusted()
        if not trusted:
            return value, LAST_VALUE
        best = min(trusted, key=lambda name: self._errors[name])
        error = self._errors[best] / self._errors[LAST_VALUE]
        weight = min(1.0, (self._better - error) / self._SURE)
        return value + weight * (forecasts[best] - value), best

    def trusted(self) -> list[str]:
        """The models that were clearly better than the last value."""
        if self._count < self._least:
            return []
        last = self._errors[LAST_VALUE]
        return [name for name, error in self._errors.items() if error < self._better * last]


class Forecast:
    """Forecasts a series of values at equal distances.

    Three models are fitted to the latest values: an autoregression of the differences from the
    mean, a trend, and the values one period ago. For each number of steps, a `Contest` chooses
    between them and the last value.

    Source: Levinson (1946) and Durbin (1960), for the fit of the autoregression; AdaScale, section
    IV-A. The trend, the period and the contest are additions.
    """

    def __init__(
        self,
        steps: tuple[int, ...] = (1, 2, 5),
        bounds: tuple[float, float] = (-np.inf, np.inf),
    ) -> None:
        """Forecast so many steps ahead.

        Args:
            steps: Numbers of steps.
            bounds: The least and the largest value that a forecast may have.
        """
        self.steps = steps
        self._bounds = bounds
        self._values: deque[float] = deque(maxlen=WINDOW)
        self._contests = {n: Contest(n) for n in steps}
        self._found: dict[int, tuple[float, str]] = {}

    def add(self, value: float) -> None:
        """Add a value, and judge the forecasts that were made for it."""
        self._values.append(value)
        found = models(np.array(self._values), max(self.steps), self._bounds)
        for n, contest in self._contests.items():
            ahead = {name: float(values[n - 1]) for name, values in found.items()}
            self._found[n] = contest.add(value, ahead)

    def at(self, n: int) -> float | None:
        """The value so many steps ahead; None before the first value.

        Args:
            n: One of ``steps``.
        """
        return self._found[n][0] if n in self._found else None

    def source(self, n: int) -> str:
        """The model that the forecast comes from; `LAST_VALUE` if it is the last value."""
        return self._found[n][1] if n in self._found else LAST_VALUE


def models(values: Array, n: int, bounds: tuple[float, float]) -> dict[str, Array]:
    """The next n values of a series by each model, within bounds."""
    found = {
        "autoregression": extrapolated(values, autoregression(values), n),
        "trend": trend(values, n),
        "period": repeated(values, n),
    }
    return {name: np.clip(ahead, *bounds) for name, ahead in found.items()}


def autoregression(values: Array, order: int | None = None) -> Array:
    """The coefficients of an autoregressive model, the newest value's first.

    Args:
        values: The series.
        order: The order; None for the one with the least Akaike criterion, at most `MAX_ORDER`.

    Returns:
        The coefficients; none if the series is too short or constant.
    """
    n = len(values)
    most = min(MAX_ORDER, n // _FOR_EACH) if order is None else order
    centred = values - values.mean()
    if most < 1 or not float(centred @ centred) > 1e-18 * max(1.0, float(values @ values)):
        return np.zeros(0)
    covariance = np.array([centred[: n - k] @ centred[k:] for k in range(most + 1)]) / n
    found, best, least = np.zeros(0), np.zeros(0), np.inf
    error = covariance[0]
    for k in range(1, most + 1):
        # Levinson-Durbin: the reflection coefficient of the next order.
        reflection = (covariance[k] - found @ covariance[k - 1 : 0 : -1]) / error
        found = np.append(found - reflection * found[::-1], reflection)
        error *= max(1e-12, 1 - reflection**2)
        criterion = n * np.log(error) + 2 * k
        if criterion < least or order is not None:
            best, least = found, criterion
    return best


def extrapolated(values: Array, coefficients: Array, n: int) -> Array:
    """The next n values by an autoregressive model, within the range of the series."""
    mean, order = float(values.mean()), len(coefficients)
    if not order:
        return np.full(n, values[-1])
    recent = list((values[-order:] - mean)[::-1])
    found = []
    for _ in range(n):
        found.append(float(coefficients @ np.array(recent[:order])))
        recent.insert(0, found[-1])
    return np.clip(np.array(found) + mean, values.min(), values.max())


def trend(values: Array, n: int) -> Array:
    """The next n values by a line through the latest ones, whose slope weakens with each step."""
    recent = values[-_TREND:]
    if len(recent) < 4:
        return np.full(n, values[-1])
    times = np.arange(len(recent)) - (len(recent) - 1)
    centred = times - times.mean()
    slope = float(centred @ recent / (centred @ centred))
    level = float(recent.mean() - slope * times.mean())
    return level + slope * np.cumsum(_DAMPING ** np.arange(n))


def repeated(values: Array, n: int) -> Array:
    """The next n values as those one period ago; the last value if the series has no period.

    The period is where the autocorrelation has its highest peak after it was first negative, in
    the first half of the series.
    """
    last = np.full(n, values[-1])
    length = len(values)
    centred = values - values.mean()
    if length < 24 or not float(centred @ centred) > 1e-9:
        return last
    spectrum = np.fft.rfft(centred, 2 * length)
    products = np.fft.irfft(spectrum * np.conj(spectrum))[: length // 2 + 1]
    correlation = products / (length - np.arange(len(products))) / (products[0] / length)
    first = int(np.argmax(correlation < 0))
    if not first:
        return last
    period = first + int(np.argmax(correlation[first:]))
    if correlation[period] < _PERIODIC:
        return last
    return values[length - period + np.arange(n) % period]
