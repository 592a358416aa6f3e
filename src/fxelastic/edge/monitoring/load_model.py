"""A model of the latency under load: r as a function of the load index and the frequency."""

from __future__ import annotations

import numpy as np

from fxelastic.edge.executor import Array
from fxelastic.edge.monitoring.resource_monitor import Resources

# Latency rises slowly until the processor is nearly full, and then fast: the slope may change at
# these load indices.
_KNEES = (0.5, 0.8)


class LoadModel:
    """Predicts r = actual / estimated latency from the device's resources.

    It is linear in the load index, with other slopes above 50 % and 80 %, and in the time that a
    cycle takes, if the frequency is known. Recursive least squares fit it to every reading; older
    readings count less and less.

    Source: AdaScale, section IV-B; Plackett (1950), for recursive least squares.
    """

    def __init__(self, forgetting: float = 0.99) -> None:
        """Start with r = 1 at any load.

        Args:
            forgetting: By how much the weight of a reading falls with each later one.
        """
        self._forgetting = forgetting
        self._weights = np.zeros(3 + len(_KNEES))
        self._weights[0] = 1.0
        self._covariance = 10.0 * np.eye(len(self._weights))

    def add(self, resources: Resources, ratio: float) -> None:
        """Fit the model to one more reading.

        Args:
            resources: The reading.
            ratio: r at the same time.
        """
        x = _features(resources.load_index, resources)
        projected = self._covariance @ x
        gain = projected / (self._forgetting + x @ projected)
        self._weights += gain * (ratio - x @ self._weights)
        self._covariance = (self._covariance - np.outer(gain, projected)) / self._forgetting
        # Without changes of the load nothing is learnt, and forgetting alone would go on for ever.
        trace = float(np.trace(self._covariance))
        if trace > 1e4:
            self._covariance *= 1e4 / trace

    def predict(self, load_index: float, resources: Resources) -> float:
        """The ratio r at a load index.

        Args:
            load_index: The load index.
            resources: The latest reading, for the frequency.
        """
        return max(0.0, float(_features(load_index, resources) @ self._weights))


def _features(load_index: float, resources: Resources) -> Array:
    frequency, highest = resources.frequency_mhz, resources.max_frequency_mhz
    slower = highest / frequency - 1 if frequency and highest else 0.0
    above = [max(0.0, load_index - knee) for knee in _KNEES]
    return np.array([1.0, load_index, *above, slower])
