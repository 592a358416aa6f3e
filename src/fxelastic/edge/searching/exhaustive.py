"""Every subnet, where there are few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxelastic.edge.searching.study import Study
from fxelastic.errors import UsageError
from fxelastic.spec import Arch, SearchSpace


@dataclass(frozen=True)
class Exhaustive:
    """Evaluates every subnet that fits.

    Attributes:
        limit: Refuse spaces of more subnets.
        group: Subnets evaluated together.
    """

    limit: int = 20_000
    group: int = 200

    def run(self, study: Study) -> None:
        """Search; see `Strategy`.

        Raises:
            UsageError: See `check`.
        """
        fitting = self.check(study)
        for start in range(0, len(fitting), self.group):
            study.score(fitting[start : start + self.group])

    def check(self, study: Study) -> list[Arch]:
        """The subnets that `run` evaluates.

        Raises:
            UsageError: There are more subnets than the limit, or more fit than may be evaluated.
        """
        count = study.space.count()
        if count > self.limit:
            raise UsageError(
                "there are too many subnets to evaluate all",
                expected=f"at most {self.limit:,}",
                got=f"{count:,}" if count < 10**15 else f"about {count:.2g}",
                fix="search by another strategy, such as evolutionary",
            )
        fitting = [arch for arch in all_subnets(study.space) if study.fits(arch)]
        if len(fitting) > study.max_subnets:
            # Some of them alone would be no answer to what is asked.
            raise UsageError(
                "more subnets fit than may be evaluated",
                expected=f"max_subnets of at least {len(fitting)}, or another strategy",
                got=str(study.max_subnets),
                fix=f"pass max_subnets={len(fitting)}, or --max-subnets on the command line",
            )
        return fitting


def all_subnets(space: SearchSpace) -> Iterator[Arch]:
    """Every subnet of a space, in the order of its branches."""

    def tilings(position: int) -> Iterator[tuple[str, ...]]:
        if position == space.n_blocks:
            yield ()
            return
        for spec in space.starting_at[position]:
            for rest in tilings(spec.stop):
                yield (spec.id, *rest)

    return map(Arch, tilings(0))
