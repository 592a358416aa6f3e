"""The batches that are looked at before a run begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from fxelastic.train.batches import Batch, BatchReader, numbered
from fxelastic.train.held_out import N_BATCHES
from fxelastic.train.processes import Processes
from fxelastic.train.randomness import preserved, seed_all, seed_loader
from fxelastic.train.sampling import derived_seed
from fxelastic.train.training import Training

#: Batches to compare their statistics with the running ones on.
_N_COMPARED = 4


@dataclass(frozen=True)
class FirstBatches:
    """Batches to try learning rates on, and batches that errors are measured on.

    Attributes:
        tried: Groups of batches, one for each step of a range test.
        own: Batches of the loader, as the run takes them.
        held_out: Batches to measure on.
    """

    tried: Sequence[Sequence[Batch]] = ()
    own: Sequence[Batch] = ()
    held_out: Sequence[Batch] = ()

    @classmethod
    def of(
        cls,
        loader: Iterable[Any],
        reader: BatchReader,
        training: Training,
        n_tried: int,
        processes: Processes,
        device: torch.device,
    ) -> FirstBatches:
        """Read them; the loader's generators and the global ones are as before afterwards.

        Args:
            loader: What to train on. An iterator, which can be used up once only, is left alone.
            reader: Reads the batches.
            training: The options.
            n_tried: Steps of a range test.
            processes: All get as many batches.
            device: Where the processes exchange numbers.

        Raises:
            UsageError: A loader is empty, or a batch has no form that is understood.
        """
        compared = training.norm_statistics == "auto"
        if not (n_tried or compared or training.keep_best):
            return cls()
        once = hasattr(loader, "__next__")
        n_own = 0 if once else max(n_tried * training.accumulate, _N_COMPARED * compared)
        other = training.held_out if training.held_out is not None else training.validate
        n_first = n_own + (N_BATCHES if other is None and not once else 0)
        seed = derived_seed(training.seed, "first batches")

        def read(source: Iterable[Any], n: int, what: str) -> list[Batch]:
            if not n:
                return []
            with preserved(source):
                seed_all(derived_seed(seed, "rank", processes.rank))
                seed_loader(source, seed)
                batches = [reader.read(raw, i) for i, raw in islice(numbered(source, what), n)]
            return batches[: _least(len(batches), processes, device)]

        batches = read(loader, n_first, "the loader")
        held_out = batches[-N_BATCHES:] if other is None else read(other, N_BATCHES, "held_out")
        size = training.accumulate
        own = batches[:n_own]
        last = min(len(own), n_tried * size)
        groups = [own[i : i + size] for i in range(0, last - size + 1, size)]
        return cls(groups, own[:_N_COMPARED], held_out)


def _least(n: int, processes: Processes, device: torch.device) -> int:
    """The least number over the processes."""
    counts = [
        int.from_bytes(data, "big") for data in processes.gather(n.to_bytes(4, "big"), device)
    ]
    return min(counts)
