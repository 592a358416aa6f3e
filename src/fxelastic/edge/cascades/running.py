"""Run a cascade: samples of a batch leave one by one, and the others go on together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import onnxruntime as ort

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.confidence import confidence
from fxelastic.edge.executor import Array, Executor, State
from fxelastic.edge.searching.choice import default_result
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.symbols import dimension

#: Runs a segment of a cascade, by its number, on the values before it. Returns the values after the
#: branches that it shares with the next segment, and the values of the results, by name.
RunSegment = Callable[[int, State], tuple[State, Mapping[str, Any]]]


@dataclass(frozen=True, eq=False)
class CascadeResults(Sequence[Array]):
    """The results of a batch; as a sequence, its outputs.

    Attributes:
        outputs: An array for each of the bundle's outputs, in their order.
        left_at: For each sample, the number of the subnet that gave its result, ``(N,)``.
    """

    outputs: list[Array]
    left_at: Array

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...

    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        return self.outputs[index]

    def __len__(self) -> int:
        return len(self.outputs)

    def __iter__(self) -> Iterator[Array]:
        return iter(self.outputs)


def run_cascade(
    executor: Executor, cascade: Cascade, inputs: Mapping[str, Array]
) -> CascadeResults:
    """Run a cascade on a batch.

    What a sample returns does not depend on the others, within the differences that onnxruntime has
    between batch sizes.

    Args:
        executor: Runs the branches.
        cascade: The cascade.
        inputs: An array for each of the bundle's inputs, by name.

    Returns:
        The results, and where each sample left.

    Raises:
        UsageError: A subnet is not in the search space, the inputs do not fit, or the results have
            no class scores.
        BundleError: A file is missing or damaged, or can't be run.
    """
    cascade.validate(executor.bundle.space)
    last = len(cascade.thresholds)

    def run(i: int, state: State) -> tuple[State, Mapping[str, Any]]:
        branches = cascade.segments[i]
        for branch in branches if i == last else branches[:-1]:
            state = executor.advance(branch, state)
        if i == last:
            return state, state
        return state, {**state, **executor.run_branch(branches[-1], state)}

    return CascadeRun(executor.bundle, cascade)(executor.start(inputs), run)


class CascadeRun:
    """Decides where samples leave, whatever runs the segments. Has no state of its own."""

    def __init__(self, bundle: Bundle, cascade: Cascade) -> None:
        """Look up what is the same in every run.

        Args:
            bundle: The bundle.
            cascade: The cascade.

        Raises:
            UsageError: The bundle or the package has no such confidence.
        """
        self._thresholds = cascade.thresholds
        self._confidence = confidence(cascade.confidence)
        self._names = [info.name for info in bundle.outputs]
        self._logits = default_result(bundle)
        self._rows = _Rows(bundle)

    def __call__(self, state: State, run: RunSegment) -> CascadeResults:
        """Run a batch.

        Args:
            state: The values before the first block.
            run: Runs a segment.
        """
        last = len(self._thresholds)
        here = left_at = np.zeros(0, int)
        parts: list[tuple[Array, list[Array]]] = []
        for i, threshold in enumerate((*self._thresholds, -np.inf)):
            state, found = run(i, state)
            outputs = [_array(found[name]) for name in self._names]
            if i == 0:
                n_samples = self._rows.count(outputs)
            if n_samples == 1:
                if i == last or self._confidence(outputs[self._logits])[0] >= threshold:
                    return CascadeResults(outputs, np.full(1, i))
                continue
            if i == last:
                leaves = np.ones(self._rows.count(outputs), bool)
            else:
                # Not a number is not above any threshold.
                leaves = self._confidence(outputs[self._logits]) >= threshold
            if i == 0:
                here, left_at = np.arange(len(leaves)), np.full(len(leaves), last)
                if leaves.all():
                    left_at[:] = i
                    return CascadeResults(outputs, left_at)
            # Samples that have left are still among the values whose rows can't be told apart.
            going_on = left_at[here] == last
            leaves &= going_on
            if not leaves.any():
                continue
            parts.append((here[leaves], self._rows.of_outputs(outputs, np.flatnonzero(leaves))))
            left_at[here[leaves]] = i
            stay = np.flatnonzero(going_on & ~leaves)
            if not len(stay):
                break
            fewer = self._rows.of_state(state, stay)
            if fewer is not None:
                state, here = fewer, here[stay]
        return CascadeResults(self._rows.joined(parts), left_at)


class _Rows:
    """Takes the rows of samples out of the values of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        model, infos = bundle.manifest.model, bundle.manifest.values
        batch = model.batch
        self._dims = {info.name: info.dims.index(batch) for info in infos if batch in info.dims}
        # Sizes such as 4*N: the order of their rows is not known.
        self._mixed = {
            info.name
            for info in infos
            for dim in info.dims
            if isinstance(dim, str) and dim != batch and batch in dimension(dim).symbols
        }
        self._fixed = not model.dynamic_batch
        self._outputs = [bundle.manifest.batch_dims.get(info.name) for info in bundle.outputs]

    def count(self, outputs: list[Array]) -> int:
        """The number of samples; 1 if no result holds samples."""
        pairs = zip(outputs, self._outputs, strict=True)
        return next((int(v.shape[dim]) for v, dim in pairs if dim is not None), 1)

    def of_state(self, state: State, samples: Array) -> dict[str, Any] | None:
        """The values of some samples; None if the rows of a value can't be told apart."""
        if self._fixed or not self._mixed.isdisjoint(state):
            return None
        found: dict[str, Any] = {}
        for name, value in state.items():
            dim = self._dims.get(name)
            if dim is not None:
                rows = np.ascontiguousarray(np.take(_array(value), samples, axis=dim))
                value = rows if isinstance(value, np.ndarray) else _ort_value(rows)
            found[name] = value
        return found

    def of_outputs(self, outputs: list[Array], samples: Array) -> list[Array]:
        """The results of some samples; a result without samples stays whole."""
        pairs = zip(outputs, self._outputs, strict=True)
        return [v if dim is None else np.take(v, samples, axis=dim) for v, dim in pairs]

    def joined(self, parts: list[tuple[Array, list[Array]]]) -> list[Array]:
        """The results of all samples, in their order."""
        if len(parts) == 1:
            return parts[0][1]
        order = np.argsort(np.concatenate([samples for samples, _ in parts]), kind="stable")
        joined = []
        for i, dim in enumerate(self._outputs):
            found = [outputs[i] for _, outputs in parts]
            if dim is None:
                joined.append(found[-1])
            else:
                joined.append(np.take(np.concatenate(found, axis=dim), order, axis=dim))
        return joined


def _array(value: Any) -> Array:
    """An array, or onnxruntime's value as one."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


_ort_value = ort.OrtValue.ortvalue_from_numpy
