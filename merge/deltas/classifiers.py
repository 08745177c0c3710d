"""Reward models and classifiers: a decoder whose LM head gave way to a ``score`` layer.

PEFT merges such an adapter into the base that ``AutoModelForSequenceClassification`` makes of a
language model: the score layer is the adapter's (or the base's own), and there is no LM head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..layouts.decoder import HEAD_OF
from ..tensors.lazy import Checkpoint
from .adapter import Adapter

SCORE = "score.weight"
_TASKS = ("SEQ_CLS", "TOKEN_CLS")
_PARTS = (SCORE, "score.bias")


def is_classifier(base: Checkpoint, adapters: Sequence[Adapter]) -> bool:
    """Whether the base has a score layer, or an adapter one that its ``task_type`` is for."""
    return SCORE in base.tensors or any(
        SCORE in adapter.replaced and adapter.config.task_type in _TASKS for adapter in adapters
    )


def as_classifier(base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """The base without an LM head, with the first adapter's score layer where it has none."""
    heads = set(HEAD_OF.values())
    tensors = {name: tensor for name, tensor in base.tensors.items() if name not in heads}
    for adapter in adapters:
        for name in _PARTS:
            if name in adapter.replaced:
                tensors.setdefault(name, adapter.replaced[name])
    return replace(base, tensors=tensors, config={**base.config, "tie_word_embeddings": False})


def build_classifier_config(config: Mapping[str, Any], labels: int) -> dict[str, Any]:
    """``config.json`` of a classifier of so many labels: transformers' class and its labels."""
    named = [str(name) for name in config.get("architectures") or ()]
    classes = [name.replace("ForCausalLM", "ForSequenceClassification") for name in named]
    given = config.get("id2label")
    made = {str(n): f"LABEL_{n}" for n in range(labels)}
    id2label = given if isinstance(given, dict) and len(given) == labels else made
    label2id = {label: int(n) for n, label in id2label.items()}
    architectures = {"architectures": classes} if classes else {}
    return {**config, **architectures, "id2label": dict(id2label), "label2id": label2id}
