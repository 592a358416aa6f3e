"""The device's own data: arrays for the model's inputs, targets, and the original's answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array, Executor, check_inputs
from fxelastic.edge.npz_files import names_in_npz, read_npz
from fxelastic.edge.searching.scores import Metric
from fxelastic.errors import BundleError, UsageError

_TARGETS = ("targets", "y")
_INPUT = "x"


@dataclass(frozen=True)
class Dataset:
    """Samples with their targets.

    Attributes:
        inputs: An array for each of the model's inputs that hold samples, by name; sample by
            sample in dimension 0.
        targets: An array, sample by sample. Without targets it holds the samples' numbers, and the
            original's own results are the targets.
        shared: An array for each of the other inputs, by name; every batch gets it whole.
        labelled: Whether there are targets.
    """

    inputs: Mapping[str, Array]
    targets: Array
    shared: Mapping[str, Array] = field(default_factory=dict)
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self, size: int, order: Array | None = None, first: int | None = None
    ) -> Iterator[tuple[dict[str, Array], Array]]:
        """Batches; the last may be smaller.

        Args:
            size: Samples of a batch.
            order: The samples' indices in the order of evaluation; None for the data's own.
            first: Samples of the first batch; each later one has twice as many as the one before,
                up to ``size``. None for batches of one size.
        """
        stop, n = 0, first or size
        while stop < len(self):
            start, stop, n = stop, stop + min(n, size), 2 * n
            stretch: Any = slice(start, stop)
            if order is not None:
                stretch = order[stretch]
            samples = {k: v[stretch] for k, v in self.inputs.items()}
            yield {**samples, **self.shared}, self.targets[stretch]

    def split(self, share: float, seed: int) -> tuple[Dataset, Dataset]:
        """Two parts, each in random order: the rest, and ``share`` of the samples."""
        order = np.random.default_rng(seed).permutation(len(self))
        n_held = round(share * len(self))
        return self._take(order[n_held:]), self._take(order[:n_held])

    def whole(self, size: int) -> Dataset:
        """As many of the first samples as fill batches."""
        return self.head(len(self) // size * size)

    def head(self, n: int) -> Dataset:
        """The first n samples."""
        return self._take(np.arange(n))

    def digest(self, score: str = "") -> str:
        """Sha256 of the samples and the name of a score."""
        digest = hashlib.sha256(score.encode() + (b"" if self.labelled else b" without targets"))
        arrays = {**self.inputs, **self.shared}
        for name, array in (*sorted(arrays.items()), ("", self.targets)):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _take(self, index: Array) -> Dataset:
        inputs = {k: v[index] for k, v in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets[index])


def batch_of(bundle: Bundle, wanted: int) -> int:
    """Samples of a batch: ``wanted``, unless the model has a fixed batch size."""
    model = bundle.manifest.model
    return wanted if model.dynamic_batch else model.batch_size


def has_targets(bundle: Bundle, data: Any) -> bool:
    """Whether data has targets, in any of the forms that `read_data` takes.

    Only the names of the arrays are read from a file.

    Raises:
        UsageError: The file can't be read.
    """
    if isinstance(data, (str, os.PathLike)):
        data = dict.fromkeys(names_in_npz(Path(data)))
    if not isinstance(data, Mapping):
        return isinstance(data, tuple) and len(data) == 2
    inputs = [info.name for info in bundle.inputs]
    return any(key in data and key not in inputs for key in _TARGETS)


def read_data(bundle: Bundle, data: Any) -> Dataset:
    """Read data in any of the forms that a search takes.

    Args:
        bundle: The bundle, whose inputs the data is for.
        data: A pair ``(x, targets)`` for a model of one input; a dict of arrays, the targets under
            ``targets`` or ``y``; or the path of an ``.npz`` file with such arrays. For a model of
            one input, ``x`` stands for it. An input that holds no samples is one array for all.
            Targets may be left out; an array by itself is the model's only input.

    Raises:
        UsageError: The data has another form, is empty, or does not fit the model.
    """
    names = [info.name for info in bundle.inputs]
    expected = f"(x, targets), a dict with {', '.join(names)} and targets, or an .npz file of it; "
    expected += "targets may be left out"
    if isinstance(data, (str, os.PathLike)):
        data = read_npz(Path(data))
    if isinstance(data, tuple) and len(data) == 2 and len(names) == 1:
        data = {names[0]: data[0], next(k for k in _TARGETS if k not in names): data[1]}
    elif len(names) == 1 and hasattr(data, "__array__"):
        data = {names[0]: data}
    if not isinstance(data, Mapping):
        raise UsageError("the data has an unknown form", expected=expected, got=type(data).__name__)
    arrays = {str(key): np.asarray(value) for key, value in data.items()}
    if len(names) == 1 and names[0] not in arrays and _INPUT in arrays:
        arrays[names[0]] = arrays.pop(_INPUT)
    key = next((k for k in _TARGETS if k in arrays and k not in names), None)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UsageError(
            f"the data lacks {missing[0]}",
            expected=expected,
            got=", ".join(arrays) or "no arrays",
            fix="name each array after its input",
        )
    batched = bundle.manifest.sample_inputs
    inputs = {name: arrays[name] for name in names if name in batched}
    whole = {name: arrays[name] for name in names if name not in batched}
    other = [name for name in arrays if name not in names]
    if key is None and other:
        # Targets by another name would be ignored silently.
        raise UsageError(
            f"the data has {other[0]}, which is neither an input nor targets",
            expected=expected,
            got=", ".join(arrays),
            fix="name the targets 'targets', and leave out arrays that the model does not read",
        )
    given = {} if key is None else {key: arrays[key]}
    lengths = {name: len(a) if a.ndim else 0 for name, a in {**inputs, **given}.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise UsageError(
            "the arrays of the data must have samples, and the same number of them",
            expected="arrays of equal length above 0",
            got=", ".join(f"{k}: {n}" for k, n in lengths.items()),
        )
    n_checked = batch_of(bundle, 1)
    first = {name: array[:n_checked] for name, array in inputs.items()}
    check_inputs(bundle, {**first, **whole})
    targets = np.arange(next(iter(lengths.values()))) if key is None else arrays[key]
    return Dataset(inputs, targets, whole, labelled=key is not None)


class Answers:
    """The original's results for each sample, as a metric's targets.

    The original runs once on each sample, when the sample is first needed; its results stay in
    memory.
    """

    def __init__(self, runner: Executor, metric: Metric, n_samples: int) -> None:
        """Start without results.

        Args:
            runner: Runs branches.
            metric: Turns the original's results into targets.
            n_samples: Samples of the data.
        """
        self._runner = runner
        self._metric = metric
        self._known = np.zeros(n_samples, bool)
        self._kept: Array | None = None

    def targets(
        self, inputs: Mapping[str, Array], numbers: Array, stop: Callable[[], bool]
    ) -> Array | None:
        """The targets of a batch.

        Args:
            inputs: The batch.
            numbers: The samples' numbers, from 0.
            stop: Called before each branch; returns whether to end.

        Returns:
            The targets, or None if stopped.

        Raises:
            BundleError: The original can't be run, or returns NaN.
            UsageError: Its results do not hold one item for each sample.
        """
        if self._kept is None or not self._known[numbers].all():
            found = self._run(inputs, len(numbers), stop)
            if found is None:
                return None
            if self._kept is None:
                shape = (len(self._known), *found.shape[1:])
                self._runner.make_room(found.nbytes // max(len(found), 1) * len(self._known))
                self._kept = np.empty(shape, found.dtype)
            self._kept[numbers] = found
            self._known[numbers] = True
        return np.asarray(self._kept[numbers])

    def _run(
        self, inputs: Mapping[str, Array], n_samples: int, stop: Callable[[], bool]
    ) -> Array | None:
        state = self._runner.start(inputs)
        for branch in self._runner.bundle.space.original:
            if stop():
                return None
            state = self._runner.advance(branch, state)
        outputs = self._runner.results(state)
        if any(array.dtype.kind in "fc" and np.isnan(array).any() for array in outputs):
            raise BundleError(
                "the original returns NaN, so its results can't replace targets",
                expected="finite outputs of the original",
                got="NaN",
                fix="leave out the samples that lead to NaN, or pass targets",
            )
        found = np.asarray(self._metric.answers(outputs))
        if found.ndim == 0 or len(found) != n_samples:
            raise UsageError(
                f"{self._metric.name} needs targets: results do not hold one item for each sample",
                expected=f"results whose first size is the number of samples, {n_samples}",
                got=str(found.shape),
                fix="choose another result, as in score='cosine:RESULT', or pass targets",
            )
        return found
