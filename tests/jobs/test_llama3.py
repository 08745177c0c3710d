"""Models of the Llama 3 generation: Meta's folder to Hugging Face's and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge.errors import UsageError, VocabularyError
from merge.jobs.convert_checkpoint import convert_checkpoint
from tests.kit.files import Tensors, load_weights
from tests.kit.llama3_models import llama3_params, make_llama3
from tests.kit.meta_models import make_meta, meta_tensors, params, save_meta
from tests.kit.run import ROOT, run_merge
from tests.kit.tiktoken_encodings import MetaTokenizer
from tests.kit.transformers_446 import needs_transformers_446, run_in_transformers_446

CONVERT = ROOT / "scripts" / "convert_checkpoint.py"
CONVERT_LLAMA = ROOT / "scripts" / "convert_llama_weights_to_hf.py"
# transformers' own converter, as people call it.
CONVERTER = """
import runpy, sys
folder, out, release, count = sys.argv[1:]
sys.argv = ["convert", "--input_dir", folder, "--output_dir", out, "--llama_version", release,
            "--num_shards", count]
runpy.run_module("transformers.models.llama.convert_llama_weights_to_hf", run_name="__main__")
print("{}")
"""
# The same without a tokenizer.
WRITE_MODEL = """
import sys
from transformers.models.llama.convert_llama_weights_to_hf import write_model
folder, out, rows = sys.argv[1:]
write_model(out, folder, llama_version="3.1", vocab_size=int(rows), num_shards=1)
print("{}")
"""
IDS = [128_000, 791, 57668, 53901, 128_009, 11]
RELEASES = pytest.mark.parametrize(("release", "count"), [("3", 1), ("3", 2), ("3.2", 1)])


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits
    return found


def require_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert [n for n, tensor in found.items() if not torch.equal(tensor, expected[n])] == []


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("torch_dtype", "transformers_version", "head_dim"):
        config.pop(key, None)  # transformers writes float16 beside bfloat16
    return config


def require_same_config(found: dict[str, Any], expected: dict[str, Any]) -> None:
    scaling = found.pop("rope_scaling"), expected.pop("rope_scaling")
    if scaling[0] is not None:
        assert scaling[0].pop("type") == scaling[0]["rope_type"]
    assert scaling[0] == scaling[1]
    assert found.pop("pad_token_id", None) is None
    assert found == expected


@needs_transformers_446
@RELEASES
def test_meta_to_hugging_face_as_transformers_converts(
    tmp_path: Path, real_data: Path, release: str, count: int
) -> None:
    meta = make_llama3(tmp_path / "meta", real_data, release, count)
    run_in_transformers_446(CONVERTER, meta, tmp_path / "theirs", release, count)
    convert_checkpoint(meta, tmp_path / "ours", safe_serialization=True)
    require_equal(load_weights(tmp_path / "ours"), load_weights(tmp_path / "theirs"))
    require_same_config(read_config(tmp_path / "ours"), read_config(tmp_path / "theirs"))
    assert torch.equal(logits(tmp_path / "ours", IDS), logits(tmp_path / "theirs", IDS))
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("ours", "theirs"))
    assert ours.get_vocab() == theirs.get_vocab()
    text = "Hello 世界 <|eot_id|><|reserved_special_token_3|>  \n\n def f(x):\n\treturn 10000"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.special_tokens_map == theirs.special_tokens_map


@needs_transformers_446
@pytest.mark.slow
def test_scaled_positions_of_llama_3_1_as_transformers_converts(tmp_path: Path) -> None:
    """Whether the factor is that of 3.1 or 3.2 is told by the size, so the model is a wide one."""
    described = params(8, dim=4096, n_heads=32, n_layers=1, multiple_of=64, vocab_size=104)
    described |= {
        "n_kv_heads": 8,
        "ffn_dim_multiplier": 0.02,
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
    }
    tensors = wide_tensors()
    meta = save_meta(tmp_path / "meta", [tensors], described, pieces=104)
    run_in_transformers_446(WRITE_MODEL, meta, tmp_path / "theirs", 104)
    convert_checkpoint(meta, tmp_path / "ours", safe_serialization=True)
    require_equal(load_weights(tmp_path / "ours"), load_weights(tmp_path / "theirs"))
    config = read_config(tmp_path / "ours")
    assert config["rope_scaling"]["factor"] == 8.0
    expected = read_config(tmp_path / "theirs")
    assert config["max_position_embeddings"] == expected["max_position_embeddings"]
    ids = [5, 9, 100, 33] * 8
    assert torch.equal(logits(tmp_path / "ours", ids), logits(tmp_path / "theirs", ids))


def wide_tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    wide, kv, narrow = 4096, 1024, 256
    shapes = {
        "tok_embeddings": (104, wide),
        "layers.0.attention.wq": (wide, wide),
        "layers.0.attention.wk": (kv, wide),
        "layers.0.attention.wv": (kv, wide),
        "layers.0.attention.wo": (wide, wide),
        "layers.0.feed_forward.w1": (narrow, wide),
        "layers.0.feed_forward.w2": (wide, narrow),
        "layers.0.feed_forward.w3": (narrow, wide),
        "layers.0.attention_norm": (wide,),
        "layers.0.ffn_norm": (wide,),
        "norm": (wide,),
        "output": (104, wide),
    }
    return {
        f"{name}.weight": torch.randn(shape, generator=generator).mul_(0.05).bfloat16()
        for name, shape in shapes.items()
    }


@RELEASES
def test_back_to_meta_gives_the_same_files(
    tmp_path: Path, real_data: Path, release: str, count: int
) -> None:
    meta = make_llama3(tmp_path / "meta", real_data, release, count)
    convert_checkpoint(meta, tmp_path / "hf")
    convert_checkpoint(tmp_path / "hf", tmp_path / "back", output_type="pth", num_shards=count)
    names = sorted(path.name for path in meta.iterdir())
    assert names == sorted(
        p.name for p in (tmp_path / "back").iterdir() if "manifest" not in p.name
    )
    for name in names:
        if name.endswith(".pth"):
            found, given = (torch.load(f / name) for f in (tmp_path / "back", meta))
            require_equal(found, given)
    given = (meta / "tokenizer.model").read_bytes()
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == given
    described = json.loads((tmp_path / "back" / "params.json").read_text())
    assert described == llama3_params(release)


def test_token_ids_are_metas(tmp_path: Path, real_data: Path) -> None:
    meta = make_llama3(tmp_path / "meta", real_data)
    convert_checkpoint(meta, tmp_path / "hf", dry_run=False)
    text = (real_data / "text" / "zh_dialogues.txt").read_text(encoding="utf-8")
    lines = [*text.splitlines()[:300], *(ROOT / "README.md").read_text().splitlines()]
    special = {"<|begin_of_text|>": 128_000, "<|eot_id|>": 128_009}
    oracle = MetaTokenizer(meta / "tokenizer.model", special)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(lines) > 400
    assert loaded(lines)["input_ids"] == [[128_000, *oracle.encode(line)] for line in lines]


def test_chat_template_is_metas_format(tmp_path: Path, real_data: Path) -> None:
    meta = make_llama3(tmp_path / "meta", real_data, "3.2")
    arguments = ("--input_dir", meta, "--output_dir", tmp_path / "hf", "--chat_template", "llama3")
    assert run_merge(*arguments, script=CONVERT_LLAMA).returncode == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [
        {"role": "system", "content": "你是助手。"},
        {"role": "user", "content": "  hello\n"},
        {"role": "assistant", "content": "你好"},
        {"role": "user", "content": "再见"},
    ]
    special = {f"<|{name}|>": id_ for name, id_ in HEADERS.items()}
    oracle = MetaTokenizer(meta / "tokenizer.model", special)
    expected = [128_000]
    for message in [*messages, {"role": "assistant", "content": None}]:
        role = oracle.encode(str(message["role"]))
        expected += [128_006, *role, 128_007, *oracle.encode("\n\n")]
        if message["content"] is not None:
            expected += [*oracle.encode(message["content"].strip()), 128_009]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert loaded(text, add_special_tokens=False)["input_ids"] == expected
    assert loaded.eos_token_id == read_config(tmp_path / "hf")["eos_token_id"] == 128_009


HEADERS = {"start_header_id": 128_006, "end_header_id": 128_007, "eot_id": 128_009}


def test_untied_embeddings_of_a_small_model_stay_apart(tmp_path: Path, real_data: Path) -> None:
    tensors = meta_tensors(4, 128_256, torch.bfloat16)
    meta = save_meta(tmp_path / "meta", [tensors], llama3_params("3.2"), pieces=None)
    shutil.copyfile(real_data / "tokenizers" / "llama3_tiktoken.model", meta / "tokenizer.model")
    convert_checkpoint(meta, tmp_path / "hf")
    assert read_config(tmp_path / "hf")["tie_word_embeddings"] is False
    assert torch.equal(load_weights(tmp_path / "hf")["lm_head.weight"], tensors["output.weight"])


def test_tokenizer_of_another_model_is_refused(tmp_path: Path, real_data: Path) -> None:
    meta = make_llama3(tmp_path / "meta", real_data)
    lines = (meta / "tokenizer.model").read_bytes().splitlines(keepends=True)
    (meta / "tokenizer.model").write_bytes(b"".join(lines[:100_256]))
    found = run_merge("--input", meta, "--output", tmp_path / "hf", script=CONVERT)
    assert found.returncode == 2
    assert "not Llama 3's" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "hf").exists()


def test_tokenizer_json_without_merges_is_refused_for_pth(tmp_path: Path, real_data: Path) -> None:
    convert_checkpoint(make_llama3(tmp_path / "meta", real_data), tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["merges"] = []
    path.write_text(json.dumps(document), encoding="utf-8")
    arguments = ("--input", tmp_path / "hf", "--output", tmp_path / "out", "--output_type", "pth")
    found = run_merge(*arguments, script=CONVERT)
    assert found.returncode == 2
    assert "no merges" in found.stderr
    assert not (tmp_path / "out").exists()


def test_added_token_is_refused_for_pth(tmp_path: Path, real_data: Path) -> None:
    convert_checkpoint(make_llama3(tmp_path / "meta", real_data), tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["added_tokens"][12]["content"] = "<|im_start|>"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(VocabularyError, match="no tiktoken file") as error:
        convert_checkpoint(tmp_path / "hf", tmp_path / "out", output_type="pth")
    assert "'<|im_start|>' as 128012" in str(error.value)


def test_release_that_contradicts_params_json_is_refused(tmp_path: Path, real_data: Path) -> None:
    meta = make_llama3(tmp_path / "meta", real_data, "3")
    arguments = ("--input_dir", meta, "--output_dir", tmp_path / "hf", "--llama_version", "3.1")
    found = run_merge(*arguments, script=CONVERT_LLAMA)
    assert found.returncode == 2
    assert "contradict each other" in found.stderr


def test_alpaca_template_needs_llamas_tokenizer(tmp_path: Path, real_data: Path) -> None:
    meta = make_llama3(tmp_path / "meta", real_data)
    with pytest.raises(UsageError, match="--chat_template alpaca needs"):
        convert_checkpoint(meta, tmp_path / "hf", chat_template="alpaca")


def test_llama_3s_template_needs_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--chat_template llama3 needs"):
        convert_checkpoint(make_meta(tmp_path / "meta"), tmp_path / "hf", chat_template="llama3")
    assert not (tmp_path / "hf").exists()


def test_vocabularies_that_differ_are_refused(tmp_path: Path, real_data: Path) -> None:
    meta = make_llama3(tmp_path / "meta", real_data)
    convert_checkpoint(meta, tmp_path / "hf")
    shutil.copyfile(meta / "tokenizer.model", tmp_path / "hf" / "tokenizer.model")
    convert_checkpoint(tmp_path / "hf", tmp_path / "same")
    path = tmp_path / "hf" / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"Ġthe": 279', '"Ġthé": 279'), encoding="utf-8")
    with pytest.raises(VocabularyError, match="different vocabularies"):
        convert_checkpoint(tmp_path / "hf", tmp_path / "other")


def test_tokenizer_may_be_named_or_lie_above_the_folder(tmp_path: Path, real_data: Path) -> None:
    one, four = (make_llama3(tmp_path / f"{n}" / "8B", real_data, "3", n) for n in (1, 4))
    (one / "tokenizer.model").unlink()
    (four / "tokenizer.model").rename(four.parent / "tokenizer.model")
    named = real_data / "tokenizers" / "llama3_tiktoken.model"
    convert_checkpoint(one, tmp_path / "named", safe_serialization=True, tokenizer=named)
    convert_checkpoint(four, tmp_path / "above", safe_serialization=True)
    require_equal(load_weights(tmp_path / "named"), load_weights(tmp_path / "above"))
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("named", "above")]
    assert files[0] == files[1]
