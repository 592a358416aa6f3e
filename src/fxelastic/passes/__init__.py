"""From a model to a partition: capture, classification, regions, packing; one pass a file."""

from fxelastic.passes.capture import capture
from fxelastic.passes.partitioning import check_gamma, partition_graph

__all__ = ["capture", "check_gamma", "partition_graph"]
