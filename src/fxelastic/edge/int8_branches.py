"""Which 8-bit branches a device uses: those that are faster there than their float branches."""

from __future__ import annotations

import random
from collections.abc import Container, Mapping, Sequence

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.fingerprint import INT8_FEATURES, fingerprint, needs_reduced_range
from fxelastic.spec import Arch
from fxelastic.spec.latency_table import LatencyTable
from fxelastic.spec.quantised import INT8, REDUCED, SIGNED, UNSIGNED, Quantised

#: A slower format of a branch is kept only if its error is below this share of the faster one's.
MORE_EXACT = 0.25
#: Formats count as equally fast within this factor. The one that is faster in all blocks together
#: is kept then, since neighbours of one format convert fewer values.
NEAR = 1.05
# How often the precision changes between neighbours in `in_runs`.
_SWITCH = 0.15


def used(bundle: Bundle, table: LatencyTable, mode: str) -> Bundle:
    """The bundle without the 8-bit branches that the device does not use; see `unused`.

    Raises:
        UsageError: The table has no such mode.
    """
    return bundle.without(unused_in(bundle, table, mode))


def unused_in(bundle: Bundle, table: LatencyTable, mode: str) -> dict[str, str]:
    """The 8-bit branches that the device of a table does not use; see `unused`.

    Raises:
        UsageError: The table has no such mode.
    """
    return unused(bundle, table.costs(mode), table.device, table.refused)


def unused(
    bundle: Bundle,
    costs_ms: Mapping[str, float],
    device: Mapping[str, str],
    refused: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The 8-bit branches that a device does not use, each with the reason.

    A branch is not used if the device can't run it, if its weights have more or fewer bits than
    the device needs, if it is not faster than its float branch, or if another format of the same
    branch is faster and not much less exact. Of the formats with signed and with unsigned
    activations the device uses one for all branches, since neighbours of both would convert the
    values between them.

    Args:
        bundle: The bundle.
        costs_ms: The latency of each branch that was measured.
        device: The device, as in a latency table.
        refused: Branches that the device can't run, and why.
    """
    found = dict(unsuited(bundle, device))
    found.update(refused or {})
    found.update(_of_other_sign(bundle, costs_ms, found))
    quickest: dict[str, list[tuple[float, str, Quantised]]] = {}
    for segment in bundle.manifest.segments:
        quantised = segment.quantised
        if quantised is None or segment.id in found:
            continue
        source, ours = costs_ms.get(quantised.source), costs_ms.get(segment.id)
        if ours is None or source is None:
            found[segment.id] = "it was not measured"
        elif ours >= source:
            found[segment.id] = (
                f"it takes {ours:.3g} ms, and {quantised.source} in float {source:.3g} ms"
            )
        else:
            quickest.setdefault(quantised.source, []).append((ours, segment.id, quantised))
    totals_ms: dict[str, float] = {}
    for formats in quickest.values():
        for ms, _, quantised in formats:
            own_ms = ms if len(formats) > 1 else 0.0
            totals_ms[quantised.format] = totals_ms.get(quantised.format, 0.0) + own_ms
    for formats in quickest.values():
        near_ms = NEAR * min(ms for ms, _, _ in formats)
        formats.sort(key=lambda e: (max(e[0], near_ms), totals_ms[e[2].format], e[1]))
        best_ms, best, kept = formats[0]
        for ms, name, quantised in formats[1:]:
            if quantised.error < MORE_EXACT * kept.error:
                kept = quantised
            else:
                found[name] = f"it takes {ms:.3g} ms, and {best} {best_ms:.3g} ms"
    return found


def unused_everywhere(
    bundle: Bundle,
    costs_at: Sequence[Mapping[str, float]],
    device: Mapping[str, str],
    refused: Mapping[str, str],
) -> dict[str, str]:
    """The 8-bit branches that a device uses at none of some sizes of inputs, each with the reason.

    Args:
        bundle: The bundle.
        costs_at: The latency of each branch at each of the sizes.
        device: See `unused`.
        refused: See `unused`.
    """
    first, *others = (unused(bundle, costs_ms, device, refused) for costs_ms in costs_at)
    return {name: why for name, why in first.items() if all(name in found for found in others)}


def in_runs(bundle: Bundle, archs: Sequence[Arch], seed: int) -> list[Arch]:
    """Subnets with the same float branches, in which neighbours mostly have the same precision.

    Values are converted where the precision changes. In uniform samples it changes at every other
    border, in the subnets that searches choose rarely.

    Args:
        bundle: The bundle.
        archs: Subnets.
        seed: Seed of the choice.

    Returns:
        The original in 8 bits, and the changed subnets; the subnets themselves if the search space
        has no 8-bit branches.
    """
    variants: dict[str, list[str]] = {}
    for spec in bundle.space.branches:
        quantised = bundle.segment(spec.id).quantised if spec.kind == INT8 else None
        if quantised is not None:
            variants.setdefault(quantised.source, []).append(spec.id)
    if not variants:
        return list(archs)
    rng = random.Random(f"precision {seed}")

    def changed(arch: Arch, eight: bool, switch: float) -> Arch:
        chosen = []
        for branch in arch:
            quantised = bundle.segment(branch).quantised
            source = branch if quantised is None else quantised.source
            eight ^= rng.random() < switch
            chosen.append(rng.choice(variants.get(source, [source])) if eight else source)
        return Arch(tuple(chosen))

    found = dict.fromkeys([changed(bundle.space.original, True, 0.0)] if archs else [])
    found.update(dict.fromkeys(changed(arch, rng.random() < 0.5, _SWITCH) for arch in archs))
    return [arch for arch in found if arch != bundle.space.original]


def _of_other_sign(
    bundle: Bundle, costs_ms: Mapping[str, float], others: Container[str]
) -> dict[str, str]:
    """The branches with fixed scales whose activations have the sign that is slower in total."""
    by_source: dict[str, dict[bool, str]] = {}
    for segment in bundle.manifest.segments:
        quantised = segment.quantised
        if quantised is None or segment.id in others or segment.id not in costs_ms:
            continue
        signed = quantised.format.removesuffix(REDUCED) == SIGNED
        if signed or quantised.format.removesuffix(REDUCED) == UNSIGNED:
            by_source.setdefault(quantised.source, {})[signed] = segment.id
    both = [names for names in by_source.values() if len(names) == 2]
    totals = [sum(costs_ms[names[signed]] for names in both) for signed in (False, True)]
    if not both:
        return {}
    slower = totals[True] >= totals[False]
    best = UNSIGNED if slower else SIGNED
    reason = f"its format takes {max(totals):.3g} ms in all blocks, and {best} {min(totals):.3g} ms"
    return {names[slower]: reason for names in both}


def unsuited(bundle: Bundle, device: Mapping[str, str]) -> dict[str, str]:
    """The 8-bit branches whose weights have other bits than the device needs, and the reasons.

    Args:
        bundle: The bundle.
        device: The device, as in a latency table.
    """
    features = device.get(INT8_FEATURES)
    reduced = needs_reduced_range(fingerprint() if features is None else device)
    found: dict[str, str] = {}
    for segment in bundle.manifest.segments:
        quantised = segment.quantised
        if quantised is not None and quantised.reduced != reduced:
            found[segment.id] = (
                "its sums may exceed 16 bits on an x86 processor without VNNI, "
                f"which uses the formats {REDUCED[1:]} in range (reduce_range)"
                if reduced
                else "the processor needs no reduced range of weights (reduce_range)"
            )
    return found
