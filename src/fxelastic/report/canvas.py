"""What all figures of a report share: their width, theme, and colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fxelastic.extras import required

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = {"light": "#1f2933", "dark": "#e4e7eb"}
#: Widths in inches: of a page, and of a phone, where text has the same size.
WIDE, NARROW = 8.0, 4.2

_PALETTE = (
    *("tab:gray", "tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown"),
    *("tab:pink", "tab:olive", "tab:cyan", "tab:red"),
)


@contextmanager
def theme(name: str, width: float = WIDE) -> Iterator[None]:
    """Draw in a theme, ``light`` or ``dark``, and a width in inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    ink = INK[name]
    settings: dict[str, Any] = {
        "svg.hashsalt": "fxelastic",
        "font.size": 10.0 if width > NARROW else 9.0,
        "legend.framealpha": 0.0,
        "figure.figsize": (width, 4.0),
    }
    colours = "text.color axes.labelcolor axes.edgecolor xtick.color ytick.color grid.color"
    settings.update(dict.fromkeys(colours.split(), ink))
    with required("matplotlib", "plots need matplotlib", "report").rc_context(settings):
        yield


def recoloured(svg: bytes, name: str) -> bytes:
    """An SVG in the light theme in another one: only the ink differs, and drawing takes long."""
    return svg.replace(INK["light"].encode(), INK[name].encode())


def new_figure(height: float = 4.0) -> Figure:
    """An empty figure in the width of `theme`."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    return Figure(figsize=(rcParams["figure.figsize"][0], height), layout="constrained")


def legend_above(figure: Figure, n_labels: int) -> None:
    """A legend of all axes above them, in as many columns as fit."""
    most = 6 if is_wide(figure) else 3
    figure.legend(loc="outside upper center", ncols=max(1, min(most, n_labels)), fontsize="small")


def literal(text: str) -> str:
    """A name from a file as a figure's text, in which ``$`` would begin a formula."""
    return text.replace("$", r"\$")


def is_wide(figure: Figure) -> bool:
    """Whether a figure is as wide as a page."""
    return bool(figure.get_figwidth() > NARROW)


def colours_of(kinds: Sequence[str]) -> dict[str, str]:
    """A colour for each kind of branches; the originals come first and are grey."""
    order = sorted(set(kinds), key=lambda kind: (kind != "original", kind))
    return {kind: _PALETTE[i % len(_PALETTE)] for i, kind in enumerate(order)}
