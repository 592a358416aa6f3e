"""How the files of a bundle hold the weights of new branches."""

from __future__ import annotations

from dataclasses import dataclass

from fxelastic.spec.json_fields import Fields

#: Precisions of stored weights.
STORAGES = ("fp32", "fp16")


@dataclass(frozen=True)
class Storage:
    """Weights of new branches in less precision than they are computed with.

    Attributes:
        format: The precision, ``fp16``.
        max_error: The largest squared error of a branch's outputs that rounding causes, relative to
            their variance, on random inputs.
        branch: The branch with that error.
    """

    format: str
    max_error: float
    branch: str

    def to_json(self) -> dict[str, object]:
        """The fields as an object for ``json.dumps``."""
        return {"format": self.format, "max_error": self.max_error, "branch": self.branch}

    @classmethod
    def from_json(cls, fields: Fields) -> Storage:
        """Read the object that `to_json` returns.

        Raises:
            BundleError: A field is missing, unknown, of the wrong type, or out of range.
        """
        found = cls(
            fields.text("format", "fp16", "fp16"),
            fields.number("max_error"),
            fields.text("branch"),
        )
        fields.end()
        return found
