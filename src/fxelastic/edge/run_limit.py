"""End runs of sessions that take too long: an ONNX file may hold a loop without an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime as ort

from fxelastic.errors import ServingError

#: How long a run may take, in seconds, where nobody says otherwise.
RUN_S = 60.0

# How often the times of the running runs are read, and how long the thread waits for another run.
_POLL_S, _LINGER_S = 0.1, 10.0


class RunTooLongError(ServingError):
    """A run was ended, since it took longer than it may."""


class RunLimit:
    """Ends runs after a time. Thread-safe; a thread watches while there are runs.

    onnxruntime reads the request to end between two operators, those within loops included.

    Attributes:
        seconds: How long a run may take.
    """

    def __init__(self, seconds: float) -> None:
        """Create it; the thread starts with the first run."""
        self.seconds = seconds
        self._lock = threading.Lock()
        self._active: dict[int, tuple[float, ort.RunOptions]] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, options: ort.RunOptions) -> Iterator[None]:
        """Watch a run with these options.

        Raises:
            RunTooLongError: It was ended.
        """
        key = id(options)
        with self._lock:
            self._active[key] = (time.monotonic() + self.seconds, options)
            # A forked child has none of its parent's threads.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._watch, name="fxelastic-run-limit", daemon=True
                )
                self._thread.start()
        try:
            yield
        except Exception as e:
            if options.terminate:
                raise RunTooLongError(
                    f"a run took more than {self.seconds:g} s, and was ended",
                    expected="a model whose loops end",
                    got=str(e)[:200],
                    fix="check where the bundle comes from; for slow models, use smaller batches",
                ) from e
            raise
        finally:
            with self._lock:
                del self._active[key]

    def _watch(self) -> None:
        last_s = time.monotonic()
        while True:
            time.sleep(min(_POLL_S, self.seconds / 4))
            now_s = time.monotonic()
            with self._lock:
                for end_s, options in self._active.values():
                    last_s = now_s
                    if now_s >= end_s:
                        options.terminate = True
                if now_s - last_s > _LINGER_S:
                    self._thread = None
                    return


class BoundedSession(ort.InferenceSession):  # type: ignore[misc]
    """A session whose runs end after a time.

    Attributes:
        limit: Ends them; set by its maker.
    """

    limit: RunLimit

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Run it; see onnxruntime.

        Raises:
            RunTooLongError: It was ended.
        """
        options = run_options or ort.RunOptions()
        with self.limit.watching(options):
            return super().run(output_names, input_feed, options)

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None
    ) -> Any:
        """Run it on values of onnxruntime; see there.

        Raises:
            RunTooLongError: It was ended.
        """
        options = run_options or ort.RunOptions()
        with self.limit.watching(options):
            return super().run_with_ort_values(output_names, input_dict_ort_values, options)
