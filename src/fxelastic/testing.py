"""Helpers for the tests of projects that use fxelastic."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import torch

    from fxelastic.ir.partition import Partition


def assert_partition(
    model: torch.nn.Module,
    golden: str | os.PathLike[str],
    *,
    gamma: float = 0.1,
    example_inputs: Any = None,
    batched: str | Sequence[str] | None = None,
    fusion: str = "onnxruntime",
    update: bool = False,
) -> Partition:
    """Assert that a model's partition is valid and equals a golden text.

    This is ``fxelastic check`` for a test suite; docs/ci.md has a fixture that sets ``update`` from
    pytest's command line.

    Args:
        model: The model.
        golden: Path of the golden file, or the golden text itself (a string with a line break).
        gamma: Largest share of the parameters in a block.
        example_inputs: As for `fxelastic.partition`.
        batched: As for `fxelastic.partition`.
        fusion: Name of the fusion rules.
        update: Write the golden file instead of comparing with it.

    Returns:
        The partition, for further assertions.

    Raises:
        AssertionError: The texts differ (the message shows how), or there is no golden file.
        PartitionError: The partition is not valid.
        UsageError: An argument is not usable.
        CaptureError: The model can't be captured.
    """
    __tracebackhide__ = True
    if not isinstance(golden, (str, os.PathLike)):
        raise UsageError("golden must be a text or the path of a file", got=repr(golden))
    text = golden if isinstance(golden, str) and "\n" in golden else None
    if text is not None and update:
        raise UsageError(
            "a golden text can't be updated",
            expected="the path of a golden file when update is true",
            got="a text",
            fix="pass a path, or leave update out",
        )
    from fxelastic.api import partition as partition_model
    from fxelastic.ir.diff import TextDiff
    from fxelastic.ir.golden import read_golden, write_golden

    path = None if text is not None else Path(golden)
    if path is not None and not update:
        text = read_golden(path)
        if text is None:
            raise AssertionError(
                f"there is no golden file {path}; write it with update=True, review it, commit it"
            )
    partition = partition_model(
        model, gamma=gamma, example_inputs=example_inputs, batched=batched, fusion=fusion
    )
    partition.verify()
    actual = partition.to_text()
    if path is not None and update:
        write_golden(path, actual)
        return partition
    assert text is not None
    diff = TextDiff(text, actual)
    if not diff.equal:
        name = "the golden text" if path is None else str(path)
        raise AssertionError(
            f"the partition of {partition.model_name} is not the golden one\n"
            f"{diff.report(name)}\n\nif this is intended, accept it with update=True"
        )
    return partition
