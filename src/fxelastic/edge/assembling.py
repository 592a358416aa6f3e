"""Assemble a subnet or a cascade into one ordinary ONNX file."""

from __future__ import annotations

import os
from pathlib import Path

from fxelastic.edge.arguments import check_loaded
from fxelastic.edge.assembly import join
from fxelastic.edge.bundle import Bundle
from fxelastic.edge.cascades.joined import CascadeForm
from fxelastic.edge.model_file import write_model
from fxelastic.errors import UsageError
from fxelastic.spec.bundle_files import MANIFEST_NAME
from fxelastic.spec.cascade import Cascade, Servable


def assemble(bundle: Bundle, arch: Servable, path: str | os.PathLike[str]) -> Path:
    """Join the branches of a subnet, or of a cascade, into one ONNX file.

    The model has all inputs of the original model under their names, even those that the subnet
    does not read, and outputs named as in ``bundle.manifest.results``. Nodes that no result depends
    on are removed; weights that branches share are stored once.

    The model of a cascade decides by itself where each sample leaves. It has a further output,
    ``cascade/left_at``, int64 ``(N,)``: the number of the subnet that gave the sample's result. Its
    thresholds are the default of an optional input, ``cascade/thresholds``, float64.

    Args:
        bundle: The bundle.
        arch: The subnet or the cascade.
        path: The file to write; an existing file is replaced atomically. Weights of more than
            2 GiB are stored in a second file next to it.

    Returns:
        The path.

    Raises:
        UsageError: The arch is not in the bundle's search space, one model can't compute the
            cascade, or the file can't be written or is one of the bundle's own.
        BundleError: A file of the bundle is damaged, or the assembled model is not valid.
    """
    check_loaded(bundle=bundle)
    _check_not_its_own(bundle, Path(path))
    if not isinstance(arch, Cascade):
        return write_model(join(bundle, arch), Path(path), f"subnet {arch}")
    arch.validate(bundle.space)
    model = CascadeForm.of(arch).assembled(bundle, arch.thresholds)
    return write_model(model, Path(path), f"cascade {arch}")


def _check_not_its_own(bundle: Bundle, path: Path) -> None:
    own = {(bundle.path / name).resolve() for name in (MANIFEST_NAME, *bundle.files)}
    if path.resolve() in own:
        raise UsageError(
            f"{path} is a file of the bundle",
            expected="another file to write to",
            got=f"a file in {bundle.path}",
        )
