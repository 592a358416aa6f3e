"""A figure of the page benchmarks/RESULTS.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A figure.

    Attributes:
        what: The measured quantity.
        measured: The figure.
        bar: The required value.
        paper: The published value.
        met: Whether the bar is met; None without a bar.
    """

    what: str
    measured: str
    bar: str = ""
    paper: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "met", False: "**missed**"}[self.met]
        return f"| {self.what} | {self.measured} | {self.bar} | {self.paper} | {verdict} |"
