"""Whether the inputs of a result were a model and a difference, as the signs of norms tell."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import VerificationError
from ..messages import tr
from ..tensors.lazy import Checkpoint
from .expected import MergeInputs

_NORM = "model.norm.weight"
# These keep the norm's weight itself, which no training turns negative.
_TYPES = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3")


def check_norms(inputs: MergeInputs) -> Iterator[VerificationError]:
    """A fault for a base that is a delta, and for a delta that is a whole model."""
    if inputs.base.config.get("model_type", "llama") not in _TYPES:
        return
    if _measure_negative_share(inputs.base) > 0.25:
        yield VerificationError(
            tr("the base is no model but a difference between two, to judge by its final norm"),
            tensor=_NORM,
            expected=tr("hardly any negative weights"),
            found=tr(
                "{measure_negative_share:.0%} negative or zero",
                measure_negative_share=_measure_negative_share(inputs.base),
            ),
            remedy=tr("merge into the model that the difference belongs to"),
        )
    if inputs.dense is None or inputs.sign < 0 or _NORM not in inputs.dense.tensors:
        return
    base = inputs.base.tensors[_NORM].without_digest().read().double()
    delta = inputs.dense.tensors[_NORM].without_digest().read().double()
    if base.shape == delta.shape and 2 * float(base @ delta) > float(base @ base):
        yield VerificationError(
            tr("the delta is a whole model, to judge by its final norm"),
            tensor=_NORM,
            expected=tr("a difference, around zero"),
            found=tr("values around {mean:.3g}", mean=float(delta.mean())),
            remedy=tr("nothing has to be added to it"),
        )


def _measure_negative_share(checkpoint: Checkpoint) -> float:
    """Share of the final norm's weights that are not positive; 0 where there is none."""
    norm = checkpoint.tensors.get(_NORM)
    if norm is None:
        return 0.0
    values = norm.without_digest().read().float()
    return float((values <= 0).float().mean())
