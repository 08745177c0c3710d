"""Which type each tensor of a GGUF file gets, by the type of the file.

The rules for quantized files are those of llama.cpp (``llama_tensor_get_type`` in
``src/llama-quant.cpp``, as in llama-cpp-python 0.3.36) for the architecture ``llama``: some
matrices are given more bits than the file's name says, by what they do and in which layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...formats.ggml import BLOCKS

# What llama.cpp calls a file by the type of its matrices, and that type.
FILE_TYPES: Mapping[str, tuple[str, str]] = {
    **{"f32": ("ALL_F32", "F32"), "f16": ("MOSTLY_F16", "F16"), "bf16": ("MOSTLY_BF16", "BF16")},
    **{
        outtype: (f"MOSTLY_{outtype.upper()}", outtype.upper())
        for outtype in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q6_k", "iq1_s", "iq1_m")
    },
    **{
        outtype: (f"MOSTLY_{outtype.upper()}", outtype.upper())
        for outtype in ("iq2_xxs", "iq2_xs", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs")
    },
    **{f"q{n}_k_s": (f"MOSTLY_Q{n}_K_S", f"Q{n}_K") for n in (2, 3, 4, 5)},
    **{f"q{n}_k_m": (f"MOSTLY_Q{n}_K_M", f"Q{n}_K") for n in (3, 4, 5)},
    **{"q3_k_l": ("MOSTLY_Q3_K_L", "Q3_K"), "iq2_s": ("MOSTLY_IQ2_S", "IQ2_XS")},
    **{"iq2_m": ("MOSTLY_IQ2_M", "IQ2_S"), "iq3_xs": ("MOSTLY_IQ3_XS", "IQ3_S")},
    **{"iq3_m": ("MOSTLY_IQ3_M", "IQ3_S")},
}
_LAYER = re.compile(r"blk\.(\d+)\.")
_ROUTER = "ffn_gate_inp"
# Files of two bits and less, whose rules are apart; those of them with the larger codebooks.
_LOWEST = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")
_LARGE_CODEBOOKS = ("iq2_s", "iq2_m")
_EMBEDDINGS = {
    **dict.fromkeys(("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"), "Q2_K"),
    **dict.fromkeys((*_LARGE_CODEBOOKS, "iq3_xxs"), "IQ3_S"),
}
_ATTENTION_OUTPUT = {
    **{"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K", "iq3_xxs": "IQ3_S"},
    **dict.fromkeys(("iq1_s", "iq1_m"), "IQ2_XXS"),
    **dict.fromkeys(_LARGE_CODEBOOKS, "IQ3_S"),
}
_EIGHT_EXPERTS_OUTPUT = (
    *("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq3_xs", "iq3_xxs", "iq3_s", "iq3_m"),
    *("iq4_nl", "iq4_xs", *_LOWEST),
)
# What a type becomes whose blocks of 256 do not fit into a row.
_SMALLER_BLOCKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K"), "Q4_0"),
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
}


@dataclass(frozen=True)
class Traits:
    """What the rules ask of a model; ``heads_per_key`` is the number of query heads per key."""

    layers: int
    heads_per_key: int = 1
    experts: int = 0
    is_tied: bool = False
    has_importance: bool = False

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for LLaMA 2 70B."""
        return self.layers == 80 and self.heads_per_key > 1 and self.experts != 8


def choose_type(outtype: str, name: str, shape: tuple[int, ...], model: Traits) -> str:
    """The type of a tensor in a file of type ``outtype``, by its GGUF name, such as ``Q6_K``.

    >>> choose_type("q4_k_m", "output.weight", (32000, 4096), Traits(32))
    'Q6_K'
    >>> choose_type("q4_k_m", "blk.9.ffn_up.weight", (11008, 4096), Traits(32))
    'Q4_K'
    """
    if len(shape) < 2 or _ROUTER in name:
        return "F32"
    kind = FILE_TYPES[outtype][1]
    if kind not in BLOCKS:
        return kind
    columns = shape[-1]
    if outtype != "q8_0":  # llama.cpp's converter makes it, of each matrix alike
        kind = _choose_by_role(outtype, kind, name, columns, model)
    if columns % BLOCKS[kind][0]:
        kind = _SMALLER_BLOCKS.get(kind, kind)
    return kind if columns % BLOCKS[kind][0] == 0 else "F16"


