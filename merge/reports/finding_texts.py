"""The words of findings: what was found, what it means, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..messages import tr
from .number_texts import format_percent, format_value


class FindingText(NamedTuple):
    """A finding for people, in messages that can be translated."""

    title: str
    meaning: str
    action: str


def describe_finding(finding: Mapping[str, Any]) -> FindingText:
    """The words of a finding; of a code from a later release, the code itself and its values."""
    values: Mapping[str, Any] = finding["values"]
    make = _TEXTS.get(finding["code"])
    return FindingText(finding["code"], str(values), "") if make is None else make(values)


def _describe_idle_adapter(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr(
            "Adapter {number} ({name}) adds nothing",
            number=values["adapter"],
            name=values["name"],
        ),
        tr(
            "Every tensor is as it would be without this adapter: its lora_B is zero, or its "
            "weight is 0."
        ),
        tr(
            "Check that its training really ran and was saved at the end, and that --lora_weights "
            "is meant so."
        ),
    )


def _describe_unchanged(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr("The delta changes nothing"),
        tr("Base and result hold the same values in every tensor that was measured."),
        tr("Check that the delta is the published one and not an empty placeholder."),
    )


def _describe_order(values: Mapping[str, Any]) -> FindingText:
    order = ", ".join(values["order"])
    if values.get("below") is None:
        meaning = tr("The adapters were merged in this order: {order}.", order=order)
    else:
        meaning = tr(
            "{adapter} was trained on top of {below}, and the order was: {order}.",
            adapter=values["adapter"],
            below=values["below"],
            order=order,
        )
    return FindingText(
        tr("The adapters are in an order that nobody published"),
        meaning,
        tr(
            "If this is no experiment, merge again without --allow_unknown_combination: the "
            "message then names the published order."
        ),
    )


def _describe_nonfinite(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr("Tensors with NaN or infinite values: {count}", count=values["tensors"]),
        tr(
            "A model with such values answers nonsense, or nothing. The first ones are: {names}.",
            names=", ".join(values["names"]),
        ),
        tr("Fetch the inputs again; if they are the published ones, choose others."),
    )


def _describe_large_values(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr("Values near the limit of float16"),
        tr(
            "{name} holds {value}, and float16 ends at 65504. In half precision a sum of two "
            "such values is infinite. Tensors concerned: {count}.",
            name=values["name"],
            value=format_value(values["largest"]),
            count=values["tensors"],
        ),
        tr("Write the result with --dtype bfloat16, and run it in bfloat16 or float32."),
    )


def _describe_untrained_rows(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr("New rows of {tensor} look untrained", tensor=values["tensor"]),
        tr(
            "The {rows} new rows are nearly all of the same length (median {median}), as "
            "random or copied rows are. Training pulls them apart.",
            rows=f"{values['rows']:,}",
            median=format_value(values["median"]),
        ),
        tr(
            "Check that the adapter saved its embeddings (modules_to_save); otherwise the model "
            "has to be trained on before it can use its new tokens."
        ),
    )


def _describe_filled_rows(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr("Rows that this merge has filled: {rows}", rows=f"{values['rows']:,}"),
        tr(
            "No adapter has rows for these tokens. They begin as --new_token_init {init} says, "
            "and no training has seen them.",
            init=values["init"],
        ),
        tr("Train the model on before using it; this is the base for that training."),
    )


def _describe_rounding_loss(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr(
            "Rounding to {dtype} takes {share} of the change",
            dtype=values["dtype"],
            share=format_percent(values["share"]),
        ),
        tr(
            "What the adapters add is so small beside the weights that the digits of {dtype} do "
            "not hold all of it. Worst is {name} with {worst}. Tensors over the threshold: "
            "{count}.",
            dtype=values["dtype"],
            name=values["name"],
            worst=format_percent(values["worst"]),
            count=values["tensors"],
        ),
        tr(
            "Write --dtype float16 rather than bfloat16, or float32; or keep base and adapter "
            "apart and let PEFT add them when the model runs."
        ),
    )


def _describe_outliers(values: Mapping[str, Any]) -> FindingText:
    return FindingText(
        tr("{module} changed far more in some layers than in others", module=values["module"]),
        tr(
            "In layer {layers} the relative change is up to {relative}, {ratio} times the "
            "median of all layers.",
            layers=", ".join(map(str, values["layers"])),
            relative=format_percent(values["relative"]),
            ratio=format_value(values["ratio"]),
        ),
        tr(
            "Often this is how the training went. If the model repeats itself or talks nonsense, "
            "try a smaller --lora_weights, or another checkpoint of the adapter."
        ),
    )


_TEXTS: dict[str, Callable[[Mapping[str, Any]], FindingText]] = {
    "adapter_adds_nothing": _describe_idle_adapter,
    "nothing_changed": _describe_unchanged,
    "unusual_order": _describe_order,
    "nonfinite_values": _describe_nonfinite,
    "near_float16_limit": _describe_large_values,
    "new_rows_untrained": _describe_untrained_rows,
    "new_rows_filled": _describe_filled_rows,
    "rounding_loss": _describe_rounding_loss,
    "outlier_layers": _describe_outliers,
}
