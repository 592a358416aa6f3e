"""Closed-form factorisations of a linear map, by the second moments of what it reads or returns.

All of them work in float64 and take no inverse of a moment, so that rank-deficient moments need
no other method.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Directions with less than this share of the largest eigenvalue count as empty.
_EMPTY = 1e-12


def root(moment: Tensor) -> Tensor:
    """The symmetric square root of a second moment.

    Args:
        moment: ``[..., k, k]``, symmetric, positive semidefinite up to rounding.

    Returns:
        ``[..., k, k]`` in float64.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    half: Tensor = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
    return half


def by_outputs(matrix: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factorisation of a map that is nearest to it in its outputs, by the outputs' moment.

    Keeping the ``rank`` leading principal directions of the outputs minimises the mean squared
    error of the outputs. With inputs of second moment C these are the left singular vectors of
    ``matrix @ root(C)``, and the error is the sum of the dropped singular values' squares.

    Args:
        matrix: The map ``[n_out, k]``.
        moment: Second moment of the outputs ``[n_out, n_out]``.
        rank: The number of directions to keep.

    Returns:
        Factors ``[n_out, rank]`` and ``[rank, k]`` in float64, the most important direction first,
        scaled so that both have rows and columns of one norm.
    """
    _, vectors = torch.linalg.eigh(moment.double())
    left = vectors.flip(1)[:, :rank]
    return balanced(left, left.mT @ matrix.double())


def by_inputs(matrix: Tensor, moment: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """The same factorisation from the inputs' second moment, for maps with more outputs.

    Args:
        matrix: The map ``[n_out, k]``, or several ``[..., n_out, k]``.
        moment: Second moment of the inputs ``[k, k]``, or several ``[..., k, k]``; None for white
            noise, whose second moment is the identity.
        rank: The number of directions to keep, at most ``k``.

    Returns:
        As `by_outputs`.
    """
    matrix = matrix.double()
    half = None if moment is None else root(moment)
    product = matrix.mT @ matrix
    values, vectors = torch.linalg.eigh(product if half is None else half @ product @ half)
    values, vectors = values.flip(-1)[..., :rank], vectors.flip(-1)[..., :rank]
    # Left singular vectors of `matrix @ half`; those of empty directions are zero.
    empty = values <= _EMPTY * values[..., :1].clamp_min(0)
    scale = torch.where(empty, 0.0, values.clamp_min(1e-300).rsqrt())
    # The product of the small ones first: `matrix @ half` is as large as the matrix.
    left = matrix @ (vectors if half is None else half @ vectors) * scale.unsqueeze(-2)
    if half is None:
        # The same as `left.mT @ matrix`.
        return balanced(left, (scale * values.clamp_min(0)).unsqueeze(-1) * vectors.mT)
    return balanced(left, left.mT @ matrix)


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Scale two factors so that each direction has the same norm in both; their product stays."""
    down, up = right.norm(dim=-1), left.norm(dim=-2)
    scale = torch.where((down > 0) & (up > 0), (down / up.clamp_min(1e-300)).sqrt(), 1.0)
    return left * scale.unsqueeze(-2), right / scale.unsqueeze(-1)


def blockwise(matrix: Tensor, moment: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """Two block-diagonal maps with a shuffle between them that come nearest to a map.

    The block of outputs b and inputs a has the rank ``n_out / groups**2``.

    Args:
        matrix: The map ``[n_out, n_in, taps]``.
        moment: Second moment of the channels ``[n_in, n_in]``; None for white noise.
        groups: The number of groups; ``groups**2`` divides ``n_out``, and it divides ``n_in``.

    Returns:
        The first map ``[n_out, n_in / groups, taps]``, whose group a holds the directions for
        output groups 0, 1, …; the second ``[n_out, n_out / groups]``, whose group b reads the
        directions that the input groups hold for it, in their order.
    """
    n_out, n_in, taps = matrix.shape
    rows, columns, rank = n_out // groups, n_in // groups, n_out // groups**2
    first = matrix.new_zeros((groups, groups, rank, columns, taps), dtype=torch.float64)
    second = matrix.new_zeros((groups, rows, groups, rank), dtype=torch.float64)
    for a in range(groups):
        inputs = slice(a * columns, (a + 1) * columns)
        part = None if moment is None else moment[inputs, inputs].double()
        for b in range(groups):
            block = matrix[b * rows : (b + 1) * rows, inputs].double()
            flat = block.flatten(1)
            if taps == 1 and rank <= columns < rows:
                # The smaller of the two eigenproblems.
                left, right = by_inputs(flat, part, rank)
            else:
                seen = block if part is None else torch.einsum("oit,ij->ojt", block, part)
                left, right = by_outputs(flat, seen.flatten(1) @ flat.mT, rank)
            first[a, b] = right.unflatten(1, (columns, taps))
            second[b, :, a] = left
    return first.reshape(n_out, columns, taps), second.reshape(n_out, rows)
