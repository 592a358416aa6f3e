"""Search spaces for tests, and their subnets by enumeration."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from hypothesis import strategies as st

from fxelastic.spec import Arch, BranchSpec, SearchSpace, branch_id
from fxelastic.spec.costs import BranchCosts, Costs


def spec(kind: str, start: int, stop: int, n_params: int = 1, flops: int = 1) -> BranchSpec:
    return BranchSpec(branch_id(kind, start, stop), kind, start, stop, n_params, flops)


def originals(n_blocks: int) -> list[BranchSpec]:
    return [spec("original", i, i + 1) for i in range(n_blocks)]


def random_space(rng: random.Random) -> SearchSpace:
    """A space of a few blocks, with branches of one to three."""
    n = rng.randint(2, 6)
    branches = [spec("original", i, i + 1) for i in range(n)]
    for k in range(rng.randint(1, 8)):
        start = rng.randrange(n)
        stop = rng.randint(start + 1, min(n, start + 3))
        branches.append(spec(f"extra{k}", start, stop))
    return SearchSpace(n, tuple(branches))


def chain(n_blocks: int, spans: tuple[int, ...] = (1, 2), variants: int = 2) -> SearchSpace:
    """Every merged branch of these spans, and some pruned ones for each block."""
    branches = originals(n_blocks)
    for i in range(n_blocks):
        branches += [spec("merged", i, i + j + 1) for j in spans if i + j < n_blocks]
        branches += [spec(f"pruned{k}", i, i + 1) for k in range(variants)]
    return SearchSpace(n_blocks, tuple(branches))


def costs_by_resource(latency_ms: Mapping[str, float], **others: Mapping[str, float]) -> Costs:
    """Costs without overheads, by resource."""
    return Costs({n: BranchCosts(c) for n, c in {"latency_ms": latency_ms, **others}.items()})


def enumerate_paths(space: SearchSpace) -> list[Arch]:
    """Every subnet, by recursion over intervals."""

    def walk(position: int) -> Iterator[tuple[str, ...]]:
        if position == space.n_blocks:
            yield ()
        for branch in space.branches:
            if branch.start == position:
                for rest in walk(branch.stop):
                    yield (branch.id, *rest)

    return [Arch(ids) for ids in walk(0)]


@st.composite
def spaces(draw: st.DrawFn, max_blocks: int = 6, max_extra: int = 8) -> SearchSpace:
    """Small search spaces with any branches."""
    n_blocks = draw(st.integers(1, max_blocks))
    cuts = st.tuples(st.integers(0, n_blocks), st.integers(0, n_blocks)).filter(
        lambda cut: cut[0] < cut[1]
    )
    intervals = draw(st.lists(cuts, max_size=max_extra))
    extra = [spec(f"extra{i}", *interval) for i, interval in enumerate(intervals)]
    return SearchSpace(n_blocks, tuple(draw(st.permutations(originals(n_blocks) + extra))))


# Chi-square quantiles at 1 - 1e-6: a fair sampler fails one test in a million, and every test is
# seeded, so that it passes always or never.
def chi_square_limit(degrees: int) -> float:
    """Wilson and Hilferty's approximation."""
    a = 2 / (9 * degrees)
    return degrees * (1 - a + 4.7534 * a**0.5) ** 3


def chi_square(drawn: list[Arch], expected: list[Arch]) -> float:
    """How far the draws are from a uniform distribution over ``expected``."""
    counts = dict.fromkeys(expected, 0)
    for arch in drawn:
        counts[arch] += 1
    mean = len(drawn) / len(expected)
    return sum((n - mean) ** 2 for n in counts.values()) / mean


def assert_uniform(drawn: list[Arch], expected: list[Arch]) -> None:
    assert set(drawn) <= set(expected)
    assert chi_square(drawn, expected) < chi_square_limit(len(expected) - 1)
