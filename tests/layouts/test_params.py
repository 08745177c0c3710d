"""``params.json`` and the number of shards, against what Meta published with its models."""

from __future__ import annotations

from typing import Any

import pytest

from merge.errors import LayoutError
from merge.layouts.config import LlamaShape, build_merged_config, with_token_ids
from merge.layouts.llama import count_meta_shards, entries
from merge.layouts.params import build_params_json, compute_feed_forward_size

# hidden, intermediate, layers, heads, key-value heads (transformers' config.json); then Meta's
# params.json beside dim, n_heads, n_layers; then the number of consolidated files.
PUBLISHED: dict[str, tuple[tuple[int, int, int, int, int], dict[str, Any], int]] = {
    "LLaMA 7B": ((4096, 11008, 32, 32, 32), {"multiple_of": 256}, 1),
    "LLaMA 13B": ((5120, 13824, 40, 40, 40), {"multiple_of": 256}, 2),
    "LLaMA 33B": ((6656, 17920, 60, 52, 52), {"multiple_of": 256}, 4),
    "LLaMA 65B": ((8192, 22016, 80, 64, 64), {"multiple_of": 256}, 8),
    "Llama 2 70B": (
        (8192, 28672, 80, 64, 8),
        {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_kv_heads": 8},
        8,
    ),
    "Code Llama 34B": ((8192, 22016, 48, 64, 8), {"multiple_of": 256, "n_kv_heads": 8}, 4),
}


def config(sizes: tuple[int, int, int, int, int], **changes: Any) -> dict[str, Any]:
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        "num_key_value_heads",
    )
    return {"model_type": "llama", **dict(zip(names, sizes, strict=True)), **changes}


def params(described: dict[str, Any]) -> dict[str, Any]:
    shape = LlamaShape.from_config(described, "config.json")
    return build_params_json(described, shape, 49954, "config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    sizes, said, shards = PUBLISHED[name]
    found = params(config(sizes, rms_norm_eps=1e-5))
    hidden, _, layers, heads, _ = sizes
    expected = {"dim": hidden, "n_heads": heads, "n_layers": layers, "norm_eps": 1e-5} | said
    assert found == expected | {"vocab_size": 49954}
    assert count_meta_shards(LlamaShape.from_config(config(sizes), "config.json")) == shards


@pytest.mark.parametrize("dim", [64, 100, 2048, 3200, 4096])
@pytest.mark.parametrize("wanted", [1, 172, 333, 5632, 8640, 11008, 20000])
def test_every_size_can_be_said(dim: int, wanted: int) -> None:
    found = params(config((dim, wanted, 1, 2, 2)))
    assert (
        compute_feed_forward_size(dim, found["multiple_of"], found.get("ffn_dim_multiplier"))
        == wanted
    )


def test_a_key_stands_only_where_it_is_needed() -> None:
    """Meta's LLaMA 1 code refuses every key that it does not know."""
    llama_1 = {"dim", "multiple_of", "n_heads", "n_layers", "norm_eps", "vocab_size"}
    assert params(config((4096, 11008, 32, 32, 32))).keys() == llama_1
    assert params(config((4096, 11008, 32, 32, 32), rope_theta=1e6))["rope_theta"] == 1e6


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 16.0, "rope_theta": 10000.0}},
        {"head_dim": 256},
    ],
    ids=["linear", "yarn in the new spelling", "wide heads"],
)
def test_what_params_json_cannot_say_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LayoutError, match="huggingface"):
        params(config((4096, 11008, 32, 32, 32), **changes))


def test_the_table_names_every_tensor_once() -> None:
    shape = LlamaShape.from_config(config((4096, 11008, 32, 32, 32)), "config.json")
    rows = list(entries(shape))
    assert len(rows) == 3 + 9 * 32
    assert len({row.hf for row in rows}) == len({row.meta for row in rows}) == len(rows)


def test_both_spellings_of_the_configuration_become_the_older_one() -> None:
    new = config((64, 172, 1, 4, 4)) | {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        "auto_map": {"AutoModel": "code.Model"},
    }
    merged = build_merged_config(new, 49954, "float16", tied=False)
    assert merged["rope_theta"] == 5e5
    assert merged["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 4.0}
    assert (merged["torch_dtype"], merged["vocab_size"]) == ("float16", 49954)
    assert not {"dtype", "rope_parameters", "auto_map"} & merged.keys()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}, (1, 2, 7)),
        ({"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}, (1, [2, 5], 7)),
        ({"bos_token_id": 1, "eos_token_id": [5, 6]}, (1, [5, 6, 2], 7)),
        ({}, (1, 2, 7)),
    ],
    ids=["early conversions", "several ends", "other ends", "nothing said"],
)
def test_token_ids_follow_the_tokenizer(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 7}
    mended = with_token_ids(given, ids, 10)
    assert tuple(mended[name] for name in ids) == expected
