"""The bytes of a model that were verified: those, and no others, run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fxelastic.edge.private_folder import PrivateFolder


@dataclass(frozen=True)
class VerifiedModel:
    """An ONNX file as it was when its digest was compared.

    A file can be replaced between its verification and its use. So it is read once, and sessions
    are made from the bytes that were hashed. Files with external data are copied into a private
    folder while they are hashed, and sessions map the copies.

    Attributes:
        name: The file, for messages.
        data: Its bytes.
        place: The folder that the locations of its external data are relative to; None if it has
            no external data.
        owner: Keeps the private folder as long as this object.
    """

    name: str
    data: bytes = field(repr=False)
    place: Path | None = None
    owner: PrivateFolder | None = None
