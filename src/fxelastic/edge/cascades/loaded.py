"""A cascade in memory, as one session, or as one for each segment or for each branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.joined import THRESHOLDS
from fxelastic.edge.cascades.running import CascadeResults, CascadeRun
from fxelastic.edge.cascades.segments import segments_of
from fxelastic.edge.executor import Array, State
from fxelastic.spec.cascade import Cascade


@dataclass(frozen=True)
class SessionCall:
    """A session that runs a branch, or several that are joined.

    Attributes:
        session: The session.
        inputs: Names of the values that it reads.
        outputs: Names of the values that it computes, in the order in which it returns them.
        dropped: Names of values that no later branch reads.
    """

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dropped: tuple[str, ...] = ()


class JoinedCascade:
    """A cascade whose model decides by itself. Several threads may run it at once."""

    def __init__(self, session: Any, cascade: Cascade, on_close: Callable[[], None]) -> None:
        """Keep the thresholds.

        Args:
            session: Runs the model of the cascade's `CascadeForm`.
            cascade: The cascade.
            on_close: Called once by `close`.
        """
        self._session = session
        self._thresholds = np.array(cascade.thresholds)
        self._on_close = on_close

    def run(self, inputs: Mapping[str, Array]) -> CascadeResults:
        """Run a batch; see `LoadedCascade.run`."""
        feeds = {**inputs, THRESHOLDS: self._thresholds}
        *outputs, left_at = self._session.run(None, feeds)
        return CascadeResults(outputs, left_at)

    def close(self) -> None:
        """Free the session, unless another cascade in memory runs it."""
        self._session = None
        self._on_close()


class LoadedCascade:
    """A cascade whose sessions are open. Several threads may run it at once.

    Values between segments are arrays: to hand over onnxruntime's own values takes longer than to
    copy an array of half a megabyte, and so much comes from a segment that runs far longer.
    """

    def __init__(
        self,
        bundle: Bundle,
        cascade: Cascade,
        calls: Sequence[Sequence[SessionCall]],
        on_close: Callable[[], None],
    ) -> None:
        """Look up what is the same in every run.

        Args:
            bundle: The bundle.
            cascade: The cascade.
            calls: For each segment its sessions, in the order in which they run.
            on_close: Called once by `close`.
        """
        self._calls = calls
        self._on_close = on_close
        self._decide = CascadeRun(bundle, cascade)
        self._constants = dict(bundle.constants)
        live = [*self._constants, *(info.name for info in bundle.inputs)]
        self._kept: list[tuple[str, ...]] = []
        for segment in segments_of(cascade):
            if segment.leaving:
                position = bundle.segment(segment.leaving).spec.start
                live = [name for name in live if bundle.last_read.get(name, -1) >= position]
                live += segment.kept(bundle)
            # The last segment leaves nothing to continue from.
            self._kept.append(tuple(dict.fromkeys(live)) if segment.leaving else ())

    def run(self, inputs: Mapping[str, Array]) -> CascadeResults:
        """Run a batch, without changing its arrays.

        Args:
            inputs: An array for each of the bundle's inputs, by name.

        Returns:
            The results, and where each sample left.
        """
        given = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        return self._decide({**self._constants, **given}, self._run_segment)

    def close(self) -> None:
        """Free the sessions that nothing else in memory uses."""
        self._calls = ()
        self._on_close()

    def _run_segment(self, i: int, state: State) -> tuple[State, Mapping[str, Any]]:
        values = dict(state)
        for call in self._calls[i]:
            feeds = {name: values[name] for name in call.inputs}
            found = call.session.run(call.outputs, feeds)
            values.update(zip(call.outputs, found, strict=True))
            for name in call.dropped:
                del values[name]
        return {name: values[name] for name in self._kept[i]}, values
