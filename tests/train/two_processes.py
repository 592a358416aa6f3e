"""One process of a run of two, started as ``torchrun`` does; also alone, on whole batches.

``python -m tests.train.two_processes OUT`` trains and writes what comes out to the folder OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch import distributed as dist

import fxelastic
from fxelastic import TrainingError
from fxelastic.train import Sandwich
from tests.train.supernets import (
    Perceptron,
    conv_supernet,
    linear_supernet,
    vector_batches,
    weights,
)


def halves(
    batches: list[tuple[Tensor, Tensor]], rank: int, size: int
) -> list[tuple[Tensor, Tensor]]:
    return [(x[rank::size], y[rank::size]) for x, y in batches]


def train(rank: int, size: int, folder: Path | None = None) -> dict[str, Tensor]:
    """Both stages with every way of sampling."""
    distributed = size > 1
    supernet = linear_supernet()
    if rank:
        # Processes begin with the first one's weights, whatever theirs are.
        with torch.no_grad():
            for branch in supernet.branches.values():
                if not branch.frozen:
                    for parameter in branch.module.parameters():
                        parameter.add_(1)
    data = halves(vector_batches(4), rank, size)
    options: dict[str, Any] = {"distributed": distributed, "epochs": 2}
    fxelastic.distill(supernet, data, **options)
    fxelastic.distill(supernet, data, mode="chained", **options)
    saved = {} if folder is None else {"checkpoints": folder / "checkpoints"}
    fxelastic.tune(supernet, data, sampling=Sandwich(), **options, **saved)
    return weights(supernet)


def stages(rank: int, size: int, folder: Path | None = None) -> dict[str, Tensor]:
    """Multi-stage training of a network without norms."""
    torch.manual_seed(0)
    supernet = fxelastic.train_stages(
        Perceptron(),
        halves(vector_batches(4), rank, size),
        exits=(1, 3),
        gamma=0.25,
        epochs=2,
        example_inputs=torch.zeros(2, 8),
        validate=halves(vector_batches(2, seed=1), rank, size),
        until=2.0,
        distributed=size > 1,
        checkpoints=None if folder is None else folder / "stages",
    )
    return {
        name: value.clone() for name, value in supernet.partition.graph_module.state_dict().items()
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    state = train(rank, size, out)
    again = train(rank, size, out)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    safetensors.torch.save_file(state, out / f"weights-{rank}.safetensors")

    # Stages of a network that is not trained yet, with what frozen blocks compute kept by each.
    safetensors.torch.save_file(stages(rank, size, out), out / f"stages-{rank}.safetensors")

    # Uneven shares: the epoch ends for all when one has no more.
    supernet = linear_supernet()
    history = fxelastic.tune(supernet, vector_batches(2 + rank), distributed=True)
    assert history.steps == 2, history

    # Running statistics differ between processes, and are averaged.
    supernet = conv_supernet()
    images = [(torch.randn(4, 1, 8, 8) + rank, torch.zeros(4, dtype=torch.int64))] * 2
    # At this rate the statistics estimated before the first step stay.
    fxelastic.distill(supernet, images, distributed=True, lr=0)
    safetensors.torch.save_file(weights(supernet), out / f"statistics-{rank}.safetensors")

    # A NaN in one process stops both.
    data = vector_batches(2)
    if rank == 1:
        data[1][0][0, 0] = float("nan")
    try:
        fxelastic.tune(linear_supernet(), data, distributed=True)
    except TrainingError as e:
        (out / f"error-{rank}").write_text(str(e))
    dist.barrier()
    dist.destroy_process_group()
    # No thread of gloo is left to abort the process when the interpreter ends.
    threads = Path("/proc/self/task")
    if threads.exists():
        assert not [t for t in threads.iterdir() if "gloo" in (t / "comm").read_text()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
