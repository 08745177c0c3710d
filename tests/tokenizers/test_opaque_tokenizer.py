"""A tokenizer without tokenizer.model: copied as it is, with the size and the ends that it has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from merge import merge_lora, verify_merge
from merge.errors import UsageError, VocabularyError
from tests.kit.adapters import load, make_lora
from tests.kit.decoders import SIZES, TEXTS, grow_tokenizer, make_decoder, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_tokenizer_is_copied_byte_for_byte(tmp_path: Path, tokenizer: Path) -> None:
    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    for path in tokenizer.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    ours, theirs = (AutoTokenizer.from_pretrained(f) for f in (tmp_path / "out", base))
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids
    assert ours.chat_template == theirs.chat_template


def test_adapters_tokenizer_is_taken_before_the_bases(tmp_path: Path, tokenizer: Path) -> None:
    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    shutil.copytree(tokenizer, adapter, dirs_exist_ok=True)
    (adapter / "chat_template.jinja").write_text("mine", encoding="utf-8")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_vocabulary_grows_with_the_adapter(tmp_path: Path, tokenizer: Path, tied: bool) -> None:
    settings = SIZES | {"tie_word_embeddings": tied}
    base = make_decoder(tmp_path / "base", "Qwen2Config", settings, tokenizer)
    saved = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": tied}
    adapter = make_lora(tmp_path / "lora", base, rows=330, **saved)
    (adapter / "tokenizer.model").unlink()
    with pytest.raises(VocabularyError, match="do not belong together"):
        merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    grow_tokenizer(adapter, tokenizer, 5)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface", dtype="float32")
    assert load(tmp_path / "out").config.vocab_size == 330
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("new4").input_ids == [304]


@pytest.mark.parametrize("tokens", [290, 325])
def test_tokenizer_of_another_size_is_refused(tmp_path: Path, tokenizer: Path, tokens: int) -> None:
    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    path = adapter / "tokenizer.json"
    made = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    made["model"]["vocab"] = {f"t{n}": n for n in range(tokens)}
    made["added_tokens"] = []
    path.write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(VocabularyError) as caught:
        merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert caught.value.facts["found"] == f"{tokens} tokens"
    assert not (tmp_path / "out").exists()


def test_new_rows_are_for_tokenizers_that_are_understood(tmp_path: Path, tokenizer: Path) -> None:
    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    grow_tokenizer(adapter, tokenizer, 40)
    settings = {"output_type": "huggingface", "new_token_init": "mean"}
    with pytest.raises(UsageError, match="--new_token_init needs"):
        merge_lora(base, adapter, tmp_path / "out", **settings)


def test_text_ends_where_the_adapters_tokenizer_ends_it(tmp_path: Path, tokenizer: Path) -> None:
    """As Qwen's chat models do: the base ends with another token than the adapter's training."""
    settings = SIZES | {"eos_token_id": 0}
    base = make_decoder(tmp_path / "base", "Qwen2Config", settings, tokenizer)
    generation = {"eos_token_id": [0, 1], "top_p": 0.5}
    (base / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    adapter = make_lora(tmp_path / "lora", base)
    shutil.copytree(tokenizer, adapter, dirs_exist_ok=True)
    out = tmp_path / "out"
    merge_lora(base, adapter, out, output_type="huggingface")
    found = AutoTokenizer.from_pretrained(out)
    assert found.eos_token == "<|im_end|>"
    assert load(out).config.eos_token_id == found.eos_token_id
    said = json.loads((out / "generation_config.json").read_bytes())
    assert said == {"eos_token_id": [0, 1, found.eos_token_id], "top_p": 0.5}
    assert not verify_merge(out).faults
    config = json.loads((out / "config.json").read_bytes()) | {"eos_token_id": 0}
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "merge_manifest.json").unlink()
    faults = verify_merge(out, base_model=base, lora_model=adapter).faults
    assert any("generation would not end" in str(fault) for fault in faults)
    # The base's own tokenizer changes nothing that the base's own configuration says.
    plain = make_lora(tmp_path / "plain", base)
    merge_lora(base, plain, tmp_path / "as it is", output_type="huggingface")
    assert load(tmp_path / "as it is").config.eos_token_id == 0


def test_templates_of_further_files_are_where_transformers_reads_them(
    tmp_path: Path, tokenizer: Path
) -> None:
    base = make_decoder(tmp_path / "base", "Qwen2Config", SIZES, tokenizer)
    adapter = make_lora(tmp_path / "lora", base)
    shutil.copytree(tokenizer, adapter, dirs_exist_ok=True)
    (adapter / "chat_template.jinja").unlink()
    said = json.dumps({"chat_template": "{{ messages }}"})
    (adapter / "chat_template.json").write_text(said, encoding="utf-8")
    merge_lora(base, adapter, tmp_path / "json", output_type="huggingface")
    found = AutoTokenizer.from_pretrained(tmp_path / "json")
    assert found.chat_template == "{{ messages }}"
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates/rag.jinja").write_text("rag", encoding="utf-8")
    merge_lora(base, adapter, tmp_path / "several", output_type="huggingface")
    found = AutoTokenizer.from_pretrained(tmp_path / "several")
    assert found.chat_template == {"default": "{{ messages }}", "rag": "rag"}
    for path in adapter.glob("*chat_template*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = merge_lora(base, adapter, tmp_path / "none", output_type="huggingface")
    assert "chat template is dropped" in report.summary()
