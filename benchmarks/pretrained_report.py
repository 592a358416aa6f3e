"""Tables, intervals and acceptance lines from the figures of `benchmarks/pretrained.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bootstrap import Array, Bootstrap, mean_of

BUDGETS = ("90%", "80%", "70%", "60%", "50%")
MEAN_OF = BUDGETS[:4]
LEAST_COSINE = {"90%": 0.984, "70%": 0.947, "50%": 0.885}
LEAST_GAIN = 0.05
MINUTES = 30
#: A figure that is lower by no more than this still counts as "at or above".
TOLERANCE = 0.005


@dataclass(frozen=True)
class Line:
    """An acceptance criterion, and whether it holds."""

    what: str
    measured: str
    holds: bool

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'does not hold':14}{self.what}: {self.measured}"


def judged(
    bootstrap: Bootstrap,
    scores: Mapping[str, Mapping[str, Array]],
    shares: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Figures with intervals.

    Args:
        bootstrap: Resamples the sources of the test split.
        scores: For each way, such as ``before 90%`` or ``quantised``, the value of each sample.
        shares: For each way, its share of the original's latency with an interval.

    Returns:
        ``ways`` with the figures of each, and for each score the ``gains`` of training by budget
        and averaged over 90 to 60 %; each a value and the ends of its interval.
    """
    figures = {
        way: {score: bootstrap.mean(values) for score, values in found.items()}
        for way, found in scores.items()
    }
    gains: dict[str, dict[str, list[float]]] = {}
    for score in next(iter(figures.values())):
        by_budget = {
            budget: figures[f"after {budget}"][score] - figures[f"before {budget}"][score]
            for budget in BUDGETS
        }
        gains[score] = {budget: gain.to_json() for budget, gain in by_budget.items()}
        gains[score]["mean"] = mean_of([by_budget[budget] for budget in MEAN_OF]).to_json()
    ways = {
        way: {"latency": list(shares[way])} | {k: v.to_json() for k, v in found.items()}
        for way, found in figures.items()
    }
    return {"ways": ways, "gains": gains}


def acceptance(name: str, found: Mapping[str, Any]) -> list[Line]:
    """The acceptance criteria for a model's figures."""
    branches, distil, judge = trained(found["branches"]), found["distil"], found["judge"]
    worst, ratio = branches["worst"]
    main = "agreement" if name == "efficientnet" else "cosine"
    gains = judge["gains"][main]
    lowest = min(BUDGETS, key=lambda budget: gains[budget][0])
    surely = min(BUDGETS, key=lambda budget: gains[budget][1])
    lines = [
        Line(
            f"no branch above 1.02 times its error before training ({branches['n']} branches)",
            f"{ratio:.3f} at most ({worst})",
            ratio <= 1.02,
        ),
        Line(
            "improved in at least 70 % of the branches",
            f"{branches['improved']:.0%}",
            branches["improved"] >= 0.7,
        ),
        Line(
            "mean error at most 0.9 times the error before training",
            f"{interval(branches['ratio'], '.3f')}",
            branches["ratio"][0] <= 0.9,
        ),
        Line(
            f"training takes at most {MINUTES} minutes of one core",
            f"{distil['processor_s'] / 60:.1f} minutes, {distil['steps']} steps of distillation, "
            f"{distil.get('tuned_steps', 0)} of tuning",
            distil["processor_s"] <= 1.05 * 60 * MINUTES,
        ),
        Line(
            f"{main} of the best subnets rises by training at every budget",
            f"least at {lowest}: {points(gains[lowest])}",
            gains[lowest][0] > 0,
        ),
        Line(
            f"{main} after training is at or above that before at every budget (lower end of the "
            f"interval at least {-100 * TOLERANCE:.1f} point)",
            f"least at {surely}: {points(gains[surely])}",
            gains[surely][1] >= -TOLERANCE,
        ),
    ]
    if name == "efficientnet":
        lines.append(
            Line(
                "agreement rises by at least 5 points in the mean over 90 to 60 %",
                points(gains["mean"]),
                gains["mean"][0] >= LEAST_GAIN,
            )
        )
    else:
        for budget, least in LEAST_COSINE.items():
            cosine = judge["ways"][f"after {budget}"]["cosine"]
            lines.append(
                Line(
                    f"cosine at {budget} of the latency is at least {least}",
                    interval(cosine, ".4f"),
                    cosine[0] >= least,
                )
            )
    lines.append(
        Line(
            "at least 4,000 samples to train and 1,000 to judge",
            f"{judge['train']:,} and {judge['samples']:,}, of {judge['sources']} sources",
            judge["train"] >= 4000 and judge["samples"] >= 1000,
        )
    )
    return lines


def trained(branches: Mapping[str, Any]) -> Mapping[str, Any]:
    """The errors of branches after the whole training."""
    found: Mapping[str, Any] = branches.get("tuned", branches)
    return found


def after_distillation(branches: Mapping[str, Any]) -> list[str]:
    """The errors of branches between distillation and tuning; empty without tuning."""
    if "tuned" not in branches:
        return []
    return [
        f"after distillation, {branches['improved']:.0%} of them are better than before; worst "
        f"ratio {branches['worst'][1]:.3f}; mean error {interval(branches['after'], '.4f')}"
    ]


def text(name: str, found: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """All figures of a model as text."""
    profile, judge = found["profile"], found["judge"]
    branches = trained(found["branches"])
    scores = list(judge["gains"])
    header = f"{'':12}" + "".join(f"{title:>28}" for title in ("latency", *scores))
    rows = [
        f"{way:12}"
        + "".join(
            f"{interval(figures[key], '.1%' if key in PERCENT else '.4f'):>28}"
            for key in ("latency", *scores)
        )
        + "  over the budget" * over(way, figures["latency"])
        for way, figures in judge["ways"].items()
    ]
    gains = [
        f"{score} after - before, {budget}: {points(gain)}"
        for score in scores
        for budget, gain in judge["gains"][score].items()
    ]
    return "\n".join(
        [
            f"\n{name}: {found['expand']['space']}; the original takes "
            f"{judge['original_ms']:.2f} ms; error of the latency table "
            f"{percent(profile['median'])} (median), {percent(profile['p90'])} (90th percentile)",
            f"{branches['n']} branches that learn, {branches['improved']:.0%} of them improved; "
            f"worst ratio {branches['worst'][1]:.3f}; mean error "
            f"{interval(branches['before'], '.4f')} -> {interval(branches['after'], '.4f')}",
            *after_distillation(found["branches"]),
            "",
            header,
            *rows,
            "",
            *gains,
            "",
            *map(str, lines),
        ]
    )


def over(way: str, latency: Sequence[float]) -> bool:
    """Whether the whole interval of a subnet's latency is above its budget."""
    budget = way.split()[-1]
    return budget in BUDGETS and latency[1] > float(budget[:-1]) / 100


PERCENT = ("latency", "agreement")


def interval(figure: Sequence[float], form: str) -> str:
    """A figure with its interval."""
    value, low, high = (format(x, form) for x in figure)
    return f"{value} ({low} to {high})"


def points(figure: Sequence[float]) -> str:
    """A difference of shares in points, with its interval."""
    value, low, high = (f"{100 * x:+.1f}" for x in figure)
    return f"{value} points ({low} to {high})"


def percent(share: float | None) -> str:
    """A share, which may be unknown."""
    return "not known" if share is None else f"{share:.1%}"
