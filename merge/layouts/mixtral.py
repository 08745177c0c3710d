"""Mixtral: a LLaMA whose feed-forward layers are experts, of which a router picks a few.

Sources: transformers' ``MixtralConfig`` and ``modeling_mixtral.py``, which saves every expert by
itself in every release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LayoutError
from ..messages import tr
from ..untrusted.value_kinds import require_number
from .config import LlamaShape, get_rope_theta

MODEL_TYPE = "mixtral"
ARCHITECTURES = ("MixtralForCausalLM",)

# What transformers takes a configuration to say that leaves it out.
_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_EXPERTS = ("num_local_experts", "num_experts_per_tok")
_ROPE_THETA = 1e6


@dataclass(frozen=True)
class MixtralShape(LlamaShape):
    """The numbers that fix every tensor's shape, and how many experts there are and are used."""

    num_local_experts: int
    num_experts_per_tok: int


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A Mixtral's ``config.json`` with what goes without saying."""
    return {**_DEFAULTS, **config, "rope_theta": get_rope_theta(config, _ROPE_THETA)}


def read_shape(config: Mapping[str, Any], source: object) -> MixtralShape:
    """Read the numbers from a ``config.json``; ``source`` is its path, for errors.

    Raises ``LayoutError`` as ``LlamaShape.from_config`` does.
    """
    whole = complete_config(config)
    shape = LlamaShape.from_config(whole, source, (MODEL_TYPE,))
    experts, used = (require_number(whole, key, source) for key in _EXPERTS)
    if used > experts:
        raise LayoutError(
            tr("the configuration lets the model use more experts than it has"),
            file=source,
            expected=tr(
                '"{experts}": at most {experts_2}, as "{experts_3}" says',
                experts=_EXPERTS[1],
                experts_2=experts,
                experts_3=_EXPERTS[0],
            ),
            found=used,
            remedy=tr("take this file from the place where the weights are from"),
        )
    return MixtralShape(**vars(shape), num_local_experts=experts, num_experts_per_tok=used)
