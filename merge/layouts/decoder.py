"""Decoders that are no LLaMA: what their tensors tell without a table of them.

They keep their own names and order, in and out. What is known of each is where its vocabulary is;
every other tensor matters only by the name that an adapter calls it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ..errors import LayoutError
from ..messages import tr
from ..tensors.lazy import LazyTensor
from ..untrusted.value_kinds import require_number
from .config import CONFIG_NAME
from .elsewhere import suggest_for_names
from .llama import EMBED_TOKENS, LM_HEAD
from .quantized import require_unquantized

# As AutoModel saves a decoder, which then has no LM head.
HEADLESS_EMBEDDINGS = EMBED_TOKENS.removeprefix("model.")
# What tells a model without an LM head: AutoModel's, and one that classifies texts.
OTHER_HEADS = (HEADLESS_EMBEDDINGS, "score.weight")
# Embeddings of the decoders in use, each with the LM head that goes with it.
HEAD_OF = {
    EMBED_TOKENS: LM_HEAD,  # Qwen2, Mistral, Gemma, Phi, Baichuan and most others
    HEADLESS_EMBEDDINGS: LM_HEAD,
    "transformer.wte.weight": LM_HEAD,  # GPT-2, the first Qwen
    "transformer.word_embeddings.weight": LM_HEAD,  # BLOOM, Falcon
    "model.decoder.embed_tokens.weight": LM_HEAD,  # OPT
    "gpt_neox.embed_in.weight": "embed_out.weight",
    "model.tok_embeddings.weight": "output.weight",  # InternLM2
    "transformer.embedding.word_embeddings.weight": "transformer.output_layer.weight",  # ChatGLM
}
VOCABULARY_TENSORS = tuple(dict.fromkeys((*HEAD_OF, *HEAD_OF.values())))

# Causal masks and rotary frequencies that old checkpoints hold: every reader makes them anew.
_BUFFERS = re.compile(r".*(rotary_emb\.inv_freq|\.attn\.masked_bias|\.attention\.masked_bias)$")
_MASKS = re.compile(r".*\.(attn|attention)\.bias$")
_LAYER = re.compile(
    r"(?:(?:model|transformer|gpt_neox|model\.decoder)\.)?(?:layers|h|blocks)\.(\d+)\."
)


def embeddings(names: Container[str]) -> str | None:
    """The name of a model's embeddings among the names of its tensors, None if unknown."""
    return next((name for name in HEAD_OF if name in names), None)


def count_embedding_rows(tensors: Mapping[str, LazyTensor]) -> int:
    """Rows of the embeddings of a model that has been opened."""
    name = embeddings(tensors)
    assert name is not None, "a checkpoint is opened only with embeddings"
    return tensors[name].rows


def is_buffer(name: str, tensor: LazyTensor) -> bool:
    """Whether a tensor is no weight: a mask of four dimensions, or rotary frequencies."""
    mask = _MASKS.fullmatch(name) is not None and len(tensor.shape) > 1
    return mask or _BUFFERS.fullmatch(name) is not None


def validate_decoder_config(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> dict[str, Any]:
    """The configuration of a decoder, with ``tie_word_embeddings`` said in any case.

    Where ``config.json`` does not say it, a model without an LM head of its own is tied. Raises
    ``LayoutError`` for quantized weights, unknown embeddings, and missing layers.
    """
    for weight, tensor in tensors.items():
        require_unquantized(folder, weight, tensor)
    name = embeddings(tensors)
    if name is None:
        raise LayoutError(
            tr("this model's embeddings have a name that is not known here"),
            file=folder,
            expected=tr("one of ") + ", ".join(HEAD_OF),
            found=", ".join(list(tensors)[:4]) + ", ...",
            remedy=suggest_for_names(tensors)
            or tr(
                "save the model once with transformers' save_pretrained, under whose "
                "names adapters are trained; if those are its names, merge with "
                "PEFT's merge_and_unload"
            ),
        )
    _require_every_layer(folder, config, tensors)
    head = tensors.get(HEAD_OF[name])
    if head is None and any(other in tensors for other in OTHER_HEADS):
        return {**config, "tie_word_embeddings": False}
    tied = bool(config.get("tie_word_embeddings", head is None))
    if head is None and not tied:
        raise LayoutError(
            tr("the base model's weights are incomplete"),
            file=folder,
            tensor=HEAD_OF[name],
            expected=tr('an LM head, since config.json says "tie_word_embeddings": false'),
            remedy=tr("a weight file is missing, or config.json is another model's"),
        )
    if head is not None and head.shape != tensors[name].shape:
        raise LayoutError(
            tr("the base model's LM head and embeddings have different shapes"),
            file=folder,
            tensor=head.origin,
            expected=tr("{shape}, as {name}", shape=tensors[name].shape, name=name),
            found=head.shape,
            remedy=tr("take config.json and all weights from one place"),
        )
    return {**config, "tie_word_embeddings": tied}


def _require_every_layer(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> None:
    """Without a table, a missing shard shows in the numbers of the layers."""
    count = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers")
    found = {int(match[1]) for match in map(_LAYER.match, tensors) if match}
    if not found or count is None:
        return
    count = require_number({"num_hidden_layers": count}, "num_hidden_layers", folder / CONFIG_NAME)
    if missing := sorted(set(range(count)) - found):
        raise LayoutError(
            tr("the base model's weights are incomplete"),
            file=folder,
            expected=tr("{count} layers, as config.json describes the model", count=count),
            found=tr(
                "nothing of {n_missing} of them: {map}",
                n_missing=len(missing),
                map=", ".join(map(str, missing[:8])),
            ),
            remedy=tr("a weight file is missing, or config.json is another model's"),
        )
