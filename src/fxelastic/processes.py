"""Several processes that train one supernet together, under ``torchrun``.

Every process has the whole supernet and a share of each batch. All of them draw the same subnets,
so that the gradients of the same parameters are averaged and no process waits in vain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fxelastic.errors import UsageError

if dist.is_available():
    # Its defaults are bound to the process group that exists when it is first imported, as
    # torch.export may do. That group would outlive destroy_process_group, and gloo's threads abort
    # the process when the interpreter ends. Imported before there is a group, it binds none.
    import torch.distributed.nn


@dataclass(frozen=True)
class Processes:
    """This process and those that train with it.

    Attributes:
        rank: The number of this process.
        world_size: How many processes there are.
        device: Where they exchange numbers.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    @classmethod
    def of(cls, distributed: bool, device: torch.device) -> Processes:
        """The process group, or this process alone.

        Args:
            distributed: Whether to train with the process group.
            device: Where the supernet is.

        Raises:
            UsageError: There is no process group.
        """
        if not distributed:
            return cls(device=device)
        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError(
                "there is no process group",
                expected="torch.distributed to be initialised, under torchrun",
                got="distributed=True in a single process",
                fix="call torch.distributed.init_process_group() first and start the script with "
                "torchrun --nproc-per-node N",
            )
        return cls(dist.get_rank(), dist.get_world_size(), device)

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

        A parameter without a gradient here may have one in another process: it takes part with
        zeros. A parameter without a gradient in any process gets none.
        """
        if self.world_size == 1:
            return
        known = list(parameters)
        present = torch.tensor([float(p.grad is not None) for p in known], device=self.device)
        dist.all_reduce(present)
        used = [p for p, n in zip(known, present.tolist(), strict=True) if n]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average(p.grad for p in used if p.grad is not None)

    def share(self, state: Iterable[Tensor]) -> None:
        """Give every process the first one's tensors."""
        if self.world_size > 1:
            for tensor in state:
                dist.broadcast(tensor, 0)

    def least(self, value: float) -> float:
        """The minimum over the processes."""
        return self._reduced(value, dist.ReduceOp.MIN) if self.world_size > 1 else value

    def total(self, value: float) -> float:
        """The sum over the processes."""
        return self._reduced(value, dist.ReduceOp.SUM) if self.world_size > 1 else value

    def all(self, value: bool) -> bool:
        """Whether the condition is true in every process."""
        return bool(self.least(value))

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return float(tensor.item())

    def gather(self, data: bytes) -> list[bytes]:
        """Every process's bytes, by rank."""
        if self.world_size == 1:
            return [data]
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        longest = int(-self.least(-len(data)))
        padded = torch.zeros(longest + 8, dtype=torch.uint8, device=self.device)
        padded[:8] = torch.tensor(list(len(data).to_bytes(8, "big")), dtype=torch.uint8)
        padded[8 : 8 + len(data)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        found = [part.cpu().numpy().tobytes() for part in parts]
        return [part[8 : 8 + int.from_bytes(part[:8], "big")] for part in found]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


#: A process that trains alone.
ALONE = Processes()
