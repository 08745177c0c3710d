"""Growing a Hugging Face Llama 3 to a tokenizer with more tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge.commands.resize_vocabulary import main
from merge.errors import VocabularyError
from merge.jobs.resize_vocabulary import resize_vocabulary
from merge.tokenizers.llama3_tokenizer import build_llama3_documents
from merge.tokenizers.tiktoken_model import Llama3Release, map_special_tokens, read_ranks
from tests.kit.compare import ulps
from tests.kit.files import load_weights
from tests.kit.grown_llama3 import NEW, OLD, TIKTOKEN, Grown
from tests.kit.llamas import make_base

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def make_llama3_base(folder: Path, grown: Grown, release: Llama3Release = "3") -> Path:
    """A tiny model with Llama 3's own rows and tokenizer, as people have it from the Hub."""
    base = make_base(
        folder,
        container=".safetensors",
        max_shard_size="1GB",
        vocab_size=OLD,
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        bos_token_id=128_000,
        eos_token_id=128_001,
    )
    (base / "tokenizer.model").unlink()
    documents = build_llama3_documents(read_ranks(grown.base), map_special_tokens(release), 8192)
    for name, content in documents.items():
        (base / name).write_bytes(content)
    return base


@pytest.fixture(scope="module")
def base(grown: Grown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama3_base(tmp_path_factory.mktemp("resize") / "base", grown)


@pytest.fixture(scope="module")
def larger(base: Path, grown: Grown) -> Path:
    output = base.parent / "larger"
    words = ["--base_model", str(base), "--tokenizer", str(grown.folder)]
    assert main([*words, "--output_dir", str(output), "--quiet"]) == 0
    return output


@pytest.mark.parametrize("name", [EMBED, HEAD])
def test_new_rows_are_the_mean_of_the_rows_of_tiktokens_old_tokens(
    base: Path, larger: Path, grown: Grown, name: str
) -> None:
    old, rows = load_weights(base)[name], load_weights(larger)[name]
    assert torch.equal(rows[:OLD], old)
    assert len(rows) == OLD + NEW
    meta = grown.meta(grown.base)
    texts = {id_: token.decode("utf-8", "replace") for token, id_ in grown.new_tokens.items()}
    whole = {id_: text for id_, text in texts.items() if "\ufffd" not in text}
    assert len(whole) > 0.9 * NEW
    for id_, text in whole.items():
        expected = old[meta.encode(text)].double().mean(dim=0).half()
        assert int(ulps(rows[id_], expected).max()) <= 1, text


def test_transformers_runs_the_result_on_the_same_ids(
    base: Path, larger: Path, grown: Grown
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(larger)
    meta = grown.meta(grown.folder / TIKTOKEN)
    lines = grown.held_out[:200]
    ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
    assert ids == [meta.encode(line) for line in lines]
    before, after = (AutoModelForCausalLM.from_pretrained(f, dtype="auto") for f in (base, larger))
    assert after.config.vocab_size == OLD + NEW
    old = torch.tensor([[id_ for line in ids for id_ in line if id_ < OLD][:50]])
    with torch.no_grad():
        expected, found = before(old).logits, after(old).logits
    torch.testing.assert_close(found[..., :OLD], expected, rtol=0, atol=1e-2)
    config = json.loads((larger / "config.json").read_text(encoding="utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"]) == (128_000, 128_001)


def test_a_tokenizer_grown_from_another_release_is_refused(grown: Grown, tmp_path: Path) -> None:
    base = make_llama3_base(tmp_path / "base", grown, "3.1")
    with pytest.raises(VocabularyError, match=r"finetune_right_pad_id.* as token 128004"):
        resize_vocabulary(base, grown.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_lost_its_merges_is_refused(
    base: Path, grown: Grown, tmp_path: Path
) -> None:
    fast = json.loads((grown.folder / "tokenizer.json").read_bytes())
    fast["model"]["merges"] = fast["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    with pytest.raises(VocabularyError, match="every merge that the ranks imply"):
        resize_vocabulary(base, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
