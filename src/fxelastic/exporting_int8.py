"""The checks of 8-bit branches at the end of an export."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fxelastic.backends.onnxruntime.quantisation.errors import relative_error
from fxelastic.backends.onnxruntime.running import open_session
from fxelastic.edge.assembling import assemble
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.executor import Array, Executor, State
from fxelastic.edge.fingerprint import fingerprint, needs_reduced_range
from fxelastic.errors import ExportError
from fxelastic.spec.arch import Arch
from fxelastic.spec.quantised import INT8, int8_id
from fxelastic.spec.segment import Segment

# The error of subnets in float, whose operators onnxruntime fuses in another way.
_ROUNDING = 1e-6


def check_int8(
    bundle: Bundle,
    batches: Sequence[Mapping[str, Array]],
    n_subnets: int,
    seed: int,
    report: Callable[[str], None],
) -> list[Arch]:
    """Compare 8-bit branches with their float branches, and chains of them with assembled models.

    Args:
        bundle: A bundle.
        batches: The calibration data that is held out, by the names of the inputs.
        n_subnets: Number of random subnets of both precisions to assemble and compare, besides
            those of each format.
        seed: Seed of these subnets.
        report: Called with a short text at each step.

    Returns:
        The subnets that were assembled and compared. Formats that this processor can't run exactly,
        those of 8-bit weights on x86 without VNNI, are left to the processors that use them.

    Raises:
        ExportError: A branch loses more than its tolerance, or an assembled subnet gives other
            results than the chain of its branches.
    """
    bundle = bundle.without(inexact(bundle))
    with Executor(bundle, threads=1) as executor:
        report("comparing the 8-bit branches with their float branches")
        _check_branches(executor, batches)
        drawn = bundle.space.sample(8 * n_subnets, seed)
        mixed = [arch for arch in drawn if any(bundle.segment(b).quantised for b in arch)]
        archs = list(dict.fromkeys([*int8_subnets(bundle), *mixed[:n_subnets]]))
        for arch in archs:
            report(f"comparing 8-bit subnet {archs.index(arch) + 1} of {len(archs)} with its chain")
            _check_subnet(executor, arch, batches)
    return archs


def int8_subnets(bundle: Bundle) -> list[Arch]:
    """For each format, the original with every block in 8 bits that has such a branch."""
    space = bundle.space
    found_in = (bundle.segment(spec.id).quantised for spec in space.branches)
    formats = {quantised.format for quantised in found_in if quantised is not None}

    def subnet(format: str) -> Arch:
        ids = ((int8_id(name, format), name) for name in space.original)
        return Arch(tuple(ours if ours in space.by_id else name for ours, name in ids))

    found = dict.fromkeys(subnet(format) for format in sorted(formats))
    return [arch for arch in found if arch != space.original]


def inexact(bundle: Bundle) -> list[str]:
    """The 8-bit branches whose sums may exceed 16 bits on this processor."""
    if not needs_reduced_range(fingerprint()):
        return []
    segments = bundle.manifest.segments
    return [s.id for s in segments if s.quantised is not None and not s.quantised.reduced]


def _check_branches(executor: Executor, batches: Sequence[Mapping[str, Array]]) -> None:
    bundle = executor.bundle
    states: list[State] = [executor.start(batch) for batch in batches]
    for position, original in enumerate(bundle.space.original):
        for spec in bundle.space.starting_at[position]:
            segment = bundle.segment(spec.id)
            if spec.kind == INT8 and segment.quantised is not None:
                source = bundle.segment(segment.quantised.source)
                error = relative_error(
                    _outputs(executor, segment, states), _outputs(executor, source, states)
                )
                if not error <= segment.quantised.tolerance:
                    raise ExportError(
                        f"branch {spec.id!r} differs from {source.id!r} by more than its tolerance",
                        expected=f"an error of at most {segment.quantised.tolerance:.2g}",
                        got=f"{error:.2g} of the variance of its outputs",
                        fix="report it, with the model",
                    )
        states = [executor.advance(original, state) for state in states]


def _outputs(executor: Executor, segment: Segment, states: Sequence[State]) -> list[list[Array]]:
    runs = (executor.run_branch(segment.id, state) for state in states)
    return [[found[name].numpy() for name in sorted(segment.outputs)] for found in runs]


def _check_subnet(executor: Executor, arch: Arch, batches: Sequence[Mapping[str, Array]]) -> None:
    bundle = executor.bundle
    chain = [executor.run(arch, batch) for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(assemble(bundle, arch, Path(folder) / "subnet.onnx"))
        names = [result.name for result in bundle.manifest.results]
        whole = [session.run(names, {k: np.asarray(v) for k, v in b.items()}) for b in batches]
    found = [bundle.segment(name).quantised for name in arch]
    tolerance = _ROUNDING + sum(quantised.tolerance for quantised in found if quantised is not None)
    error = relative_error(whole, chain)
    if not error <= tolerance:
        raise ExportError(
            f"an assembled 8-bit subnet computes other results than its branches: {arch}",
            expected=f"an error of at most {tolerance:.2g}",
            got=f"{error:.2g} of the variance of the results",
            fix="report it, with the model",
        )
