"""Branches that compute in 8 bits: their place in a manifest."""

from __future__ import annotations

from dataclasses import dataclass

from fxelastic.spec.json_fields import Fields, show

#: The kind of branches that compute in 8 bits.
INT8 = "int8"

#: Formats of the products, by the types of activations and weights. Activations of ``u8s8`` and
#: ``s8s8`` have fixed scales; ``dynamic`` finds the scale of each activation when it runs.
UNSIGNED, DYNAMIC, SIGNED = FORMATS = ("u8s8", "dynamic", "s8s8")

#: Appended to a format whose weights use 7 of their 8 bits, so that sums of two products fit into
#: 16 bits: x86 processors without VNNI add them up so.
REDUCED = "-reduced"

#: How the ranges of activations are found.
RANGES = ("minmax", "entropy", "percentile")

_FORMAT = r"[a-z0-9]+(-[a-z0-9]+)*"


@dataclass(frozen=True)
class Quantised:
    """How a branch of kind ``int8`` was made from another branch.

    Attributes:
        source: The id of the float branch.
        format: One of `FORMATS`, or one with `REDUCED` appended.
        error: Mean squared difference of its outputs from the float branch's, relative to the
            variance of those, on calibration data that the scales were not chosen on.
        tolerance: The largest such error that a check accepts.
        left_float: Names of the operators with weights that still compute in float, because they
            lost too much.
    """

    source: str
    format: str
    error: float
    tolerance: float
    left_float: tuple[str, ...] = ()

    @property
    def reduced(self) -> bool:
        """Whether its weights use 7 of their 8 bits."""
        return self.format.endswith(REDUCED)

    def to_json(self) -> dict[str, object]:
        """The fields as an object for ``json.dumps``."""
        return {
            "source": self.source,
            "format": self.format,
            "error": self.error,
            "tolerance": self.tolerance,
            "left_float": list(self.left_float),
        }

    @classmethod
    def from_json(cls, fields: Fields) -> Quantised:
        """Read the object that `to_json` returns.

        Raises:
            BundleError: A field is missing, unknown, of the wrong type, or out of range.
        """
        found = cls(
            fields.text("source"),
            fields.text("format", _FORMAT, "a format such as u8s8"),
            fields.number("error"),
            fields.number("tolerance"),
            fields.texts("left_float"),
        )
        fields.end()
        return found


@dataclass(frozen=True)
class Scale:
    """The 8-bit form of a value: ``scale * (stored - zero_point)`` with stored from 0 to 255.

    Every branch that reads or computes the value in 8 bits uses this scale, so that neighbours
    agree. Signed formats store 128 less.

    Attributes:
        scale: The step between two neighbouring numbers; a float32.
        zero_point: The stored number of zero.
    """

    scale: float
    zero_point: int

    def to_json(self) -> dict[str, object]:
        """The fields as an object for ``json.dumps``."""
        return {"scale": self.scale, "zero_point": self.zero_point}

    @classmethod
    def from_json(cls, fields: Fields) -> Scale:
        """Read the object that `to_json` returns.

        Raises:
            BundleError: A field is missing, unknown, of the wrong type, or out of range.
        """
        scale = fields.number("scale")
        if not scale > 0:
            raise fields.error("scale", "is not above 0", expected="above 0", got=show(scale))
        found = cls(scale, fields.count("zero_point", 0, 255))
        fields.end()
        return found


@dataclass(frozen=True)
class Quantisation:
    """How the branches of kind ``int8`` of a bundle were made.

    Attributes:
        ranges: How the ranges of activations were found, one of `RANGES`.
        n_samples: The number of samples that the ranges were found on.
        n_held_out: The number of samples that the errors were measured on.
        refused: For each branch that was not made its id, and the reason.
        subnets: The texts of the subnets that were assembled and compared with the chain of their
            branches; empty without verification.
    """

    ranges: str
    n_samples: int
    n_held_out: int
    refused: tuple[tuple[str, str], ...] = ()
    subnets: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The fields as an object for ``json.dumps``."""
        return {
            "ranges": self.ranges,
            "n_samples": self.n_samples,
            "n_held_out": self.n_held_out,
            "refused": [{"branch": branch, "reason": reason} for branch, reason in self.refused],
            "subnets": list(self.subnets),
        }

    @classmethod
    def from_json(cls, fields: Fields) -> Quantisation:
        """Read the object that `to_json` returns.

        Raises:
            BundleError: A field is missing, unknown, of the wrong type, or out of range.
        """
        found = cls(
            fields.text("ranges", "|".join(RANGES), "one of " + ", ".join(RANGES)),
            fields.count("n_samples", 1),
            fields.count("n_held_out", 1),
            fields.objects("refused", lambda item: (item.text("branch"), item.text("reason"))),
            fields.texts("subnets"),
        )
        fields.end()
        return found


def int8_id(source: str, format: str) -> str:
    """The id of a branch of kind ``int8``: ``u8s8+original@3``.

    Args:
        source: The id of its float branch.
        format: Its format.
    """
    return f"{format}+{source}"
