"""What the blocks before a stage compute: each batch, or once for each sample."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxelastic.ir import trees
from fxelastic.ir.block import BlockGraph
from fxelastic.ir.branch import Branch
from fxelastic.ir.graph_symbols import batch_dim
from fxelastic.ir.liveness import Liveness
from fxelastic.randomness import preserved, seed_all, seed_loader, set_epoch
from fxelastic.row_store import KEY_BYTES, RowStore
from fxelastic.train.batches import Batch, BatchReader, numbered
from fxelastic.train.learners import BranchRunner

logger = logging.getLogger(__name__)

# Batches without a known sample after which the data counts as augmented.
_COLD = 4


@dataclass(frozen=True, kw_only=True)
class FeatureReader(BatchReader):
    """Reads batches as `BatchReader`, and computes the values before a stage's first block.

    Attributes:
        runner: Runs the blocks before.
        features: What these compute.
    """

    runner: BranchRunner
    features: FrozenPrefix

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's inputs by name, see `BatchReader.bind`."""
        return super().bind(batch)

    def bind(self, batch: Batch) -> dict[str, Any]:
        """The values that the stage's blocks and later ones read, by name.

        Raises:
            UsageError: The inputs differ in structure, shapes or dtypes from those captured.
        """
        return self.features.values(self.inputs(batch))

    def fill(
        self,
        sources: Sequence[tuple[Iterable[Any], str]],
        folder: Path,
        facts: Mapping[str, str],
        limit: int,
        seed: int,
    ) -> None:
        """Compute the values once for each sample, if they fit.

        The samples are read in an order that depends on the seed alone, so that an interrupted run
        computes the same bits again.

        Args:
            sources: Loaders with their names in messages.
            folder: Where to keep the values. Those that an earlier process left there are used.
            facts: What the values depend on, besides the samples.
            limit: Most bytes.
            seed: Decides the order of the data.
        """
        features = self.features
        problem = features.problem
        if any(hasattr(source, "__next__") for source, _ in sources):
            problem = problem or "a loader can be read once only"
        elif any(_is_augmented(source) for source, _ in sources):
            problem = problem or "the data is augmented"
        if problem:
            logger.info("features are computed each epoch: %s", problem)
            return
        facts = {**facts, **features.facts()}
        store = RowStore.existing(folder, facts)
        try:
            if store is None:
                store = self._written(RowStore(folder, facts), sources, limit, seed)
        except OSError as e:
            logger.warning("features are computed each epoch: %s can't be written: %s", folder, e)
            store = None
        if store is not None:
            features.use(store)

    def _written(
        self,
        store: RowStore,
        sources: Sequence[tuple[Iterable[Any], str]],
        limit: int,
        seed: int,
    ) -> RowStore | None:
        fits = False
        try:
            for source, what in sources:
                n_batches, before = _length(source), store.n_bytes
                with preserved(source):
                    seed_all(seed)
                    seed_loader(source, seed)
                    set_epoch(source, 0)
                    for number, raw in numbered(source, what):
                        self.features.add(store, self.inputs(self.read(raw, number)))
                        own = store.n_bytes - before
                        expected = own if number else own * n_batches
                        if before + expected > limit:
                            logger.info("features are computed each epoch: over %d bytes", limit)
                            return None
            store.seal()
            fits = True
            return store
        finally:
            if not fits:
                store.discard()


