"""The fault of a tensor whose numbers are not what its inputs make of it, in words."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import VerificationError
from ..tensors.lazy import LazyTensor
from .block_rows import FURTHEST_ROW
from .elementwise import TensorResult


def check_numbers(checked: TensorResult, tensor: LazyTensor) -> Iterator[VerificationError]:
    """Yield a fault where a tensor's elements or rows are not within their tolerance."""
    if checked.is_within_tolerance:
        return
    where, found = "", f"{checked.failed_rows} rows whose random sums are off"
    if checked.first is not None:
        index, build_expected_model, tolerance, actual = checked.first
        where = f"{build_expected_model:.9g} at {list(index)}, give or take {tolerance:.2g}"
        found = (
            f"{actual:.9g}; {checked.failed:,} of {checked.elements:,} elements are off, and the "
            f"random sums of {checked.failed_rows:,} rows"
        )
    if checked.kind is not None:
        furthest = FURTHEST_ROW[checked.kind]
        where = f"rows within {furthest:.0%} of their norm, as blocks of {checked.kind.lower()} are"
        if (limit := checked.limit_of_share) is not None:
            where += f", and {1 - limit:.3g} to {1 + limit:.3g} times what the adapters add"
        found = f"{checked.failed_rows:,} rows that are further off"
    yield VerificationError(
        "a tensor is not what its inputs make of it",
        tensor=tensor.origin,
        expected=where or "sums within rounding",
        found=found + _describe_share(checked),
        remedy=_suggest_remedy(checked),
    )


def _describe_share(checked: TensorResult) -> str:
    share = checked.share_added
    return "" if share is None else f"; what was added is {share:.3g} times what the adapters add"


def _suggest_remedy(checked: TensorResult) -> str:
    share = checked.share_added
    if share is not None and abs(share) < 0.02:
        return "it looks as if the adapter had not been merged: check --lora_model, merge again"
    if checked.name.endswith(("q_proj.weight", "k_proj.weight")) and checked.failed_rows > 1:
        return "rows of q and k in another layout's rotary order would look so; merge again"
    return (
        "check that base, adapters and --lora_weights are those of the merge (lora_alpha and r are "
        "in adapter_config.json); then merge again"
    )
