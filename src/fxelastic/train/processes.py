"""Several processes that train one supernet together, under ``torchrun``.

Every process has the whole supernet and a share of each batch. All of them draw the same subnets,
so that gradients of the same parameters are averaged and none is waited for in vain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fxelastic.errors import UsageError

if dist.is_available():
    # Its defaults are bound to the process group that there is when it is first imported, as
    # torch.export may do. That group would outlive destroy_process_group, and gloo's threads abort
    # the process when the interpreter ends. Imported before there is a group, it binds none.
    import torch.distributed.nn


@dataclass(frozen=True)
class Processes:
    """This process and the others; a process of its own where ``world_size`` is 1.

    Attributes:
        rank: The number of this process.
        world_size: How many there are.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, distributed: bool) -> Processes:
        """Find out about the process group.

        Args:
            distributed: Whether there is to be one.

        Raises:
            UsageError: There is none.
        """
        if not distributed:
            return cls()
        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError(
                "there is no process group",
                expected="torch.distributed to be initialised, under torchrun",
                got="distributed=True in a single process",
                fix="call torch.distributed.init_process_group() first and start the script with "
                "torchrun --nproc-per-node N",
            )
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process writes checkpoints, logs and reports."""
        return self.rank == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their mean over the processes, in one exchange per dtype."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.world_size
            parts = flat.split([tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of the parameters that learn in this step.

        A parameter without a gradient here may have one elsewhere: it takes part with zeros, and
        none gets a gradient that has none anywhere.
        """
        if self.world_size == 1:
            return
        known = list(parameters)
        device = known[0].device if known else torch.device("cpu")
        present = torch.tensor([float(p.grad is not None) for p in known], device=device)
        dist.all_reduce(present)
        used = [p for p, n in zip(known, present.tolist(), strict=True) if n]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average(p.grad for p in used if p.grad is not None)

    def average_buffers(self, state: Mapping[str, Tensor], parameters: Iterable[str]) -> None:
        """Average what each process tracked of its own batches, such as running statistics.

        Args:
            state: Parameters and buffers by name.
            parameters: The names that are parameters: the same everywhere already.
        """
        known = set(parameters)
        self.average(
            value
            for name, value in state.items()
            if name not in known and value.is_floating_point()
        )

    def share(self, state: Iterable[Tensor]) -> None:
        """Give every process the first one's tensors."""
        if self.world_size > 1:
            for tensor in state:
                dist.broadcast(tensor, 0)

    def all(self, value: bool, device: torch.device) -> bool:
        """Whether it holds in every process."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(float(value), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag.item())

    def total(self, value: float, device: torch.device) -> float:
        """The sum over the processes."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return float(tensor.item())

    def gather(self, data: bytes, device: torch.device) -> list[bytes]:
        """Every process's bytes, by rank."""
        if self.world_size == 1:
            return [data]
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)], device=device))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=device)
        padded[: len(data)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [
            part[: int(size)].cpu().numpy().tobytes()
            for part, size in zip(parts, sizes, strict=True)
        ]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


#: A process that trains alone.
ALONE = Processes()
