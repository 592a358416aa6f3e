"""The files of a bundle, as listed in its manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fxelastic.spec.json_fields import Fields, show

#: Name of the file that describes all other files.
MANIFEST_NAME = "manifest.json"
#: The file of the signature over it, if the bundle is signed.
SIGNATURE_NAME = "manifest.sig.json"

#: Folder of the ONNX files, and its subfolder for tensors stored in separate files.
BRANCHES_FOLDER = "branches"
DATA_FOLDER = "branches/data"

_PART = r"[A-Za-z0-9_@#+-][A-Za-z0-9_.@#+-]{0,199}"
_PATH = re.compile(rf"{_PART}(?:/{_PART}){{0,7}}")
_SHA256 = r"[0-9a-f]{64}"


@dataclass(frozen=True)
class FileInfo:
    """One file of a bundle.

    Attributes:
        path: Relative to the bundle's folder, separated by ``/``; never leads out of it.
        size_bytes: The size of the file, in bytes.
        sha256: SHA-256 digest of its bytes, in hexadecimal.
    """

    path: str
    size_bytes: int
    sha256: str

    def to_json(self) -> dict[str, object]:
        """The file as an object for ``json.dumps``."""
        return {"file": self.path, "size_bytes": self.size_bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, fields: Fields) -> FileInfo:
        """Read the fields that `to_json` writes, and no others.

        Raises:
            BundleError: A field is missing or has another type, or the path may lead out of the
                bundle.
        """
        path = fields.text("file")
        if not is_inside(path):
            raise fields.error(
                "file",
                "is not a path inside the bundle",
                expected="a relative path of letters, digits and _.@#+- without '..'",
                got=show(path),
            )
        return cls(path, fields.count("size_bytes"), fields.text("sha256", _SHA256, "a sha256"))


def is_inside(path: str) -> bool:
    """Whether a path is relative, stays inside its folder, and is in canonical form."""
    # The pattern lets no part begin with a dot, which excludes ".." and hidden files.
    own = (MANIFEST_NAME, SIGNATURE_NAME)
    return _PATH.fullmatch(path) is not None and path.casefold() not in own


def file_stem(branch_id: str, taken: set[str]) -> str:
    """A file name for a branch, without its extension; adds it to ``taken``.

    Args:
        branch_id: The branch's id.
        taken: Names in use, case-folded: some file systems do not distinguish ``A`` from ``a``.
    """
    base = re.sub(r"[^A-Za-z0-9_.@#+-]", "_", branch_id)[:150]
    name, n = base, 2
    while name.casefold() in taken:
        name, n = f"{base}_{n}", n + 1
    taken.add(name.casefold())
    return name
