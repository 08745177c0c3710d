"""Meta's folder as a base: what is read from shards of every kind, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge import merge_lora
from merge.errors import FormatError, LayoutError, MergeError, UsageError
from merge.layouts.model_folder import ModelFolder
from merge.layouts.opening import open_checkpoint
from tests.kit.adapters import make_adapter
from tests.kit.files import Tensors, load_weights, save_shards, tree
from tests.kit.meta_models import (
    DIM,
    FEED_FORWARD,
    HEADS,
    ROWS,
    hf_tensors,
    make_meta,
    meta_tensors,
    params,
    save_meta,
    split,
)
from tests.kit.tokenizer_models import write_tokenizer

SHARDS = pytest.mark.parametrize("count", [1, 2, 4, 8])


def require_same(folder: Path, expected: Tensors) -> None:
    found = open_checkpoint(folder).tensors
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape, name
        assert torch.equal(tensor.read(), expected[name]), name


@SHARDS
@pytest.mark.parametrize("kv_heads", [8, 4, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_shards_are_joined_and_put_in_transformers_order(
    tmp_path: Path, count: int, kv_heads: int, dtype: torch.dtype
) -> None:
    tensors = meta_tensors(kv_heads, dtype=dtype)
    save_meta(tmp_path, split(tensors, count), params(kv_heads))
    require_same(tmp_path, hf_tensors(tensors, kv_heads))
    assert open_checkpoint(tmp_path).config["torch_dtype"] == str(dtype).removeprefix("torch.")


@SHARDS
def test_any_range_of_rows_is_what_it_is_in_the_whole(tmp_path: Path, count: int) -> None:
    make_meta(tmp_path, count)
    for tensor in open_checkpoint(tmp_path).tensors.values():
        whole = tensor.read()
        for start, stop in [(0, 1), (3, 13), (tensor.rows // 2 - 1, tensor.rows)]:
            assert torch.equal(tensor.read(start, stop), whole[start:stop]), tensor.origin


@pytest.mark.parametrize("rows", [101, 103])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_remainder_of_the_vocabulary_is_in_the_last_shard(
    tmp_path: Path, rows: int, count: int
) -> None:
    tensors = meta_tensors(rows=rows)
    save_meta(tmp_path, split(tensors, count), pieces=rows)
    require_same(tmp_path, hf_tensors(tensors))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_embeddings_split_by_rows_as_llama_3_does(tmp_path: Path, count: int) -> None:
    tensors = meta_tensors()
    save_meta(tmp_path, split(tensors, count, embeddings_by_rows=True))
    require_same(tmp_path, hf_tensors(tensors))


@SHARDS
def test_rotary_frequencies_are_left_out(tmp_path: Path, count: int) -> None:
    tensors = meta_tensors()
    frequencies = {"rope.freqs": torch.rand(DIM // HEADS // 2)}
    save_meta(tmp_path, [shard | frequencies for shard in split(tensors, count)])
    require_same(tmp_path, hf_tensors(tensors))
    assert open_checkpoint(tmp_path).dropped == ("rope.freqs",)


def test_frequencies_may_be_in_one_shard_only(tmp_path: Path) -> None:
    tensors = meta_tensors()
    first, second = split(tensors, 2)
    save_meta(tmp_path, [first | {"rope.freqs": torch.rand(4)}, second])
    require_same(tmp_path, hf_tensors(tensors))


def test_configuration_comes_from_params_and_weights(tmp_path: Path) -> None:
    described = params(4, norm_eps=3e-5, rope_theta=12345.0, multiple_of=None)
    save_meta(tmp_path, split(meta_tensors(4), 2), described)
    config = open_checkpoint(tmp_path, context_length=777).config
    expected = {
        "model_type": "llama",
        "hidden_size": DIM,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 4,
        "rms_norm_eps": 3e-5,
        "rope_theta": 12345.0,
        "rope_scaling": None,
        "max_position_embeddings": 777,
        "tie_word_embeddings": False,
        "vocab_size": ROWS,
    }
    assert {key: config[key] for key in expected} == expected


LENGTHS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "LLaMA 1": (2048, 8, {}),
    "LLaMA 2": (4096, 8, {"norm_eps": 1e-5}),
    "grouped heads": (4096, 4, {}),
    "Code Llama": (16384, 8, {"rope_theta": 1000000.0}),
    "Llama 3": (8192, 4, {"rope_theta": 500000.0}),
    "Llama 3.1": (131072, 4, {"rope_theta": 500000.0, "use_scaled_rope": True}),
}


@pytest.mark.parametrize(("length", "kv_heads", "changes"), LENGTHS.values(), ids=LENGTHS)
def test_context_length_is_assumed_aloud(
    tmp_path: Path, length: int, kv_heads: int, changes: dict[str, Any]
) -> None:
    save_meta(tmp_path, [meta_tensors(kv_heads)], params(kv_heads, **changes))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config["max_position_embeddings"] == length
    assert str(length) in checkpoint.notes[0]
    assert open_checkpoint(tmp_path, context_length=99).notes == ()


@SHARDS
@pytest.mark.parametrize("kv_heads", [8, 4])
@pytest.mark.parametrize("output_type", ["pth", "huggingface"])
def test_merge_gives_the_same_bytes_as_from_transformers_layout(
    tmp_path: Path, count: int, kv_heads: int, output_type: str
) -> None:
    """Only config.json, whose derived fields may be spelt otherwise, and the manifest differ."""
    tensors = meta_tensors(kv_heads)
    meta = save_meta(tmp_path / "meta", split(tensors, count), params(kv_heads))
    base = save_as_transformers(tmp_path / "hf", meta, hf_tensors(tensors, kv_heads))
    adapter = make_adapter(tmp_path / "lora", base, rows=ROWS + 3)
    settings: dict[str, Any] = {"output_type": output_type}
    if output_type == "pth":
        settings["num_shards"] = 2
    merge_lora(meta, adapter, tmp_path / "from meta", **settings)
    merge_lora(base, adapter, tmp_path / "from hf", **settings)
    for path in (tmp_path / "from hf").iterdir():
        if path.name not in ("config.json", "merge_manifest.json"):
            assert path.read_bytes() == (tmp_path / "from meta" / path.name).read_bytes()


def save_as_transformers(folder: Path, meta: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    save_shards(tensors, folder)
    config = dict(open_checkpoint(meta).config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder, ROWS)
    return folder


def test_tokenizer_may_be_in_the_parent_folder(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ROWS)
    tensors = meta_tensors()
    meta = save_meta(tmp_path / "7B", split(tensors, 2), pieces=None)
    base = save_as_transformers(tmp_path / "hf", meta, hf_tensors(tensors))
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    report = merge_lora(meta, adapter, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (
        tmp_path / "tokenizer.model"
    ).read_bytes()
    assert report.job.sources.base_tokenizer is not None


def test_merge_into_huggingface_tells_the_assumed_context_length(tmp_path: Path) -> None:
    meta = make_meta(tmp_path / "meta")
    base = save_as_transformers(tmp_path / "hf", meta, hf_tensors(meta_tensors()))
    adapter = make_adapter(tmp_path / "lora", base)
    plan: dict[str, Any] = {"output_type": "huggingface", "dry_run": True}
    assert "2048" in merge_lora(meta, adapter, tmp_path / "out", **plan).summary()
    assert "--context_length" not in merge_lora(meta, adapter, tmp_path / "out").summary()
    merge_lora(meta, adapter, tmp_path / "out 2", output_type="huggingface", context_length=4096)
    config = json.loads((tmp_path / "out 2/config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == 4096
    with pytest.raises(UsageError, match="only for models in Meta's layout"):
        merge_lora(base, adapter, tmp_path / "out 3", context_length=4096)


def test_folder_with_both_layouts_is_read_as_transformers_does(tmp_path: Path) -> None:
    meta = make_meta(tmp_path / "meta")
    assert ModelFolder(meta).is_meta
    save_shards(hf_tensors(meta_tensors(seed=5)), meta)
    config = {"model_type": "llama", **open_config(meta)}
    (meta / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not ModelFolder(meta).is_meta
    require_same(meta, hf_tensors(meta_tensors(seed=5)))


def open_config(meta: Path) -> dict[str, Any]:
    return {
        "hidden_size": DIM,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "vocab_size": ROWS,
    }


def refused(folder: Path, kind: type[MergeError], words: str) -> MergeError:
    """Open, and require one sentence with these words, a remedy, and nothing changed."""
    before = tree(folder)
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(folder)
    assert tree(folder) == before
    assert caught.value.facts.get("remedy")
    return caught.value


@pytest.mark.parametrize("missing", range(4))
def test_missing_shard_is_named(tmp_path: Path, missing: int) -> None:
    make_meta(tmp_path, 4)
    path = tmp_path / f"consolidated.0{missing}.pth"
    path.unlink()
    error = refused(tmp_path, LayoutError, "a shard of the model is missing")
    assert error.facts["file"] == str(path)


def test_all_shards_but_the_first_missing(tmp_path: Path) -> None:
    make_meta(tmp_path, 4)
    for number in (1, 2, 3):
        (tmp_path / f"consolidated.0{number}.pth").unlink()
    error = refused(tmp_path, LayoutError, "a shard of the model is missing")
    assert "4 shards" in error.facts["expected"]
    assert error.facts["file"].endswith("consolidated.01.pth")


def test_no_shards_at_all(tmp_path: Path) -> None:
    make_meta(tmp_path)
    (tmp_path / "consolidated.00.pth").unlink()
    refused(tmp_path, LayoutError, "no weights")


def test_no_params_json(tmp_path: Path) -> None:
    make_meta(tmp_path)
    (tmp_path / "params.json").unlink()
    error = refused(tmp_path, LayoutError, "not the file that describes them")
    assert error.facts["file"] == str(tmp_path / "params.json")


@pytest.mark.parametrize("key", ["dim", "n_heads", "n_layers"])
@pytest.mark.parametrize("value", [None, 0, "64", 1.5])
def test_number_that_is_missing_or_none(tmp_path: Path, key: str, value: object) -> None:
    save_meta(tmp_path, [meta_tensors()], params() | {key: value})
    error = refused(tmp_path, LayoutError, "lacks a number")
    assert f'"{key}"' in error.facts["expected"]


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "dim": {"dim": 128, "multiple_of": None},
    "heads": {"n_heads": 16, "n_kv_heads": 4},
    "kv heads": {"n_kv_heads": 2},
    "more layers": {"n_layers": 3},
    "fewer layers": {"n_layers": 1},
    "feed forward": {"multiple_of": 256},
    "vocabulary": {"vocab_size": 32000},
    "uneven heads": {"n_heads": 7},
    "uneven groups": {"n_kv_heads": 3},
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("changes", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_params_that_contradict_the_weights(
    tmp_path: Path, count: int, changes: dict[str, Any]
) -> None:
    described = {k: v for k, v in (params() | changes).items() if v is not None}
    save_meta(tmp_path, split(meta_tensors(), count), described)
    error = refused(tmp_path, LayoutError, "params.json|incomplete")
    assert error.facts["expected"]
    assert error.facts["found"]


def test_repeated_key_and_value_heads_are_refused_by_name(tmp_path: Path) -> None:
    """Eight shards of a model with four key and value heads: each head is in two of them."""
    whole = meta_tensors(4)
    shards = split(whole, 8)
    size = DIM // HEADS
    for number, shard in enumerate(shards):
        for name in shard:
            if name.endswith((".wk.weight", ".wv.weight")):
                head = number // 2
                shard[name] = whole[name][head * size : (head + 1) * size].clone()
    save_meta(tmp_path, shards, params(4))
    error = refused(tmp_path, LayoutError, "repeat wk and wv")
    assert error.facts["tensor"] == "layers.0.attention.wk.weight"
    assert "at most 4 shards" in error.facts["remedy"]


def drop(shards: list[Tensors]) -> None:
    del shards[1]["layers.1.attention.wv.weight"]


def another_norm(shards: list[Tensors]) -> None:
    shards[1]["layers.1.ffn_norm.weight"][3] += 1


def another_dtype(shards: list[Tensors]) -> None:
    name = "layers.1.feed_forward.w3.weight"
    shards[1][name] = shards[1][name].to(torch.bfloat16)


def quantised(shards: list[Tensors]) -> None:
    for shard in shards:
        shard["layers.0.attention.wo.weight"] = shard["layers.0.attention.wo.weight"].to(torch.int8)


def another_size(shards: list[Tensors]) -> None:
    shards[1]["layers.1.feed_forward.w3.weight"] = torch.zeros(88, 32, dtype=torch.float16)


def flat(shards: list[Tensors]) -> None:
    shards[1]["layers.0.attention.wo.weight"] = torch.zeros(88, dtype=torch.float16)


def a_number(shards: list[Tensors]) -> None:
    shards[1]["layers.0.attention.wo.weight"] = torch.tensor(1.0).half()


def a_bias(shards: list[Tensors]) -> None:
    for shard in shards:
        shard["layers.0.attention.wq.bias"] = torch.zeros(8)


BROKEN: dict[str, tuple[Callable[[list[Tensors]], None], str]] = {
    "tensor missing": (drop, "a shard lacks a tensor"),
    "norms differ": (another_norm, "different versions"),
    "dtypes differ": (another_dtype, "quantized or differ"),
    "quantized": (quantised, "quantized or differ"),
    "another size": (another_size, "contradict"),
    "flat": (flat, "contradict"),
    "a number": (a_number, "contradict"),
    "a bias": (a_bias, "does not describe"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN)
def test_shards_that_do_not_belong_together(
    tmp_path: Path, change: Callable[[list[Tensors]], None], words: str
) -> None:
    shards = split(meta_tensors(), 2)
    change(shards)
    save_meta(tmp_path, shards)
    refused(tmp_path, LayoutError, words)


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    make_meta(tmp_path, 2)
    path = tmp_path / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:5000])
    assert refused(tmp_path, FormatError, "end is missing").facts["file"] == str(path)


def test_real_model_in_both_layouts(real_data: Path) -> None:
    require_same(
        real_data / "stories260K_meta",
        load_weights(real_data / "stories260K_hf"),
    )
