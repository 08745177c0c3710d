"""How near elements of a result are to what they must be, in units in the last place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .ulps import INCOMPARABLE, count_ulps, view_as_integers


@dataclass
class Exactness:
    """How near elements are to their float64 values, rounded once to the dtype of the result.

    ``max_ulp`` is the largest distance in units in the last place, ``INCOMPARABLE`` where one side
    alone is NaN or infinite. Elements of quantized blocks are not counted.
    """

    elements: int = 0
    identical: int = 0
    max_ulp: int = 0

    @property
    def share(self) -> float:
        """Share of the elements that are identical; 1 where none is counted."""
        return self.identical / self.elements if self.elements else 1.0

    def add(self, other: Exactness) -> None:
        """Count further elements."""
        self.elements += other.elements
        self.identical += other.identical
        self.max_ulp = max(self.max_ulp, other.max_ulp)

    @classmethod
    def of(cls, found: torch.Tensor, expected: torch.Tensor) -> Exactness:
        """Compare elements with what they must be, both of one dtype and shape; -0 is 0."""
        ours, theirs = found.flatten(), expected.flatten()
        if torch.equal(view_as_integers(ours), view_as_integers(theirs)):
            return cls(len(ours), len(ours))
        places = (view_as_integers(ours) != view_as_integers(theirs)).nonzero().flatten()
        ours, theirs = (view_as_integers(side)[places].view(side.dtype) for side in (ours, theirs))
        apart = torch.full((len(places),), INCOMPARABLE)
        if found.dtype.is_floating_point:
            apart = count_ulps(ours, theirs)
        apart[ours.double() == theirs.double()] = 0
        identical = found.numel() - int(apart.count_nonzero())
        return cls(found.numel(), identical, int(apart.max()))
