"""The JSON report of ``fxelastic explain``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fxelastic.ir.operators import operator_name
from fxelastic.ir.values import Values, block_outputs, stream_inputs

if TYPE_CHECKING:
    from fxelastic.ir.block import Block
    from fxelastic.ir.partition import Partition

SCHEMA = "fxelastic.explain/1"


def report(partition: Partition) -> dict[str, Any]:
    """The contents of the text report as data for ``json.dumps``.

    A value is an object with its ``name`` in the graph, ``source`` (the block that computes it,
    or ``input NAME``), ``dtype`` and ``shape`` (strings: a size, or an expression of ``N``).
    """
    values = Values(partition)
    operators = {node.name: operator_name(node) for node in partition.graph.nodes}
    return {
        "schema": SCHEMA,
        "model": partition.model_name,
        "gamma": partition.gamma,
        "fusion": partition.fusion.name,
        "dynamic_batch": partition.dynamic_batch,
        "batched": list(partition.batched),
        "batch_dims": dict(partition.batch_dims),
        "batch_reason": partition.batch_reason,
        "n_params": partition.n_params,
        "max_block_params": int(partition.max_block_params),
        "flops": sum(block.flops for block in partition.blocks),
        "inputs": [_value(name, values) for name in partition.signature.inputs],
        "results": [_value(name, values) for name in values.results()],
        "blocks": [_block(block, partition, values, operators) for block in partition.blocks],
        "soft_fusions": [
            {
                "rule": fusion.rule,
                "producer": fusion.producer,
                "consumer": fusion.consumer,
                "reason": fusion.reason,
            }
            for fusion in partition.soft_fusions
        ],
        "untaken_cuts": [
            {"value": cut.value, "block": cut.block, "reason": cut.reason}
            for cut in partition.untaken_cuts
        ],
        "opened_modules": [asdict(note) for note in partition.opened_modules],
        "unused_params": list(partition.unused_params),
        "opaque": [{"path": path, "reason": reason} for path, reason in partition.opaque],
        "warnings": list(partition.warnings),
    }


def _block(
    block: Block, partition: Partition, values: Values, operators: dict[str, str]
) -> dict[str, Any]:
    return {
        "name": block.name,
        "kind": block.kind,
        "path": block.path,
        "n_params": block.n_params,
        "share": block.n_params / partition.n_params if partition.n_params else 0.0,
        "flops": block.flops,
        "flops_by_size": block.flops_by_size,
        "inputs": [_value(name, values) for name in stream_inputs(block)],
        "context": [_value(name, values) for name in block.context],
        "outputs": [_value(name, values) for name in block_outputs(block)],
        "params": list(block.params),
        "shared_params": list(block.shared_params),
        "operators": [operators.get(name, "") for name in block.nodes],
        "nodes": list(block.nodes),
        "reason": block.reason,
    }


def _value(name: str, values: Values) -> dict[str, Any]:
    kind = values.type(name)
    return {
        "name": name,
        "source": values.source(name),
        "dtype": kind.dtype,
        "shape": list(kind.shape),
    }
