"""A branch in a bundle: its place in the search space, and its ONNX file."""

from __future__ import annotations

from dataclasses import dataclass

from fxelastic.errors import UsageError
from fxelastic.spec.branch_spec import BranchSpec
from fxelastic.spec.bundle_files import FileInfo
from fxelastic.spec.cache import KeptCache
from fxelastic.spec.json_fields import Fields
from fxelastic.spec.quantised import Quantised
from fxelastic.spec.value_info import NAME


@dataclass(frozen=True)
class Segment:
    """One branch as a file that a device can run.

    The inputs and outputs of the file's graph have the names in ``inputs`` and ``outputs``, in this
    order.

    Attributes:
        spec: The branch's id, kind, interval and size.
        model: Its ONNX file.
        inputs: Names of the values that it reads, stream values before contexts.
        outputs: Names of the values that it computes.
        weight_bytes: The size of its weights, including those in ``data``.
        data: Paths of the files that store tensors outside the ONNX file.
        approximate: Whether it differs from its original by more than the removed parts.
        note: A remark for the user about how it was made; may be empty.
        quantised: How an ``int8`` branch was made from its float branch; None for other kinds.
    """

    spec: BranchSpec
    model: FileInfo
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    data: tuple[str, ...] = ()
    approximate: bool = False
    note: str = ""
    quantised: Quantised | None = None

    @property
    def id(self) -> str:
        """The branch's id."""
        return self.spec.id

    @property
    def file(self) -> str:
        """Path of the ONNX file, relative to the bundle."""
        return self.model.path

    @property
    def size_bytes(self) -> int:
        """Size of the ONNX file, in bytes."""
        return self.model.size_bytes

    @property
    def sha256(self) -> str:
        """SHA-256 digest of the ONNX file."""
        return self.model.sha256

    def to_json(self) -> dict[str, object]:
        """The segment as an object for ``json.dumps``."""
        return {
            "id": self.spec.id,
            "kind": self.spec.kind,
            "start": self.spec.start,
            "stop": self.spec.stop,
            "n_params": self.spec.n_params,
            "flops": self.spec.flops,
            **({"flops_by_size": self.spec.flops_by_size} if self.spec.flops_by_size else {}),
            "approximate": self.approximate,
            "note": self.note,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "weight_bytes": self.weight_bytes,
            **self.model.to_json(),
            "data": list(self.data),
            **({} if self.quantised is None else {"int8": self.quantised.to_json()}),
            **({"cache": [kept.to_json() for kept in self.spec.cache]} if self.spec.cache else {}),
        }

    @classmethod
    def from_json(cls, fields: Fields) -> Segment:
        """Read the object that `to_json` returns.

        Raises:
            BundleError: A field is missing, of the wrong type, or out of range.
        """
        name = fields.text("id")
        kind = fields.text("kind")
        start, stop, n_params, flops = map(fields.count, ("start", "stop", "n_params", "flops"))
        by_size = fields.text("flops_by_size") if "flops_by_size" in fields.value else ""
        cache = fields.objects("cache", KeptCache.from_json) if "cache" in fields.value else ()
        try:
            spec = BranchSpec(name, kind, start, stop, n_params, flops, by_size, cache)
        except UsageError as e:
            problem = f"is not a branch: {e.what}"
            raise fields.error("id", problem, expected=e.expected, got=e.got) from e
        return cls(
            spec,
            FileInfo.from_json(fields),
            fields.texts("inputs", NAME, "a value's name"),
            fields.texts("outputs", NAME, "a value's name"),
            fields.count("weight_bytes"),
            fields.texts("data"),
            fields.flag("approximate"),
            fields.text("note"),
            Quantised.from_json(fields.object("int8")) if "int8" in fields.value else None,
        )