class FrozenPrefix:
    """The values before a block, for batches of samples."""

    def __init__(self, runner: BranchRunner, start: int) -> None:
        """Find out what is computed, and which of it can be kept by sample.

        Args:
            runner: Runs the blocks before.
            start: The block.
        """
        partition = runner.supernet.partition
        self._runner = runner
        self._before = runner.before(start)
        self._names = partition.signature.inputs
        dims = partition.batch_dims
        pairs = zip(partition.signature.inputs, partition.signature.names, strict=True)
        self._input_dims = {name: dims[own] for name, own in pairs if own in dims}
        self._live = Liveness(partition).live(start)
        self._dims: dict[str, int] = {}
        self._contexts: tuple[Branch, ...] = ()
        self.problem = self._examine(partition, runner)
        self._dtypes: dict[str, torch.dtype] = {
            name: partition.value(name).dtype for name in self._dims
        }
        self._store: RowStore | None = None
        self._cold = 0

    def _examine(self, partition: BlockGraph, runner: BranchRunner) -> str:
        """Why values can't be kept by sample; empty if they can."""
        if not partition.dynamic_batch or not self._input_dims:
            return "the number of samples is fixed"
        liveness = Liveness(partition)
        needed: list[str] = []
        for name in self._live:
            if name in self._names:
                continue
            value = partition.value(name)
            dim = batch_dim(value, partition.symbols)
            if name in runner.data_sized:
                return f"data choose the size of {name!r}"
            if dim is None:
                needed.append(name)
            elif _is_plain(value, dim, partition):
                self._dims[name] = dim
            else:
                return f"{name!r} does not hold one row for each sample"
        blocks: set[int] = set()
        while needed:
            i = liveness.produced[needed.pop()]
            if i < 0 or i in blocks:
                continue
            block = partition.blocks[i]
            if block.kind != "context":
                return f"{block.name!r} computes values that do not belong to a sample"
            blocks.add(i)
            needed += (*block.inputs, *block.context)
        self._contexts = tuple(self._before[i] for i in sorted(blocks))
        return "" if self._dims else "there is nothing to keep"

    def facts(self) -> dict[str, str]:
        """What the values depend on, besides the samples: weights and the values' names."""
        digest = hashlib.sha256()
        for branch in self._before:
            for value in (*branch.module.parameters(), *branch.module.buffers()):
                digest.update(_bytes(value.detach().reshape(1, -1)).tobytes())
        values = ", ".join(f"{name} {self._dtypes[name]}" for name in self._dims)
        return {"weights": digest.hexdigest(), "values": values}

    def use(self, store: RowStore) -> None:
        """Take rows from a store."""
        self._store, self._cold = store, 0

    def close(self) -> None:
        """Take no more rows from the store, which stays on disk."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The values that are read from the block on.

        Args:
            inputs: The model's inputs by name.
        """
        store = self._store
        if store is None:
            return self._computed(inputs)
        keys = self._keys(inputs)
        missing = [i for i, key in enumerate(keys) if key not in store]
        if len(missing) == len(keys):
            self._cold += 1
            if self._cold == _COLD:
                logger.info("features are computed each epoch: the data is augmented")
                store.discard()
                self._store = None
        else:
            self._cold = -(2**62)
        found = None if 2 * len(missing) > len(keys) else self._kept(store, keys, missing, inputs)
        return self._computed(inputs) if found is None else found

    def add(self, store: RowStore, inputs: Mapping[str, Any]) -> None:
        """Compute the values of a batch, and write those of samples that a store lacks."""
        keys = self._keys(inputs)
        if all(key in store for key in keys):
            return
        current = self._computed(inputs)
        rows = [current[name].movedim(dim, 0) for name, dim in self._dims.items()]
        shapes = tuple(tuple(row.shape[1:]) for row in rows)
        packed = [_bytes(row) for row in rows]
        for i, key in enumerate(keys):
            if key not in store:
                store.add(key, shapes, [part[i].tobytes() for part in packed])

    @torch.no_grad()
    def _computed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        current = dict(inputs)
        for branch in self._before:
            self._runner.run(branch, current)
        # Mixed precision gives other types; a value is the same whether it is kept or not.
        kept = {name: current[name].to(dtype) for name, dtype in self._dtypes.items()}
        return {**current, **kept}

    @torch.no_grad()
    def _kept(
        self,
        store: RowStore,
        keys: Sequence[bytes],
        missing: Sequence[int],
        inputs: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """The values from a store, and from the blocks for the samples that it lacks."""
        known = [i for i, key in enumerate(keys) if key in store]
        form = store.form([keys[i] for i in known])
        if form is None:
            return None
        rows = self._rows(store, [keys[i] for i in known], form)
        if missing:
            device = next(iter(rows.values())).device
            others = self._computed(self._part(inputs, torch.tensor(missing)))
            order = torch.argsort(torch.tensor([*known, *missing])).to(device)
            for name, dim in self._dims.items():
                other = others[name].movedim(dim, 0)
                if other.shape[1:] != rows[name].shape[1:]:
                    return None
                rows[name] = torch.cat([rows[name], other]).index_select(0, order)
        current = dict(inputs)
        for branch in self._contexts:
            self._runner.run(branch, current)
        values = {name: rows[name].movedim(0, dim) for name, dim in self._dims.items()}
        return {name: values[name] if name in values else current[name] for name in self._live}

    def _rows(self, store: RowStore, keys: Sequence[bytes], form: int) -> dict[str, Tensor]:
        """For each value the rows of some samples, with the samples in dimension 0."""
        shapes = store.forms[form]
        sizes = [
            math.prod(shape) * dtype.itemsize
            for shape, dtype in zip(shapes, self._dtypes.values(), strict=True)
        ]
        packed = torch.from_numpy(store.read(keys, sum(sizes)))
        parts = packed.split(sizes, dim=1)
        device = next(
            (p.device for b in self._before for p in b.module.parameters()), torch.device("cpu")
        )
        return {
            name: part.contiguous().view(self._dtypes[name]).reshape(-1, *shape).to(device)
            for name, part, shape in zip(self._dims, parts, shapes, strict=True)
        }

    def _part(self, inputs: Mapping[str, Any], chosen: Tensor) -> dict[str, Any]:
        """The inputs of some samples."""
        return {
            name: value.index_select(self._input_dims[name], chosen.to(value.device))
            if name in self._input_dims
            else value
            for name, value in inputs.items()
        }

    def _keys(self, inputs: Mapping[str, Any]) -> list[bytes]:
        """A digest of all inputs for each sample."""
        shared = hashlib.blake2b(digest_size=KEY_BYTES)
        parts = []
        for name in self._names:
            value = inputs[name]
            if isinstance(value, Tensor):
                rows = value.detach()
                dim = self._input_dims.get(name)
                rows = rows.reshape(1, *rows.shape) if dim is None else rows.movedim(dim, 0)
                shared.update(f"{name} {rows.dtype} {tuple(rows.shape[1:])}".encode())
                packed = _bytes(rows)
                if dim is None:
                    shared.update(packed.tobytes())
                else:
                    parts.append(packed)
            else:
                shared.update(f"{name} {value!r}".encode())
        keys = []
        for own in zip(*parts, strict=True):
            digest = shared.copy()
            for part in own:
                digest.update(part.tobytes())
            keys.append(digest.digest())
        return keys


def _bytes(rows: Tensor) -> Any:
    """The bytes of each row, ``(n, bytes)``."""
    flat = rows.contiguous().cpu()
    flat = flat.reshape(len(flat), flat[:1].numel() if len(flat) else 0)
    return flat.view(torch.uint8).numpy()


def _is_plain(value: Tensor, dim: int, partition: BlockGraph) -> bool:
    """Whether a dimension counts samples, and no other depends on their number."""
    (batch,) = (s.variable for s in partition.symbols if s.is_batch)
    shape: Sequence[Any] = value.shape
    free = [isinstance(s, torch.SymInt) and batch in s.node.expr.free_symbols for s in shape]
    return sum(free) == 1 and bool(shape[dim].node.expr == batch)


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError:
        return 1


def _is_augmented(loader: Any) -> bool:
    """Whether a data set gives other values for a sample each time; False where unknown."""
    data = getattr(loader, "dataset", None)
    with preserved(loader):
        try:
            for i in sorted({0, len(data) // 2, len(data) - 1}):  # type: ignore[arg-type]
                samples = []
                for seed in (0, 1):
                    seed_all(seed)
                    samples.append(trees.flatten(data[i])[0])  # type: ignore[index]
                if any(map(_differ, *samples)):
                    return True
        except (TypeError, NotImplementedError, LookupError, ValueError, RuntimeError):
            # A data set may have no length, or read batches only.
            # A wrong answer costs time alone: rows are found by a digest of the inputs.
            return False
    return False


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return not torch.equal(one, other)
    return bool((one != other).any() if hasattr(one, "any") else one != other)
