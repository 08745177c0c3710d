"""Rows in blocks of few bits, whose single elements have no bound.

llama.cpp chooses the scales of such blocks, and of some types the elements, for the least sum of
squares, weighed by the elements themselves or by an importance matrix. So any single element may
be far off. Rows as a whole are not, and over a matrix errors cancel in what the adapters added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING

import torch

from ..messages import tr

if TYPE_CHECKING:
    from .elementwise import TensorResult

# By how much a row may be off, as a share of its norm. That of normally distributed rows is a third
# or less of it (measured: 0.018 for Q6_K, 0.08 for Q4_0, 0.3 for Q2_K, 0.49 for IQ1_S); a row that
# is zero, another row or of another sign is off by 1 or more.
FURTHEST_ROW: Mapping[str, float] = {
    **dict.fromkeys(("Q6_K",), 0.25),
    **dict.fromkeys(("Q5_0", "Q5_1", "Q5_K"), 0.3),
    **dict.fromkeys(("Q4_0", "Q4_1", "Q4_K", "IQ4_NL", "IQ4_XS"), 0.4),
    **dict.fromkeys(("Q3_K", "IQ3_S", "IQ3_XXS"), 0.6),
    **dict.fromkeys(("Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS"), 0.8),
    **dict.fromkeys(("IQ1_S", "IQ1_M"), 0.95),
}


def find_far_rows(
    kind: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: torch.Tensor
) -> torch.Tensor:
    """Which rows (float64, (rows, columns)) are too far from what they must be (bool)."""
    norms = torch.linalg.vector_norm(expected, dim=1)
    allowed = norms * FURTHEST_ROW[kind] + torch.linalg.vector_norm(tolerance.double(), dim=1)
    near: torch.Tensor = torch.linalg.vector_norm(actual - expected, dim=1) <= allowed
    return ~near  # NaN is far


def limit_of_share(kind: str, noise: float, squares: float, sigmas: float) -> float:
    """By how much the share of what was added may miss 1.

    ``noise`` is the sum of squares of the products of which the share is a mean, ``squares`` what
    it is divided by. Blocks shrink what they hold by about the square of their error.
    """
    return FURTHEST_ROW[kind] ** 2 + sigmas * sqrt(noise) / squares


def describe_block_checks(results: Sequence[TensorResult]) -> tuple[list[str], list[str]]:
    """Lines about tensors in such blocks: what was checked, and what was not."""
    if not results:
        return [], []
    kinds = _list_kinds(results)
    checked = [
        tr(
            "in blocks  {n_results} tensors of {kinds}: each row, and what adapters add",
            n_results=len(results),
            kinds=kinds,
        )
    ]
    unchecked = [
        tr(
            "single elements of {n_results} tensors of {kinds}: llama.cpp bounds only their sums",
            n_results=len(results),
            kinds=kinds,
        )
    ]
    if unseen := [result for result in results if result.is_share_unseen]:
        unchecked.append(
            tr(
                "what adapters add to {n_unseen} tensors of {kinds}: it is lost in "
                "the error of their blocks ({name}{text})",
                n_unseen=len(unseen),
                kinds=_list_kinds(unseen),
                name=unseen[0].name,
                text=", ..." if unseen[1:] else "",
            )
        )
    return checked, unchecked


def _list_kinds(results: Iterable[TensorResult]) -> str:
    return ", ".join(sorted({str(result.kind).lower() for result in results}))
