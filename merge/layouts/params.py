"""``params.json``: what it says of a model, and one from the other configuration.

Meta's file holds less than ``config.json``. The rest is taken from the weights; what neither says
(the length of the context) is told by the models that Meta published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import LayoutError
from ..messages import tr
from ..storage.folder import Folder
from ..untrusted.value_kinds import POSITIVE, is_positive, optional, require_kinds, require_number
from .config import DEFAULT_ROPE_THETA, LlamaShape, get_rope_scaling, get_rope_theta

PARAMS_NAME = "params.json"
# transformers' defaults for what params.json does not speak of, as every converted LLaMA has them.
_ALWAYS = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "use_cache": True,
}


def read_params(folder: Folder) -> dict[str, Any]:
    """Read the ``params.json`` of a folder in Meta's layout.

    Raises ``LayoutError`` when there is none or it lacks a number.
    """
    path = folder.path / PARAMS_NAME
    if PARAMS_NAME not in folder.files:
        raise LayoutError(
            tr("the folder has Meta's weights but not the file that describes them"),
            file=path,
            expected=tr("{params_name} beside consolidated.*.pth", params_name=PARAMS_NAME),
            remedy=tr(
                "fetch {params_name} from the place where the weights are from",
                params_name=PARAMS_NAME,
            ),
        )
    params = folder.read_json(PARAMS_NAME)
    wrapped = params.get("model")
    return wrapped if isinstance(wrapped, dict) else params


def derive_shape(params: Mapping[str, Any], intermediate_size: int, source: object) -> LlamaShape:
    """The numbers of a model; ``intermediate_size`` comes from its weights.

    Raises ``LayoutError`` for numbers that are missing or cannot be together.
    """
    require_kinds(params, {"rope_theta": optional(POSITIVE), "norm_eps": POSITIVE}, source)
    dim, heads = require_number(params, "dim", source), require_number(params, "n_heads", source)
    kv_heads = heads
    if params.get("n_kv_heads") is not None:
        kv_heads = require_number(params, "n_kv_heads", source)
    for whole, part, words in (
        (dim, 2 * heads, tr("dim {dim} and n_heads {heads}", dim=dim, heads=heads)),
        (
            heads,
            kv_heads,
            tr("n_heads {heads} and n_kv_heads {kv_heads}", heads=heads, kv_heads=kv_heads),
        ),
    ):
        if whole % part:
            raise LayoutError(
                tr("the numbers in params.json cannot belong to one model"),
                file=source,
                expected=tr("heads of equal, even size in equal groups"),
                found=words,
                remedy=tr(
                    "fetch {params_name} from the place where the weights are from",
                    params_name=PARAMS_NAME,
                ),
            )
    _require_same_feed_forward(params, dim, intermediate_size, source)
    layers = require_number(params, "n_layers", source)
    return LlamaShape(dim, intermediate_size, layers, heads, kv_heads, dim // heads, False)


def _require_same_feed_forward(
    params: Mapping[str, Any], dim: int, intermediate_size: int, source: object
) -> None:
    """``multiple_of`` and ``ffn_dim_multiplier``, where they are given, must give w1's rows."""
    if params.get("multiple_of") is None:
        return
    multiple_of = require_number(params, "multiple_of", source)
    multiplier = params.get("ffn_dim_multiplier")
    stated = (
        compute_feed_forward_size(dim, multiple_of, multiplier) if _is_factor(multiplier) else None
    )
    if stated != intermediate_size:
        raise LayoutError(
            tr("params.json and the weights contradict each other"),
            file=source,
            tensor="layers.0.feed_forward.w1.weight",
            expected=tr(
                "{stated} rows, by dim, multiple_of and ffn_dim_multiplier",
                stated=stated or tr("other"),
            ),
            found=tr(
                "{intermediate_size} rows in all shards together",
                intermediate_size=intermediate_size,
            ),
            remedy=tr(
                "{params_name} is another model's, or a shard is missing: take all "
                "files from one place",
                params_name=PARAMS_NAME,
            ),
        )


def _is_factor(value: object) -> bool:
    return value is None or (is_positive(value) and value < 1000)  # type: ignore[operator]