def _choose_by_role(outtype: str, kind: str, name: str, columns: int, model: Traits) -> str:
    if name == "output.weight" or (model.is_tied and name == "token_embd.weight"):
        if columns % BLOCKS[kind][0]:
            return "Q8_0"
        return "Q5_K" if outtype in (*_LOWEST, "iq3_xxs") else "Q6_K"
    if name == "token_embd.weight":
        return _EMBEDDINGS.get(outtype, kind)
    match = _LAYER.match(name)
    layer = int(match[1]) if match else 0
    role = name[match.end() :].removesuffix(".weight").removesuffix("_exps") if match else name
    if role == "attn_v":
        return _choose_for_values(outtype, kind, layer, model)
    if role == "ffn_down":
        return _choose_for_down(outtype, kind, layer, model)
    if role in ("attn_q", "attn_k"):
        return _choose_for_keys(outtype, kind, role, model)
    if role == "attn_output":
        if model.experts == 8:
            return "Q5_K" if outtype in _EIGHT_EXPERTS_OUTPUT else kind
        return _ATTENTION_OUTPUT.get(outtype, kind)
    is_inner = model.layers // 8 <= layer < 7 * model.layers // 8
    return "IQ3_XXS" if outtype == "iq3_xs" and is_inner else kind


def _choose_for_keys(outtype: str, kind: str, role: str, model: Traits) -> str:
    if role == "attn_k" and model.experts == 8:
        return "Q4_K" if outtype in _LOWEST else "Q8_0"
    return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(outtype, kind)


def _choose_for_values(outtype: str, kind: str, layer: int, model: Traits) -> str:
    shared = model.heads_per_key >= 4
    if outtype in _LOWEST:
        few = "IQ3_S" if outtype in _LARGE_CODEBOOKS else "Q2_K"
        return "Q4_K" if shared or model.experts >= 4 else few
    if model.experts == 8:
        return "Q8_0"
    chosen = {
        "q2_k": "Q4_K" if shared else "Q3_K",
        "q2_k_s": "Q4_K" if shared else kind,
        "iq3_xxs": "Q4_K" if shared else ("IQ3_XXS" if model.has_importance else "IQ3_S"),
        **dict.fromkeys(("iq3_xs", "iq3_s"), "Q4_K" if shared else kind),
        "iq3_m": "Q4_K",
        "q3_k_m": "Q5_K" if layer < 2 else "Q4_K",
        "q3_k_l": "Q5_K",
        **dict.fromkeys(("iq4_nl", "iq4_xs"), "Q5_K" if shared else kind),
        **dict.fromkeys(("q4_k_m", "q5_k_m"), "Q6_K" if _has_more_bits(layer, model) else kind),
        "q4_k_s": "Q5_K" if layer < 4 else kind,
    }.get(outtype, kind)
    return "Q5_K" if model.is_70b and chosen in ("Q3_K", "Q4_K") else chosen


def _choose_for_down(outtype: str, kind: str, layer: int, model: Traits) -> str:
    is_early = layer < model.layers // 8
    if outtype in _LOWEST:
        early = "IQ3_S" if outtype in _LARGE_CODEBOOKS else "Q2_K"
        return early if is_early else kind
    more_bits = _has_more_bits(layer, model)
    guided = model.has_importance
    return {
        "q2_k": "Q3_K",
        "q2_k_s": "Q4_K" if is_early else kind,
        "iq3_xxs": kind if guided else ("Q4_K" if is_early else "Q3_K"),
        "q3_k_m": "Q5_K" if layer < model.layers // 16 else "Q4_K",
        "q3_k_l": "Q5_K",
        "iq3_m": "Q4_K" if is_early or (model.experts == 8 and more_bits) else kind,
        **dict.fromkeys(("q4_k_m", "q5_k_m"), "Q6_K" if more_bits else kind),
        **dict.fromkeys(("iq4_nl", "iq4_xs"), "Q5_K" if is_early and not guided else kind),
        "q4_k_s": "Q5_K" if is_early else kind,
        "q4_0": "Q4_1" if is_early and guided else kind,
        "q5_0": "Q5_1" if is_early and guided else kind,
    }.get(outtype, kind)


def _has_more_bits(layer: int, model: Traits) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = model.layers // 8
    is_outer = layer < eighth or layer >= 7 * model.layers // 8
    return is_outer or (layer - eighth) % 3 == 2


def get_sort_key(name: str) -> tuple[int, str]:
    """The order of tensors in a file that llama.cpp quantized: by layer, then by name."""
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name)
