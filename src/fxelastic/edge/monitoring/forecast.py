"""Forecast a series some steps ahead, by an autoregressive model or by its last value."""

from __future__ import annotations

from collections import deque

import numpy as np

from fxelastic.edge.executor import Array

#: The largest order of the model, and the number of values that it is fitted to.
MAX_ORDER, WINDOW = 16, 120
# Values for each coefficient, at least.
_FOR_EACH = 6
# The forecasts of the model and of the last value are compared over so many past values.
_COMPARED = 30
# The model is used if its error is at most this share of the last value's.
_BETTER = 0.95


class Forecast:
    """Forecasts a series of values at equal distances.

    The model is an autoregression of the differences from the mean, fitted to the last two minutes
    of readings at one a second. It is used only where its recent forecasts were better than the
    last value; otherwise the forecast is the last value.

    Source: Levinson (1946) and Durbin (1960), for the fit; AdaScale, section IV-A.
    """

    def __init__(self, steps: tuple[int, ...] = (1, 2, 5)) -> None:
        """Forecast so many steps ahead.

        Args:
            steps: Numbers of steps.
        """
        self.steps = steps
        self._values: deque[float] = deque(maxlen=WINDOW)
        self._made: dict[int, deque[tuple[float, float]]] = {
            n: deque(maxlen=_COMPARED + n) for n in steps
        }
        self._errors: dict[int, deque[tuple[float, float]]] = {
            n: deque(maxlen=_COMPARED) for n in steps
        }

    def add(self, value: float) -> None:
        """Add a value, and judge the forecasts that were made for it."""
        for n, made in self._made.items():
            if len(made) >= n:
                model, last = made[-n]
                self._errors[n].append((abs(model - value), abs(last - value)))
        self._values.append(value)
        coefficients = autoregression(np.array(self._values))
        ahead = extrapolated(np.array(self._values), coefficients, max(self.steps))
        for n, made in self._made.items():
            made.append((float(ahead[n - 1]), value))

    def at(self, n: int) -> float | None:
        """The value so many steps ahead; None before the first value.

        Args:
            n: One of ``steps``.
        """
        if not self._made[n]:
            return None
        model, last = self._made[n][-1]
        errors = np.array(self._errors[n])
        if len(errors) < _COMPARED:
            return last
        of_model, of_last = errors.mean(0)
        return model if of_model <= _BETTER * of_last else last


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
    """The next n values by a model, within the range of the series."""
    mean, order = float(values.mean()), len(coefficients)
    if not order:
        return np.full(n, values[-1])
    recent = list((values[-order:] - mean)[::-1])
    found = []
    for _ in range(n):
        found.append(float(coefficients @ np.array(recent[:order])))
        recent.insert(0, found[-1])
    return np.clip(np.array(found) + mean, values.min(), values.max())