def derive_config(
    params: Mapping[str, Any],
    shape: LlamaShape,
    vocab_size: int,
    dtype: str,
    context_length: int | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``config.json`` of a model in Meta's layout, and what was assumed in it, as sentences.

    ``vocab_size`` and ``dtype`` are those of the weights.
    """
    scaled = bool(params.get("use_scaled_rope"))
    theta = float(params.get("rope_theta") or DEFAULT_ROPE_THETA)
    notes: tuple[str, ...] = ()
    if context_length is None:
        context_length, reason = _guess_context_length(params, shape, theta)
        notes = (
            tr(
                "params.json does not say the context length; {context_length} "
                "written, {reason} (--context_length says otherwise)",
                context_length=context_length,
                reason=reason,
            ),
        )
    return {
        **_ALWAYS,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "max_position_embeddings": context_length,
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": theta,
        "rope_scaling": _LLAMA_3_SCALING | {"factor": _choose_scaling_factor(shape.hidden_size)}
        if scaled
        else None,
        "torch_dtype": dtype,
        "vocab_size": vocab_size,
    }, notes


# How Llama 3.1 and later stretch their positions, by Meta's model code.
_LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _choose_scaling_factor(dim: int) -> float:
    """32 for the small models of Llama 3.2, else 8."""
    return 32.0 if dim < 4096 else 8.0


def _guess_context_length(
    params: Mapping[str, Any], shape: LlamaShape, theta: float
) -> tuple[int, str]:
    """Context length by what Meta published, and the reason.

    LLaMA 1: 2048; its norm_eps is 1e-6, but 1e-5 in 65B. LLaMA 2: 4096; 1e-5, in some downloads
    1e-6. Only from LLaMA 2 on are there grouped heads, and another rope_theta after it.
    """
    if params.get("use_scaled_rope"):
        return 131072, tr("as in Llama 3.1 and later, which scale rotary positions")
    if theta == 500000.0:
        return 8192, tr("as in Llama 3, by its rope_theta")
    if theta > DEFAULT_ROPE_THETA:
        return 16384, tr("as in Code Llama, by its rope_theta")
    if shape.num_key_value_heads < shape.num_attention_heads:
        return 4096, tr("as in LLaMA 2, by its grouped key and value heads")
    if params.get("norm_eps") == 1e-5 and shape.hidden_size < 8192:
        return 4096, tr("as in LLaMA 2, by its norm_eps of 1e-5")
    if shape.hidden_size in (6656, 8192):
        return 2048, tr("as in LLaMA 1, which alone has this size without grouped heads")
    return 2048, tr("as in LLaMA 1, by its norm_eps, though some LLaMA 2 downloads have the same")


def build_params_json(
    config: Mapping[str, Any], shape: LlamaShape, vocab_size: int, source: object
) -> dict[str, Any]:
    """Meta's ``params.json`` for a model. Keys beyond LLaMA 1's stand only where they are needed,
    because Meta's ``ModelArgs(**params)`` refuses a key that it does not know.

    Raises ``LayoutError`` for what ``params.json`` cannot say: rotary positions scaled otherwise
    than in Llama 3.1, or heads that do not make up the hidden size.
    """
    scaling = get_rope_scaling(config)
    scaled_as_llama_3 = scaling is not None and _is_llama_3(scaling, shape.hidden_size)
    if scaling is not None and not scaled_as_llama_3:
        raise LayoutError(
            tr("params.json cannot say how this model scales its rotary positions"),
            file=source,
            expected=tr("no rope_scaling"),
            found=json.dumps(scaling),
            remedy=tr("use --output_type huggingface, whose config.json can"),
        )
    if shape.q_rows != shape.hidden_size:
        raise LayoutError(
            tr("params.json cannot say the size of this model's heads"),
            file=source,
            expected=tr(
                "{num_attention_heads} heads of {hidden_size}",
                num_attention_heads=shape.num_attention_heads,
                hidden_size=shape.hidden_size // shape.num_attention_heads,
            ),
            found=tr('"head_dim": {head_dim}', head_dim=shape.head_dim),
            remedy=tr("use --output_type huggingface"),
        )
    params: dict[str, Any] = {
        "dim": shape.hidden_size,
        **_find_feed_forward(shape.hidden_size, shape.intermediate_size),
        "n_heads": shape.num_attention_heads,
        "n_layers": shape.num_hidden_layers,
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "vocab_size": vocab_size,
    }
    if shape.num_key_value_heads != shape.num_attention_heads:
        params["n_kv_heads"] = shape.num_key_value_heads
    if get_rope_theta(config) != DEFAULT_ROPE_THETA:
        params["rope_theta"] = get_rope_theta(config)
    if scaled_as_llama_3:
        params["use_scaled_rope"] = True
    return params


def _is_llama_3(scaling: Mapping[str, Any], dim: int) -> bool:
    """Whether these are the numbers that ``use_scaled_rope`` stands for in Meta's code."""
    expected = _LLAMA_3_SCALING | {"factor": _choose_scaling_factor(dim)}
    said = {key: value for key, value in scaling.items() if key != "type"}
    return said | {"rope_type": scaling["type"]} == expected


def compute_feed_forward_size(dim: int, multiple_of: int, ffn_dim_multiplier: float | None) -> int:
    """Rows of w1 by Meta's rule: two thirds of 4 x dim, scaled, rounded up to ``multiple_of``.

    >>> compute_feed_forward_size(4096, 256, None), compute_feed_forward_size(8192, 4096, 1.3)
    (11008, 28672)
    """
    size = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        size = int(ffn_dim_multiplier * size)
    return multiple_of * -(-size // multiple_of)


def _find_feed_forward(dim: int, intermediate_size: int) -> dict[str, Any]:
    """The pair ``multiple_of``, ``ffn_dim_multiplier`` that gives ``intermediate_size``.

    Meta's own pairs are tried first, then powers of two, then a multiplier that hits exactly.
    """
    published: list[tuple[int, float | None]] = [(256, None), (4096, 1.3), (1024, 1.3)]
    published += [(256, 1.5), (4096, 1.2)]
    powers: list[tuple[int, float | None]] = [(1 << n, None) for n in range(12, -1, -1)]
    exact = (1, (intermediate_size + 0.5) / int(2 * (4 * dim) / 3))
    for multiple_of, multiplier in [*published, *powers, exact]:
        if compute_feed_forward_size(dim, multiple_of, multiplier) == intermediate_size:
            return {"multiple_of": multiple_of} | (
                {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
            )
    raise AssertionError(f"no multiplier gives {intermediate_size} from {dim}")
