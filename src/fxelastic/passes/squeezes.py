"""Name the dimensions that ``squeeze()`` removes, so that it never removes the batch."""

from __future__ import annotations

import torch
from torch import fx


def name_squeezed_dimensions(graph: fx.Graph) -> None:
    """Rewrite ``squeeze()`` of a tensor with a batch as ``squeeze(dims)``, in place.

    Without dimensions it drops the batch of a single sample, too. Exporters, which have to know how
    many dimensions there are, drop the others alone; so does the capture then.

    Args:
        graph: A functional graph.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.squeeze.default:
            continue
        (source,) = node.args
        sizes = source.meta["val"].shape
        if not any(isinstance(size, torch.SymInt) for size in sizes):
            continue
        # A size that is an int was the same for every batch; it is compared, not guarded on.
        dims = [i for i, size in enumerate(sizes) if isinstance(size, int) and size == 1]
        if dims:
            node.target = torch.ops.aten.squeeze.dims
            node.args = (source, dims)
        else:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
