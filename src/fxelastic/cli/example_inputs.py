"""The option ``--example-input``: from shapes, or a reference, to tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fxelastic.cli.reference import describe, load_reference
from fxelastic.errors import UsageError

if TYPE_CHECKING:
    import torch

DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
)

_SEED = 0
_SHAPE = re.compile(r"(?:(?P<name>[^=:/.]+)=)?(?:(?P<dtype>\w+):)?(?P<shape>\d+(?:x\d+)*)")
_EXAMPLES = "1x3x224x224, int64:1x16 or input_ids=int64:1x16"


def load_example_inputs(texts: Sequence[str]) -> Any:
    """Make example inputs.

    Args:
        texts: The values of all ``--example-input`` options: shapes, or a single reference.

    Returns:
        Example inputs as `fxelastic.partition` takes them: a tensor, a tuple of tensors, a dict of
        keyword inputs, a pair of both, or None if ``texts`` is empty.

    Raises:
        UsageError: A text is neither a shape nor a reference, or the texts contradict each other.
    """
    if not texts:
        return None
    matches = [_SHAPE.fullmatch(text) for text in texts]
    if len(texts) == 1 and matches[0] is None and _is_reference(texts[0]):
        return _load(texts[0])
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for text, match in zip(texts, matches, strict=True):
        if match is None:
            raise _malformed(text, several=len(texts) > 1)
        tensor = _tensor(match["dtype"] or "float32", match["shape"], text)
        name = match["name"]
        if name is None and kwargs:
            raise UsageError(
                f"--example-input {text} comes after a keyword input",
                expected="positional inputs first, keyword inputs (name=shape) after them",
                got=" ".join(texts),
                fix="give it a name too, or move it to the front",
            )
        if name is None:
            args.append(tensor)
        elif name in kwargs:
            raise UsageError(
                f"--example-input names {name} twice",
                expected="each keyword input once",
                got=" ".join(texts),
                fix="leave one out",
            )
        else:
            kwargs[name] = tensor
    if not args:
        return kwargs
    return (tuple(args), kwargs) if kwargs else tuple(args)


def _tensor(dtype: str, shape: str, text: str) -> torch.Tensor:
    if dtype not in DTYPES:
        raise UsageError(
            f"--example-input {text}: unknown dtype {dtype!r}",
            expected=f"one of {', '.join(DTYPES)}",
            got=repr(dtype),
            fix="e.g. int64:1x16",
        )
    import torch

    sizes = [int(size) for size in shape.split("x")]
    kind: torch.dtype = getattr(torch, dtype)
    try:
        if kind.is_floating_point or kind.is_complex:
            generator = torch.Generator().manual_seed(_SEED)
            return torch.randn(sizes, generator=generator).to(kind)
        # Ones are valid as token ids and as a mask that hides nothing.
        return torch.ones(sizes, dtype=kind)
    except (RuntimeError, MemoryError) as e:
        raise UsageError(
            f"--example-input {text} does not fit into memory",
            got=str(e).splitlines()[0],
            fix="use smaller sizes",
        ) from e


def _is_reference(text: str) -> bool:
    source, colon, name = text.rpartition(":")
    return bool(colon and source) and source not in DTYPES and not name[:1].isdigit()


def _load(text: str) -> Any:
    found = load_reference(text, "--example-input")
    import torch

    if not callable(found) or isinstance(found, torch.Tensor):
        return found
    try:
        return found()
    except (Exception, SystemExit) as e:
        raise UsageError(
            f"--example-input {text} failed while it made the inputs",
            expected="a function without arguments that returns the example inputs",
            got=describe(e),
            fix="correct it; --debug shows the traceback",
        ) from e


def _malformed(text: str, *, several: bool) -> UsageError:
    mixed = several and _is_reference(text)
    return UsageError(
        f"--example-input {text!r} is not a shape",
        expected="a reference alone, or shapes only" if mixed else f"a shape as in {_EXAMPLES}",
        got="a reference among several inputs" if mixed else repr(text),
        fix="return all inputs from the function" if mixed else "write sizes with x between them",
    )
