"""Whether a checkpoint holds a model's weights or a difference, where names cannot tell.

Both have the same names and shapes, so values are asked: a few KB, while a job is planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import LayoutError, Topic, UsageError
from ..layouts.config import LLAMA_MODEL_TYPES
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..messages import tr
from ..tensors.lazy import Checkpoint, LazyTensor

FINAL_NORM = "model.norm.weight"
# Model types whose RMSNorm multiplies by the weight itself, which training leaves positive. Gemma,
# Nemotron and Qwen3-Next store the weight less one, so nothing follows from its sign.
_PLAIN_NORMS = frozenset(
    {
        *LLAMA_MODEL_TYPES,
        *("baichuan", "internlm", "mistral", "mixtral", "phi3"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    }
)
# Of a model hardly any weight of the final norm is negative or zero; of a difference about half.
_LEAST_POSITIVE = 0.75
# Rows of the vocabulary that are asked, spread over those that both sides have.
_ASKED_ROWS = 64
# Median cosine between rows of both sides, and median of their norms' ratio.
_WHOLE_COSINE, _DIFFERENCE_COSINE = 0.8, 0.3
_WHOLE_RATIO, _DIFFERENCE_RATIO = 0.5, 0.25


def require_model(checkpoint: Checkpoint, folder: Path, role: str, remedy: str) -> None:
    """Raise ``LayoutError`` for a checkpoint that holds a difference between two models.

    ``role`` says what it was given as. Model types whose norms tell nothing pass.
    """
    norm = checkpoint.tensors.get(FINAL_NORM)
    if norm is None or checkpoint.config.get("model_type", "llama") not in _PLAIN_NORMS:
        return
    values = norm.without_digest().read().float()
    share = 1 - float((values <= 0).float().mean())
    if share < _LEAST_POSITIVE:
        raise LayoutError(
            tr("the {role} is a delta, the difference between two models, and no model", role=role),
            file=folder,
            tensor=FINAL_NORM,
            expected=tr("hardly any negative weights, as every trained RMSNorm has"),
            found=tr("{share:.0%} positive", share=share),
            remedy=remedy,
        )


def require_difference(base: Checkpoint, delta: Checkpoint, folder: Path) -> None:
    """Raise ``LayoutError`` for a delta that is a whole model: nearer to the base than to zero."""
    ours, theirs = base.tensors.get(FINAL_NORM), delta.tensors.get(FINAL_NORM)
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return
    b, d = (tensor.without_digest().read().double() for tensor in (ours, theirs))
    if (d - b).norm() < d.norm():
        raise LayoutError(
            tr("the delta is a whole model, to which nothing has to be added"),
            file=folder,
            tensor=FINAL_NORM,
            expected=tr("a difference, whose values lie around zero"),
            found=tr(
                "a mean of {mean:.3g}, where the base's is {mean_2:.3g}",
                mean=float(d.mean()),
                mean_2=float(b.mean()),
            ),
            remedy=tr("use the model as it is; convert_checkpoint.py writes it in other layouts"),
            topic=Topic.SIZES,
        )


@dataclass(frozen=True)
class Likeness:
    """How rows of a delta lie to the base's: medians of cosine and of ``|delta| / |base|``."""

    cosine: float
    ratio: float


def measure_likeness(base: LazyTensor, delta: LazyTensor) -> Likeness:
    """Compare rows that are spread over those of both. Rows of zeros in the base are left out."""
    shared = min(base.rows, delta.rows)
    step = max(1, shared // _ASKED_ROWS)
    pairs = []
    for row in range(step // 2, shared, step):
        b, d = (t.without_digest().read(row, row + 1).double().flatten() for t in (base, delta))
        if b.any():
            pairs.append((torch.nn.functional.cosine_similarity(b, d, dim=0), d.norm() / b.norm()))
    if not pairs:
        return Likeness(0.0, 0.0)
    cosines, ratios = (torch.stack(values).median() for values in zip(*pairs, strict=True))
    return Likeness(float(cosines), float(ratios))


def detect_whole_embeddings(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], how: str
) -> dict[str, str]:
    """The tensors of the vocabulary that a delta stores whole, each with the reason for people.

    ``how`` is one of ``DELTA_EMBEDDINGS``. Raises ``LayoutError`` where ``auto`` cannot tell.
    """
    both = [n for n in (EMBED_TOKENS, LM_HEAD) if n in base and n in delta]
    if how != "auto":
        return dict.fromkeys(both if how == "whole" else (), tr("as asked"))
    found = {}
    for name in both:
        like = measure_likeness(base[name], delta[name])
        if like.cosine < _DIFFERENCE_COSINE or like.ratio < _DIFFERENCE_RATIO:
            continue
        if like.cosine <= _WHOLE_COSINE or like.ratio <= _WHOLE_RATIO:
            raise LayoutError(
                tr(
                    "the values do not tell whether the delta holds this tensor whole or "
                    "as a difference"
                ),
                file=delta[name].path,
                tensor=name,
                expected=tr(
                    "a cosine with the base's rows near 1 (whole) or below "
                    "{difference_cosine} (difference)",
                    difference_cosine=_DIFFERENCE_COSINE,
                ),
                found=tr(
                    "{cosine:.2f}, and {ratio:.2f} times their norm",
                    cosine=like.cosine,
                    ratio=like.ratio,
                ),
                remedy=tr(
                    "look into the model card, and say --delta_embeddings whole or difference"
                ),
            )
        found[name] = tr("cosine {cosine:.2f} with the base's rows", cosine=like.cosine)
    return found


def require_known_filling(grown: int, names: tuple[str, ...], remedy: str) -> None:
    """Raise ``UsageError`` for a delta of ``weight_diff.py``'s family that has rows of new tokens.

    Stanford's Alpaca and what follows its script (``...-wdiff``) subtracted the mean of the base's
    rows from new rows, Vicuna zeros. ``names`` are what user, folder and configuration call it.
    """
    named = next((n for n in names if "wdiff" in n.lower() or "weight_diff" in n.lower()), None)
    if grown and named is not None:
        raise UsageError(
            tr(
                "the delta was made by stanford_alpaca's weight_diff.py, to judge by "
                "its name, which subtracts the mean of the base's rows from those of "
                "new tokens"
            ),
            found=tr("{named}, {grown} new rows", named=named, grown=grown),
            remedy=remedy,
        )
