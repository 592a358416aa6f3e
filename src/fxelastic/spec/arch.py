"""One subnet, as a list of branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxelastic.errors import UsageError
from fxelastic.spec.branch_spec import id_problem

_SEPARATOR = ","


@dataclass(frozen=True)
class Arch:
    """A tiling of the blocks ``[0, N)`` by branches, in execution order.

    ``str(arch)`` joins the ids with commas: ``original@0,merged@1-3,original@3``. `Arch.parse`
    reads that text. `SearchSpace.validate` checks whether the branches exist and tile the blocks.

    Attributes:
        branches: Ids of the branches, in execution order.
    """

    branches: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the ids, independently of any search space.

        Raises:
            UsageError: There is no branch, an item is not an id, or an id occurs twice.
        """
        if isinstance(self.branches, str) or not isinstance(self.branches, (tuple, list)):
            raise UsageError(
                "an arch must be a tuple of branch ids",
                expected="a tuple of strings; use Arch.parse for text",
                got=repr(self.branches),
            )
        object.__setattr__(self, "branches", tuple(self.branches))
        if not self.branches:
            raise UsageError(
                "an arch must have at least one branch", expected="branch ids", got="an empty tuple"
            )
        first: dict[str, int] = {}
        for position, value in enumerate(self.branches):
            problem = id_problem(value)
            if not problem and value in first:
                problem = f"branch {value!r} is already at position {first[value]}"
            if problem:
                raise UsageError(
                    f"position {position} of the arch: {problem}",
                    expected="a valid id that occurs once",
                    got=repr(value),
                )
            first[value] = position

    @classmethod
    def parse(cls, text: str) -> Arch:
        """Parse the text of an arch.

        Args:
            text: Branch ids with commas between them; spaces around an id are ignored.

        Returns:
            The arch.

        Raises:
            UsageError: The text is empty or malformed; the message names the position.
        """
        if not isinstance(text, str):
            raise UsageError(
                "the text of an arch must be a string",
                expected="branch ids with commas between them",
                got=type(text).__name__,
            )
        if not text.strip():
            raise UsageError(
                "the text of an arch must not be empty",
                expected="branch ids with commas between them, like 'original@0,merged@1-3'",
                got=repr(text),
            )
        return cls(tuple(part.strip() for part in text.split(_SEPARATOR)))

    def __str__(self) -> str:
        return _SEPARATOR.join(self.branches)

    def __len__(self) -> int:
        return len(self.branches)

    def __iter__(self) -> Iterator[str]:
        return iter(self.branches)
