"""The picture of a supernet: its blocks by name, one subnet's path, and all branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxelastic.edge.bundle import Bundle
from fxelastic.report.canvas import colours_of, is_wide, legend_above, literal, new_figure
from fxelastic.spec import Arch, BranchSpec
from fxelastic.spec.branch_spec import ORIGINAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names of blocks on the axis; with more blocks, some are left out.
_MOST_NAMES = {True: 24, False: 12}
# Characters of a name; the beginning of a longer one is left out, as names differ at their ends.
_LONGEST = 18


def draw_supernet(bundle: Bundle, branches: Sequence[BranchSpec], path: Arch | None) -> Figure:
    """Draw the branches as boxes over the blocks that they replace.

    Args:
        bundle: The supernet's bundle.
        branches: Those of its branches to draw.
        path: The subnet whose path comes first, filled; None for none.
    """
    space = bundle.space
    rows = rows_of(branches)
    first = 0 if path is None else 1.5
    height = first + 1 + max(rows.values())
    figure = new_figure(1.6 + 0.3 * height)
    axes = figure.subplots()
    colours = colours_of([spec.kind for spec in branches])
    for spec in branches:
        _box(axes, spec, -rows[spec.id] - first, colours[spec.kind], filled=False)
    if path is not None:
        for spec in space.specs(path):
            _box(axes, spec, 0.0, colours[spec.kind], filled=True)
        axes.axhline(-0.75, color="tab:gray", linewidth=0.6)
    for kind, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=5, label=literal(kind))
    axes.set_xlim(-0.2, space.n_blocks + 0.2)
    axes.set_ylim(-height + 0.3, 0.7)
    step = -(-space.n_blocks // _MOST_NAMES[is_wide(figure)])
    shown = range(0, space.n_blocks, step)
    names = [literal(_short(block.name)) for block in bundle.manifest.blocks]
    axes.set_xticks(
        [i + 0.5 for i in shown],
        [names[i] for i in shown],
        rotation=60,
        ha="right",
    )
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.set_yticks([] if path is None else [0.0, -first], [] if path is None else ["path", "all"])
    axes.tick_params(length=0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    legend_above(figure, len(colours))
    return figure


def rows_of(specs: Sequence[BranchSpec]) -> dict[str, int]:
    """A row for each branch so that no two overlap; originals are in the first."""
    rows: dict[str, int] = {}
    ends: list[int] = [0]
    for spec in sorted(specs, key=lambda s: (s.kind != ORIGINAL, s.kind, s.start, s.stop)):
        if spec.kind == ORIGINAL:
            rows[spec.id] = 0
            continue
        row = next((i for i in range(1, len(ends)) if ends[i] <= spec.start), len(ends))
        if row == len(ends):
            ends.append(0)
        ends[row] = spec.stop
        rows[spec.id] = row
    return rows


def _box(axes: object, spec: BranchSpec, y: float, colour: str, *, filled: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(  # type: ignore[attr-defined]
        FancyBboxPatch(
            (spec.start + 0.08, y - 0.35),
            spec.stop - spec.start - 0.16,
            0.7,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colour if filled else "none",
            edgecolor=colour,
            linewidth=1.2,
            alpha=1.0 if filled else 0.55,
        )
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
