"""The factors of rotary frequencies in a GGUF file, which llama.cpp keeps as a tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import VerificationError
from ..layouts.gguf.reading import ROTARY_FACTORS
from ..tensors.lazy import LazyTensor
from .demands import Described, number, rotary_base, rotary_scaling, scaling_kind, width_of_a_head
from .tokens import PUT_BACK

# By how much factors may differ that one side computed in float32.
_OFF = 1e-4


def check_rotary_factors(
    tensor: LazyTensor | None, described: Described, path: Path
) -> Iterator[VerificationError]:
    """Those of Llama 3.1's scaling must be there, and right; in any other model only ones may be.

    ``tensor`` is None where ``path`` has none. Nothing is said of a kind of scaling that is not
    known here, nor where ``config.json`` lacks a number: see ``is_known``.
    """
    if not is_known(described.config):
        return
    wanted = rotary_factors(described.config)
    if wanted is None and tensor is not None:
        wanted = [1.0] * ((width_of_a_head(described.config) or 0) // 2)
    if wanted is None:
        return
    if tensor is None or tensor.shape != (len(wanted),):
        expected = f"{len(wanted)} factors"
        found = "no such tensor" if tensor is None else f"shape {tensor.shape}"
    else:
        values = [float(value) for value in tensor.read()]
        pairs = enumerate(zip(values, wanted, strict=True))
        off = [n for n, pair in pairs if not math.isclose(*pair, rel_tol=_OFF)]
        if not off:
            return
        expected = f"{wanted[off[0]]:.7g} at [{off[0]}]"
        found = f"{values[off[0]]:.7g}; {len(off)} of {len(values)} are off"
    yield VerificationError(
        "the factors of the rotary frequencies are not those of the model that went in",
        file=path,
        tensor=ROTARY_FACTORS,
        expected=f"{expected}, by {described.config_file}",
        found=found,
        remedy=PUT_BACK,
    )


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether it can be said which factors a model has: mostly none."""
    kind = scaling_kind(rotary_scaling(config))
    return kind in ("default", "linear", "yarn", "dynamic") or rotary_factors(config) is not None


def rotary_factors(config: Mapping[str, Any]) -> list[float] | None:
    """By what Llama 3.1 divides each rotary frequency; None for a model that is not scaled so.

    One for each pair of a head, in float64. Waves that are short beside the original context keep
    their frequency, long ones are stretched by ``factor``; in between the share of each goes with
    the number of turns that a wave makes in that context. Source: Meta's ``apply_scaling`` in
    ``llama_models/llama3/model.py``.
    """
    scaling = rotary_scaling(config)
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    given = [number(scaling.get(name)) for name in names]
    numbers = [value for value in given if value is not None and value > 0]
    width, theta = width_of_a_head(config), rotary_base(config)
    if scaling_kind(scaling) != "llama3" or len(numbers) < len(names) or not width or not theta:
        return None
    factor, fewest, most, length = numbers
    if theta <= 0 or most <= fewest:
        return None
    factors = []
    for place in range(0, width, 2):
        turns = length / (2 * math.pi * theta ** (place / width))
        kept = min(1.0, max(0.0, (turns - fewest) / (most - fewest)))
        factors.append(1 / (kept + (1 - kept) / factor))
    return factors
