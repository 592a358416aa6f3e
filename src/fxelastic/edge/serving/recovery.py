"""Answering a request whose subnet failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fxelastic.edge.serving.catalogue import Catalogue
from fxelastic.edge.serving.courtesy import Courtesy
from fxelastic.edge.serving.events import EventLog, describe
from fxelastic.edge.serving.executable import Array, all_finite
from fxelastic.edge.serving.ladder import Step
from fxelastic.edge.serving.residents import ClosedError, MemoryLimitError, Resident, Residents
from fxelastic.edge.serving.switcher import Switcher
from fxelastic.errors import ServingError
from fxelastic.spec import Arch

# How many other subnets a request is given to, and how many times all of them must agree that a
# model gives no finite values before that is taken for its nature.
_ATTEMPTS = 4
_AGREED = 3


class Answer(NamedTuple):
    """A subnet's outputs.

    Attributes:
        outputs: The arrays, in the order of the bundle's outputs.
        step: The subnet that gave them.
    """

    outputs: Sequence[Array]
    step: Step


class Recovery:
    """Gives a request to other subnets when the one in use raises or gives NaN or infinity.

    Only a comparison tells whose fault it was: where another subnet answers the same input
    properly, the first one is barred and left, for good if it gave a wrong answer. Where the
    others fail too, the input or the model is the cause, and no subnet is blamed.

    The request waits for the others, and for one to be loaded where none is in memory: it is the
    one case in which a request does.
    """

    def __init__(
        self,
        residents: Residents,
        catalogue: Catalogue,
        switcher: Switcher,
        events: EventLog,
        clock: Callable[[], float],
        courtesy: Courtesy,
    ) -> None:
        """Work on these parts of a runtime."""
        self._residents = residents
        self._catalogue = catalogue
        self._switcher = switcher
        self._events = events
        self._clock = clock
        self._courtesy = courtesy
        self._blaming = threading.Lock()
        self._n_agreed = 0

    @property
    def checks_outputs(self) -> bool:
        """Whether outputs should be finite: so far the model's have been."""
        return self._n_agreed < _AGREED

    def after_error(self, inputs: Mapping[str, Array], failed: Step, error: Exception) -> Answer:
        """Answer a request that a subnet raised on.

        Raises:
            ServingError: No subnet could answer.
        """
        self._events.add("run_failed", describe(error), arch=str(failed.arch))
        answer = self._ask_others(inputs, failed, [])
        if answer is None:
            what = f"no subnet could answer the request: {describe(error)}"
            self._events.add("request_failed", what, arch=str(failed.arch))
            raise ServingError(
                what,
                got="an error of each subnet that was tried",
                fix="look at runtime.events, and at the input",
            ) from error
        self._leave(failed, answer.step, "it raised", for_good=False)
        return answer

    def after_non_finite(
        self, inputs: Mapping[str, Array], failed: Step, outputs: Sequence[Array]
    ) -> Answer:
        """Answer a request to which a subnet gave NaN or infinity."""
        if not all_finite(tuple(inputs.values())):
            return Answer(outputs, failed)
        self._events.add("non_finite", "the outputs hold NaN or infinity", arch=str(failed.arch))
        agreeing: list[Step] = []
        answer = self._ask_others(inputs, failed, agreeing)
        if answer is not None:
            self._leave(failed, answer.step, "it gave NaN or infinity", for_good=True)
            return answer
        # Without another subnet to compare with, nothing was learned.
        if agreeing:
            self._n_agreed += 1
            more = "" if self.checks_outputs else "; outputs are no longer checked"
            what = f"{len(agreeing)} other subnets give NaN or infinity as well{more}"
            self._events.add("model_non_finite", what)
        return Answer(outputs, failed)

    def _ask_others(
        self, inputs: Mapping[str, Array], failed: Step, non_finite: list[Step]
    ) -> Answer | None:
        """A proper answer of another subnet, or None; gathers those that are not finite."""
        tried: set[Arch] = {failed.arch}
        for _ in range(_ATTEMPTS):
            resident = self._another(tried)
            if resident is None:
                return None
            step = resident.step
            tried.add(step.arch)
            try:
                outputs = resident.executable.run(inputs)
            except Exception as e:  # noqa: BLE001 - the next subnet may answer; events tell
                self._events.add("run_failed", describe(e), arch=str(step.arch))
                continue
            finally:
                self._residents.release(resident)
            if all_finite(outputs):
                return Answer(outputs, step)
            non_finite.append(step)
        return None

    def _another(self, tried: set[Arch]) -> Resident | None:
        """A subnet that was not tried: one in memory, else the quickest that can be loaded."""
        resident = self._residents.acquire_other(tried | self._catalogue.barred)
        if resident is not None:
            return resident
        for step in self._catalogue.ladder.steps:
            if step.arch in tried:
                continue
            try:
                with self._courtesy.hurry():
                    return self._residents.load_and_acquire(step)
            except ClosedError:
                raise
            except MemoryLimitError as e:
                self._events.add("memory_limit", describe(e), arch=str(step.arch))
            except Exception as e:  # noqa: BLE001 - the next one may be loaded; events tell
                self._catalogue.bar_for_now(step.arch, self._clock())
                self._events.add("load_failed", describe(e), arch=str(step.arch))
        return None

    def _leave(self, failed: Step, answered: Step, reason: str, *, for_good: bool) -> None:
        """Bar a subnet, and go back to the one that answered if it was in use."""
        with self._blaming:
            if for_good:
                self._catalogue.bar(failed.arch)
            elif failed.arch not in self._catalogue.barred:
                self._catalogue.bar_for_now(failed.arch, self._clock())
            current = self._residents.current
            if current is not None and current.arch == failed.arch:
                self._switcher.switch(answered, reason, "rolled_back")
            if self._residents.discard(failed.arch):
                self._events.add("unloaded", reason, arch=str(failed.arch))
