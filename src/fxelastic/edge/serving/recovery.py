"""Answer a request whose subnet failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fxelastic.edge.candidates import Candidate
from fxelastic.edge.executor import Array
from fxelastic.edge.run_limit import RunTooLongError
from fxelastic.edge.serving.cache import CachedSubnet, ClosedError, MemoryLimitError, SubnetCache
from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.errors import ServingError
from fxelastic.spec.cascade import Servable

# The maximum number of other subnets to try for a request; and the number of requests on which all
# subnets return non-finite values before these are considered normal for the model.
_ATTEMPTS = 4
_AGREED = 3


class Answer(NamedTuple):
    """A subnet's outputs.

    Attributes:
        outputs: The arrays, in the order of the bundle's outputs.
        candidate: The subnet that gave them.
    """

    outputs: Sequence[Array]
    candidate: Candidate


class Recovery:
    """Tries other subnets when the one in use raises an error or returns NaN or infinity.

    Only a comparison can find the cause: if another subnet answers the same input properly, the
    first one is barred and no longer used, permanently if its answer was wrong. If the others fail
    too, the input or the model is the cause, and no subnet is barred.

    The request waits for the other subnets, and for one to be loaded if no other is in memory. No
    other request waits.
    """

    def __init__(
        self,
        cache: SubnetCache,
        catalogue: Catalogue,
        events: EventLog,
        clock: Callable[[], float],
    ) -> None:
        """Work on these parts of a runtime."""
        self._cache = cache
        self._catalogue = catalogue
        self._events = events
        self._clock = clock
        self._blaming = threading.Lock()
        self._n_agreed = 0

    @property
    def checks_outputs(self) -> bool:
        """Whether outputs are expected to be finite, as the model's have been so far."""
        return self._n_agreed < _AGREED

    def after_error(
        self, inputs: Mapping[str, Array], failed: Candidate, error: Exception
    ) -> Answer:
        """Answer a request on which a subnet raised an error.

        Raises:
            ServingError: No subnet could answer.
        """
        self._events.add("run_failed", describe(error), arch=str(failed.arch))
        # Others may take as long, and the request's time is over.
        over = isinstance(error, RunTooLongError)
        answer = None if over else self._ask_others(inputs, failed, [])
        if answer is None:
            what = f"no subnet could answer the request: {describe(error)}"
            self._events.add("request_failed", what, arch=str(failed.arch))
            raise ServingError(
                what,
                got="an error from each subnet that was tried",
                fix="check runtime.events and the input",
            ) from error
        self._leave(failed, answer.candidate, "it raised an error", for_good=False)
        return answer

    def after_non_finite(
        self, inputs: Mapping[str, Array], failed: Candidate, outputs: Sequence[Array]
    ) -> Answer:
        """Answer a request for which a subnet returned NaN or infinity."""
        if not all_finite(tuple(inputs.values())):
            return Answer(outputs, failed)
        self._events.add("non_finite", "the outputs hold NaN or infinity", arch=str(failed.arch))
        agreeing: list[Candidate] = []
        answer = self._ask_others(inputs, failed, agreeing)
        if answer is not None:
            self._leave(failed, answer.candidate, "it gave NaN or infinity", for_good=True)
            return answer
        # Without another subnet to compare with, the cause remains unknown.
        if agreeing:
            self._n_agreed += 1
            more = "" if self.checks_outputs else "; outputs are no longer checked"
            what = f"{len(agreeing)} other subnets give NaN or infinity as well{more}"
            self._events.add("model_non_finite", what)
        return Answer(outputs, failed)

    def _ask_others(
        self, inputs: Mapping[str, Array], failed: Candidate, non_finite: list[Candidate]
    ) -> Answer | None:
        """A finite answer from another subnet, or None; collects subnets with non-finite ones."""
        tried: set[Servable] = {failed.arch}
        for _ in range(_ATTEMPTS):
            subnet = self._another(tried)
            if subnet is None:
                return None
            candidate = subnet.candidate
            tried.add(candidate.arch)
            try:
                outputs = subnet.loaded.run(inputs)
            except Exception as e:  # noqa: BLE001 - the next subnet may answer; an event is recorded
                self._events.add("run_failed", describe(e), arch=str(candidate.arch))
                continue
            finally:
                self._cache.release(subnet)
            if all_finite(outputs):
                return Answer(outputs, candidate)
            non_finite.append(candidate)
        return None

    def _another(self, tried: set[Servable]) -> CachedSubnet | None:
        """A subnet not tried yet: one in memory, otherwise the quickest that can be loaded."""
        subnet = self._cache.acquire_other(tried | self._catalogue.barred)
        if subnet is not None:
            return subnet
        for candidate in self._catalogue.table:
            if candidate.arch in tried:
                continue
            try:
                return self._cache.load_and_acquire(candidate)
            except ClosedError:
                raise
            except MemoryLimitError as e:
                self._events.add("memory_limit", describe(e), arch=str(candidate.arch))
            except Exception as e:  # noqa: BLE001 - the next one may load; an event is recorded
                self._catalogue.bar_for_now(candidate.arch, self._clock())
                self._events.add("load_failed", describe(e), arch=str(candidate.arch))
        return None

    def _leave(
        self, failed: Candidate, answered: Candidate, reason: str, *, for_good: bool
    ) -> None:
        """Bar a subnet, and switch to the one that answered if it was in use."""
        with self._blaming:
            if for_good:
                self._catalogue.bar(failed.arch)
            elif failed.arch not in self._catalogue.barred:
                self._catalogue.bar_for_now(failed.arch, self._clock())
            current = self._cache.current
            if current is not None and current.arch == failed.arch:
                self._cache.switch(answered, reason, "rolled_back")
            if self._cache.discard(failed.arch):
                self._events.add("unloaded", reason, arch=str(failed.arch))


def all_finite(outputs: Sequence[Array]) -> bool:
    """Whether no output contains NaN or infinity.

    The sum of an output shows this much faster than a check of each element; elements are checked
    only if the sum is not finite, since it may have overflowed.
    """
    for output in outputs:
        if output.dtype.kind not in "fc":
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduce(
                output, axis=None, dtype=np.float32 if output.dtype.itemsize == 2 else None
            )
        if not np.isfinite(total) and not np.isfinite(output).all():
            return False
    return True
