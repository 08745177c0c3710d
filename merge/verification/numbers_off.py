"""The fault of a tensor whose numbers are not what its inputs make of it, in words."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import VerificationError
from ..messages import tr
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
        tr("a tensor is not what its inputs make of it"),
        tensor=tensor.origin,
        expected=expected,
        found=found + _describe_share(checked),
        remedy=_suggest_remedy(checked),
    )


def _describe_elements(checked: TensorResult) -> tuple[str, str]:
    """What elements must be, and what they are, where each has a tolerance of its own."""
    if checked.first is None:
        return tr("sums within rounding"), tr(
            "{failed_rows} rows whose random sums are off", failed_rows=checked.failed_rows
        )
    index, expected, tolerance, actual = checked.first
    return (
        tr(
            "{expected:.9g} at {index}, give or take {tolerance:.2g}",
            expected=expected,
            index=list(index),
            tolerance=tolerance,
        ),
        tr(
            "{actual:.9g}; {failed:,} of {elements:,} elements are off, and the "
            "random sums of {failed_rows:,} rows",
            actual=actual,
            failed=checked.failed,
            elements=checked.elements,
            failed_rows=checked.failed_rows,
        ),
    )


def _describe_rows(checked: TensorResult) -> tuple[str, str]:
    """The same of rows in blocks whose elements have no bound."""
    assert checked.kind is not None, "only such blocks have a kind"
    expected = tr(
        "rows within {furthest_row:.0%} of their norm, as blocks of {kind} are",
        furthest_row=FURTHEST_ROW[checked.kind],
        kind=checked.kind.lower(),
    )
    if (limit := checked.limit_of_share) is not None:
        expected += tr(
            ", and {value:.3g} to {value_2:.3g} times what the adapters add",
            value=1 - limit,
            value_2=1 + limit,
        )
    return expected, tr(
        "{failed_rows:,} rows that are further off", failed_rows=checked.failed_rows
    )


def _describe_share(checked: TensorResult) -> str:
    share = checked.share_added
    return (
        ""
        if share is None
        else tr("; what was added is {share:.3g} times what the adapters add", share=share)
    )


def _suggest_remedy(checked: TensorResult) -> str:
    share = checked.share_added
    if share is not None and abs(share) < 0.02:
        return tr("it looks as if the adapter had not been merged: check --lora_model, merge again")
    if checked.name.endswith(("q_proj.weight", "k_proj.weight")) and checked.failed_rows > 1:
        return tr("rows of q and k in another layout's rotary order would look so; merge again")
    return tr(
        "check that base, adapters and --lora_weights are those of the merge "
        "(lora_alpha and r are in adapter_config.json); then merge again"
    )
