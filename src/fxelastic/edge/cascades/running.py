"""Run a cascade: samples of a batch leave one by one, and the others go on together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.confidence import confidence
from fxelastic.edge.executor import Array, Executor, State
from fxelastic.edge.searching.choice import default_result
from fxelastic.spec.cascade import Cascade
from fxelastic.spec.symbols import dimension


@dataclass(frozen=True)
class CascadeResults:
    """The results of a batch.

    Attributes:
        outputs: An array for each of the bundle's outputs, in their order.
        left_at: For each sample, the number of the subnet that gave its result, ``(N,)``.
    """

    outputs: list[Array]
    left_at: Array


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
    bundle = executor.bundle
    cascade.validate(bundle.space)
    sure, index = confidence(cascade.confidence), default_result(bundle)
    rows = BatchRows(bundle)
    state = executor.start(inputs)
    here = np.arange(rows.count(state))  # the samples in the state
    last = len(cascade.thresholds)
    left_at = np.full(len(here), last)
    parts: list[tuple[Array, list[Array]]] = []
    names = [info.name for info in bundle.outputs]
    for i, threshold in enumerate(cascade.thresholds):
        *shared, leaving = cascade.segments[i]
        for branch in shared:
            state = executor.advance(branch, state)
        found = {**state, **executor.run_branch(leaving, state)}
        outputs = [found[name].numpy() for name in names]
        going_on = left_at[here] == last
        leaves = going_on & (sure(outputs[index]) >= threshold)
        if not leaves.any():
            continue
        parts.append((here[leaves], rows.of_outputs(outputs, np.flatnonzero(leaves))))
        left_at[here[leaves]] = i
        stay = np.flatnonzero(going_on & ~leaves)
        if not len(stay):
            break
        fewer = rows.of_state(state, stay)
        if fewer is not None:
            state, here = fewer, here[stay]
    else:
        for branch in cascade.segments[-1]:
            state = executor.advance(branch, state)
        stay = np.flatnonzero(left_at[here] == last)
        parts.append((here[stay], rows.of_outputs(executor.results(state), stay)))
    return CascadeResults(rows.joined(parts), left_at)


class BatchRows:
    """Takes the rows of samples out of the values of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Read where each value has its samples.

        Args:
            bundle: The bundle.
        """
        batch = bundle.manifest.model.batch
        infos = bundle.manifest.values
        self._dims = {info.name: info.dims.index(batch) for info in infos if batch in info.dims}
        # Sizes such as 4*N: the order of their rows is not known.
        self._mixed = {
            info.name
            for info in infos
            for dim in info.dims
            if isinstance(dim, str) and dim != batch and batch in dimension(dim).symbols
        }
        self._outputs = [self._dims.get(info.name) for info in bundle.outputs]

    def count(self, state: State) -> int:
        """The number of samples; 1 if no value has the batch as a dimension of its own."""
        sizes = (value.shape()[self._dims[k]] for k, value in state.items() if k in self._dims)
        return int(next(sizes, 1))

    def of_state(self, state: State, samples: Array) -> dict[str, Any] | None:
        """The values of some samples; None if the rows of a value can't be told apart."""
        if not self._mixed.isdisjoint(state):
            return None
        found: dict[str, Any] = {}
        for name, value in state.items():
            dim = self._dims.get(name)
            if dim is not None:
                rows = np.ascontiguousarray(np.take(value.numpy(), samples, axis=dim))
                value = ort.OrtValue.ortvalue_from_numpy(rows)
            found[name] = value
        return found

    def of_outputs(self, outputs: list[Array], samples: Array) -> list[Array]:
        """The results of some samples; a result without samples stays whole."""
        pairs = zip(outputs, self._outputs, strict=True)
        return [v if dim is None else np.take(v, samples, axis=dim) for v, dim in pairs]

    def joined(self, parts: list[tuple[Array, list[Array]]]) -> list[Array]:
        """The results of all samples, in their order."""
        order = np.argsort(np.concatenate([samples for samples, _ in parts]), kind="stable")
        joined = []
        for i, dim in enumerate(self._outputs):
            found = [outputs[i] for _, outputs in parts]
            if dim is None:
                joined.append(found[-1])
            else:
                joined.append(np.take(np.concatenate(found, axis=dim), order, axis=dim))
        return joined
