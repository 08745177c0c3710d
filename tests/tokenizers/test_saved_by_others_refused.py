"""Saved tokenizers that contradict rows or each other are refused; what a result lost is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merge import merge_lora, verify_merge
from merge.errors import MergeError
from tests.kit.files import tree, write_json
from tests.kit.saved_tokenizers import (
    PIECES,
    SavedTokenizers,
    save_adapter_with,
    save_base_with,
)


def changed_list(adapter: Path) -> None:
    path = adapter / "tokenizer.json"
    said = json.loads(path.read_bytes())
    vocab = said["model"]["vocab"]
    first, second = (piece for piece, id_ in vocab.items() if id_ in (300, 301))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    write_json(path, said)


def other_ids(adapter: Path) -> None:
    write_json(adapter / "added_tokens.json", {"<|im_start|>": PIECES + 1, "<|im_end|>": PIECES})


def no_vocabulary(adapter: Path) -> None:
    path = adapter / "tokenizer.json"
    write_json(path, json.loads(path.read_bytes()) | {"model": {"type": "BPE"}})


def odd_tokens(adapter: Path) -> None:
    path = adapter / "tokenizer.json"
    write_json(path, json.loads(path.read_bytes()) | {"added_tokens": [{"content": "<a>"}]})


CONTRADICTIONS = {
    "pieces": (changed_list, "different vocabularies"),
    "added tokens": (other_ids, "contradicts"),
    "no vocabulary": (no_vocabulary, "holds no vocabulary"),
    "list": (odd_tokens, "list of added tokens"),
}


@pytest.mark.parametrize(("change", "told"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_refused_with_both_sides(
    tmp_path: Path, made: SavedTokenizers, change: Any, told: str
) -> None:
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter_with(tmp_path / "lora", made.by_5 / "chatml", PIECES + 2)
    change(adapter)
    before = tree(tmp_path)
    with pytest.raises(MergeError, match=told) as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert {"file", "found"} <= caught.value.facts.keys()
    assert tree(tmp_path) == before


def lost_template(out: Path) -> None:
    (out / "chat_template.jinja").unlink(missing_ok=True)
    path = out / "tokenizer_config.json"
    said = json.loads(path.read_bytes())
    said.pop("chat_template")
    write_json(path, said)


def other_end(out: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = out / name
        write_json(path, json.loads(path.read_bytes()) | {"eos_token": "</s>"})
    for name in ("config.json", "generation_config.json"):
        path = out / name
        write_json(path, json.loads(path.read_bytes()) | {"eos_token_id": 2})


def other_generation(out: Path) -> None:
    path = out / "generation_config.json"
    write_json(path, json.loads(path.read_bytes()) | {"eos_token_id": 2})


LOSSES = {"template": lost_template, "end": other_end, "end of generation": other_generation}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_verification_calls_what_was_lost_wrong(
    tmp_path: Path, made: SavedTokenizers, lose: Any
) -> None:
    """As merges did that read no tokenizer.json; without a manifest, which has digests."""
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter_with(tmp_path / "lora", made.by_5 / "chatml", PIECES + 2)
    out = tmp_path / "out"
    merge_lora(base, adapter, out, output_type="huggingface")
    (out / "merge_manifest.json").unlink()
    inputs = {"base_model": base, "lora_model": adapter}
    assert not verify_merge(out, **inputs).faults
    lose(out)
    assert verify_merge(out, **inputs).faults


def test_verification_calls_lost_added_tokens_of_pth_wrong(
    tmp_path: Path, made: SavedTokenizers
) -> None:
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter_with(tmp_path / "lora", made.by_5 / "chatml", PIECES + 2)
    out = tmp_path / "out"
    merge_lora(base, adapter, out)
    (out / "merge_manifest.json").unlink()
    (out / "added_tokens.json").unlink()
    assert verify_merge(out, base_model=base, lora_model=adapter).faults
