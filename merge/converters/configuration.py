"""What the legacy converter takes from ``config.json`` or, without one, from ``params.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..layouts.config import CONFIG_NAME, LlamaShape, require_values, rope_scaling
from ..layouts.params import PARAMS_NAME
from ..untrusted.strict_json import read_json
from ..untrusted.value_kinds import required_number
from .findings import Report

_W1 = "layers.0.feed_forward.w1.weight"
_PARAMS = ("dim", "n_layers", "n_heads", "norm_eps")
_CONFIG = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"),
    *("num_attention_heads", "rms_norm_eps"),
)


@dataclass(frozen=True)
class Configuration:
    """``shape`` and context length as the converter has them, and from which file.

    ``vocab_size`` is None where the rows of the embeddings count instead.
    """

    name: str
    shape: LlamaShape
    vocab_size: int | None
    context: int
    context_reason: str


def read_configuration(
    folder: Path, tensors: Mapping[str, tuple[int, ...]], report: Report
) -> Configuration | None:
    """The configuration that the converter would use; None when it would stop without one."""
    if (folder / CONFIG_NAME).is_file():
        report.notes.append(f"{CONFIG_NAME} is in the folder and is taken before {PARAMS_NAME}")
        with report.collecting():
            return _from_config(folder / CONFIG_NAME, read_json(folder / CONFIG_NAME), report)
    elif (folder / PARAMS_NAME).is_file():
        with report.collecting():
            params = read_json(folder / PARAMS_NAME)
            return _from_params(folder / PARAMS_NAME, params, tensors, report)
    else:
        report.stops(
            "nothing says what the model is",
            file=folder / PARAMS_NAME,
            found="no such file",
            remedy="fetch it from the place where the weights are from",
        )
    return None


def _from_params(
    path: Path, params: dict[str, Any], tensors: Mapping[str, tuple[int, ...]], report: Report
) -> Configuration | None:
    missing = [key for key in _PARAMS if not params.get(key)]
    if "n_kv_heads" in params and not params["n_kv_heads"]:
        missing.append("n_kv_heads")
    if _lacks(path, missing, report) or _W1 not in tensors:
        return None
    if params.get("use_scaled_rope"):
        report.silent(
            "the scaling of the rotary positions is left out",
            file=path,
            found='"use_scaled_rope": true',
            remedy="convert to Hugging Face's layout and use the other converter, or write GGUF",
        )
    dim, heads, layers = (required_number(params, k, path) for k in ("dim", "n_heads", "n_layers"))
    kv_heads = required_number(params, "n_kv_heads", path) if "n_kv_heads" in params else heads
    head_dim = dim // heads
    shape = LlamaShape(dim, tensors[_W1][0], layers, heads, kv_heads, head_dim, False)
    return Configuration(PARAMS_NAME, shape, None, *_guessed_context(params))


def _guessed_context(params: Mapping[str, Any]) -> tuple[int, str]:
    """``params.json`` does not say it; this is the converter's guess."""
    if params.get("rope_theta") == 1000000:
        return 16384, "guessed from rope_theta; --ctx says otherwise"
    if params["norm_eps"] == 1e-05:
        return 4096, "guessed from norm_eps 1e-05; --ctx says otherwise"
    return 2048, "guessed, as norm_eps is not 1e-05; --ctx says otherwise"


def _from_config(path: Path, config: dict[str, Any], report: Report) -> Configuration | None:
    missing = [key for key in _CONFIG if not config.get(key)]
    lengths = [k for k in ("max_sequence_length", "max_position_embeddings") if config.get(k)]
    if _lacks(path, missing + ([] if lengths else ["max_position_embeddings"]), report):
        return None
    require_values(config, path)
    given = config.get("rope_scaling")
    kind = given.get("type") if isinstance(given, dict) else None
    if kind is not None and kind not in ("linear", "yarn"):
        report.stops("the scaling of rotary positions is not known", file=path, found=given)
    elif kind is None and rope_scaling(config) is not None:
        report.silent(
            "the scaling of rotary positions is left out",
            file=path,
            expected='"type" in "rope_scaling"',
            found=rope_scaling(config),
        )
    shape = LlamaShape.from_config(config, path)
    size, length = (required_number(config, key, path) for key in ("vocab_size", lengths[0]))
    return Configuration(CONFIG_NAME, shape, size, length, lengths[0])


def _lacks(path: Path, missing: list[str], report: Report) -> bool:
    if missing:
        report.stops(
            "the file lacks what the converter needs",
            file=path,
            expected=", ".join(missing),
            found="not there, empty or zero",
            remedy=f"fetch {path.name} from the place where the weights are from",
        )
    return bool(missing)
