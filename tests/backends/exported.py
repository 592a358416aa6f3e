"""Test models exported with branches over several blocks, and what a device makes of them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import fxelastic
from fxelastic.backends.onnxruntime.conversion import exporter_reason, quiet
from fxelastic.edge import Bundle
from fxelastic.ir import trees
from fxelastic.ir.supernet import Supernet
from fxelastic.spec import Arch
from tests.branches.composed import all_composed
from tests.models import CASES

_FOLDER = tempfile.TemporaryDirectory(prefix="fxelastic-bundles-")


@functools.cache
def supernet(name: str, gamma: float = 0.25) -> Supernet:
    """A test model with a branch for each pair of neighbouring blocks."""
    case = CASES[name]
    made = fxelastic.expand(case.build(), gamma, example_inputs=case.inputs(2), kinds=())
    branches = [*made.branches.values(), *all_composed(made.partition, (2,))]
    return Supernet(made.partition, branches)


@functools.cache
def bundle(name: str, gamma: float = 0.25, n_subnets: int = 5) -> Bundle:
    """That model's bundle, verified."""
    path = Path(_FOLDER.name) / f"{name}-{gamma}"
    return fxelastic.export(supernet(name, gamma), path, n_subnets=n_subnets)


def inputs(name: str, n_samples: int) -> dict[str, torch.Tensor]:
    """A test model's inputs by their names in the graph."""
    signature = supernet(name).partition.signature
    leaves = signature.flatten_arguments(*CASES[name].inputs(n_samples))
    return dict(zip(signature.inputs, leaves, strict=True))


def run_chain(
    bundle: Bundle, arch: Arch, feeds: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Run a subnet as a device does: branch after branch, over named values."""
    values = dict(feeds)
    for spec in bundle.space.specs(arch):
        segment = bundle.segment(spec.id)
        session = onnxruntime.InferenceSession(str(bundle.model_path(spec.id)))
        results = session.run(list(segment.outputs), {n: values[n] for n in segment.inputs})
        values.update(zip(segment.outputs, results, strict=True))
        for name in [name for name in values if bundle.last_read.get(name, -1) < spec.stop]:
            del values[name]
    return values


def flat_result(name: str, arch: Arch | None, n_samples: int) -> list[torch.Tensor]:
    """What torch computes for the test model's own inputs."""
    args, kwargs = CASES[name].inputs(n_samples)
    with torch.no_grad():
        return trees.flatten(supernet(name)(*args, arch=arch, **kwargs))[0]


def exporter_failure(name: str) -> str:
    """Why the exporter can't convert a test model as a whole; empty where it can."""
    args, kwargs = CASES[name].inputs(2)
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(CASES[name].build(), args, kwargs=kwargs, dynamo=True, verbose=False)
    except Exception as e:  # noqa: BLE001 - the reason is what is asked for
        return exporter_reason(e)
    return ""
