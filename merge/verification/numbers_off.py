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
    describe = _describe_elements if checked.kind is None else _describe_rows
    expected, found = describe(checked)
    yield VerificationError(
        "a tensor is not what its inputs make of it",
        tensor=tensor.origin,
        expected=expected,
        found=found + _describe_share(checked),
        remedy=_suggest_remedy(checked),
    )


def _describe_elements(checked: TensorResult) -> tuple[str, str]:
    """What elements must be, and what they are, where each has a tolerance of its own."""
    if checked.first is None:
        return "sums within rounding", f"{checked.failed_rows} rows whose random sums are off"
    index, expected, tolerance, actual = checked.first
    return (
        f"{expected:.9g} at {list(index)}, give or take {tolerance:.2g}",
        f"{actual:.9g}; {checked.failed:,} of {checked.elements:,} elements are off, and the "
        f"random sums of {checked.failed_rows:,} rows",
    )


def _describe_rows(checked: TensorResult) -> tuple[str, str]:
    """The same of rows in blocks whose elements have no bound."""
    assert checked.kind is not None, "only such blocks have a kind"
    expected = (
        f"rows within {FURTHEST_ROW[checked.kind]:.0%} of their norm, as blocks of "
        f"{checked.kind.lower()} are"
    )
    if (limit := checked.limit_of_share) is not None:
        expected += f", and {1 - limit:.3g} to {1 + limit:.3g} times what the adapters add"
    return expected, f"{checked.failed_rows:,} rows that are further off"


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
