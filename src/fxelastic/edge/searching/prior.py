"""What the distortion of branches tells of subnets before any is evaluated.

The prior of two models, of a subnet's score and of every sample's margin: a branch is expected to
cost what its distortion says, and branches that err alike are expected to differ from that alike.
The constants of all three were chosen on a trained supernet of a residual network. Those of the
sums over branches were checked on others; those of what is no sum on an easy one only, where they
changed nothing. Distortions are relative to the features' variance, scores are in logits and
margins in units of a typical one, so that they mean the same for other models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fxelastic.edge.searching.distortion import Distortion
from fxelastic.spec import Arch

Matrix = NDArray[np.float64]

#: Distortion that a branch has at least, as far as uncertainty goes; and at most.
_LEAST, _MOST = 1e-4, 4.0
_UNKNOWN = 1.0  # variance of the cost of a branch whose distortion is not known


class Prior:
    """Subnets as vectors of the new branches they have, and what is expected of these."""

    def __init__(self, distortion: Distortion) -> None:
        """Take the measurement.

        Args:
            distortion: Of the space's branches.
        """
        self.branches = distortion.branches
        # Beyond some error an output has nothing to do with the original's: more is no worse.
        shrunk = np.sqrt(np.minimum(1.0, _MOST / np.maximum(distortion.errors, _LEAST)))
        self.errors = distortion.errors * shrunk**2
        self._products = distortion.products * np.outer(shrunk, shrunk)
        self._distortion = distortion
        self._place = {branch: i for i, branch in enumerate(self.branches)}

    def of(self, archs: Sequence[Arch]) -> Matrix:
        """An array ``(subnets, branches)`` of 0 and 1."""
        found = np.zeros((len(archs), len(self.branches)))
        for row, arch in zip(found, archs, strict=True):
            for branch in arch:
                i = self._place.get(branch)
                if i is not None:
                    row[i] = 1.0
        return found

    def root(self, own: float, common: float) -> Matrix:
        """A root L of the prior covariance L·Lᵀ of what branches cost.

        Args:
            own: Variance of a branch's cost for each unit of its distortion; branches whose
                differences have a product in common share it.
            common: Variance of the cost of a unit of distortion, as all branches of a group share.
        """
        given = self._distortion
        least = np.maximum(0.02 * self.errors, _LEAST)
        covariance = own * (self._products + np.diag(least)) + np.diag(_UNKNOWN * given.unknown)
        for group in range(int(given.groups.max(initial=-1)) + 1):
            errors = np.where(given.groups == group, self.errors, 0.0)
            covariance += common * np.outer(errors, errors)
        try:
            root: Matrix = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            # Branches without a value that counts in some batch are compared on fewer samples than
            # others, and their products may be of no vectors.
            sizes, directions = np.linalg.eigh(covariance)
            root = directions * np.sqrt(np.maximum(sizes, _LEAST * sizes.max()))
        return root


def logits(shares: Matrix) -> Matrix:
    """The log odds of shares; finite at 0 and 1, too."""
    found: Matrix = np.log((shares + 0.002) / (1.002 - shares))
    return found
