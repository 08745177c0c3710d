"""Rows of embeddings that have no token."""

from __future__ import annotations

_LEAST_MULTIPLE = 8


def are_padding(surplus: int, rows: int) -> bool:
    """Whether ``surplus`` rows beyond the tokens are padding, as trainers add it for GPUs.

    They round the rows up to a multiple of 8, 64, 128 or so: there are fewer of them than that
    multiple. One row too many, as after a mix-up of tokenizers, is none.

    >>> are_padding(61, 32064), are_padding(413, 60928), are_padding(1, 49954)
    (True, True, False)
    """
    multiple = rows & -rows  # the largest power of two that divides them
    return multiple >= _LEAST_MULTIPLE and 0 < surplus < multiple
