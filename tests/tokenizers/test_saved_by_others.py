"""Tokenizers that other libraries save beside adapters: tokens, end of text and template."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from merge import apply_delta, convert_checkpoint, merge_lora, verify_merge
from merge.errors import VocabularyError
from tests.kit.files import tree, write_json
from tests.kit.models import (
    HIDDEN,
    base_tensors,
    random_tensor,
    save_adapter,
    save_base,
)
from tests.kit.saved_tokenizers import (
    CHATML,
    KINDS,
    PIECES,
    SavedTokenizers,
    Tokens,
    rows_of,
    save_adapter_with,
    save_base_with,
)

SAMPLES = [
    "Hello world, this is a test.",
    "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n",
    "中文也要测试【工具】x 你好世界！",
    "a<pad>b hello_world</s>x_tool",
]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@cache
def unmerged(folder: Path) -> Any:
    """The tokenizer of a ``tokenizer.json`` as it is, with the names of its configuration.

    ``AutoTokenizer`` of transformers 5 makes another one of it: ``legacy``, which it does not save,
    is then False, and no space stands behind a special token. transformers 4 reads it as here.
    """
    from transformers import PreTrainedTokenizerFast

    said = json.loads((folder / "tokenizer_config.json").read_bytes())
    names = {f"{role}_token": said.get(f"{role}_token") for role in ("bos", "eos", "unk", "pad")}
    made = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    template = folder / "chat_template.jinja"
    made.chat_template = template.read_text(encoding="utf-8") if template.is_file() else None
    return made


@cache
def loaded(folder: Path, trusted: bool = False) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)


def require_same_tokenizer(out: Path, reference: Any, tokens: Tokens) -> None:
    """The merged folder gives what transformers gives on the unmerged pair."""
    found = loaded(out, True)
    for text in SAMPLES:
        assert found(text).input_ids == reference(text).input_ids, text
    ids = {text: PIECES + n for n, text in enumerate(tokens.added)}
    assert {text: found.convert_tokens_to_ids(text) for text in ids} == ids
    assert found.eos_token == reference.eos_token == (tokens.eos or "</s>")
    assert found.pad_token == reference.pad_token
    special = set(tokens.special) | ({tokens.eos} if tokens.eos else set())
    assert special <= set(found.all_special_tokens)
    assert not set(tokens.plain) & set(found.all_special_tokens)
    if tokens.template:
        rendered = [t.apply_chat_template(MESSAGES, tokenize=False) for t in (found, reference)]
        assert rendered[0] == rendered[1]
    else:
        assert not found.chat_template
    for name in ("config.json", "generation_config.json"):
        said = json.loads((out / name).read_bytes())
        assert said["eos_token_id"] == found.eos_token_id
        assert said.get("pad_token_id") == found.pad_token_id


def require_same_gguf(path: Path, reference: Any, tokens: Tokens) -> None:
    fields = {name: f.contents() for name, f in GGUFReader(path).fields.items()}
    listed = fields["tokenizer.ggml.tokens"]
    assert tuple(listed[PIECES:]) == tokens.added
    kinds = dict(zip(listed, fields["tokenizer.ggml.token_type"], strict=True))
    assert all(kinds[text] == 3 for text in tokens.special)  # CONTROL
    assert all(kinds[text] == 4 for text in tokens.plain)  # USER_DEFINED
    assert fields["tokenizer.ggml.eos_token_id"] == reference.eos_token_id
    assert fields.get("tokenizer.ggml.padding_token_id") == reference.pad_token_id
    assert fields.get("tokenizer.chat_template") == tokens.template


def require_added_tokens(out: Path, tokens: Tokens) -> None:
    path = out / "added_tokens.json"
    said = json.loads(path.read_bytes()) if path.is_file() else {}
    assert said == {text: PIECES + n for n, text in enumerate(tokens.added)}


@pytest.mark.parametrize("release", ["5", "4.46"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_tokenizer_goes_into_every_output(
    tmp_path: Path, made: SavedTokenizers, kind: str, release: str
) -> None:
    tokens = KINDS[kind]
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter_with(tmp_path / "lora", made.written(release, kind), rows_of(tokens))
    reference = unmerged(made.by_5 / kind)
    hf = {"output_type": "huggingface"}
    merge_lora(base, adapter, tmp_path / "hf", **hf)
    require_same_tokenizer(tmp_path / "hf", reference, tokens)
    merge_lora(base, adapter, tmp_path / "gguf", output_type="gguf")
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    require_same_gguf(file, reference, tokens)
    merge_lora(base, adapter, tmp_path / "pth")
    require_added_tokens(tmp_path / "pth", tokens)
    for name in ("hf", "gguf", "pth"):
        assert not verify_merge(tmp_path / name).faults, name
    # A merged folder is a base again, and converts without a loss.
    convert_checkpoint(tmp_path / "hf", tmp_path / "again")
    require_same_tokenizer(tmp_path / "again", reference, tokens)


COMBINATIONS = 320
PARTS = 16


def combination(seed: int) -> dict[str, Any]:
    choose = random.Random(seed).choice
    return {
        "fast base": choose([False, True]),
        "base's template": choose(["", "", "{{ messages[0].content }}"]),
        "release": choose(["5", "4.46"]),
        "kind": choose(list(KINDS)),
        "copied model": choose([False, True]),
        "both": choose([False, False, True]),
        "template in": choose(["as written", "jinja", "json", "config"]),
        "named": choose([False, False, True]),
        "output": choose(["huggingface", "huggingface", "gguf", "pth"]),
    }


def place_template(folder: Path, template: str, place: str) -> None:
    """Move the template to another file that a release keeps it in."""
    if place == "as written":
        return
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_bytes())
    said.pop("chat_template", None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if place == "jinja":
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    elif place == "json":
        write_json(folder / "chat_template.json", {"chat_template": template})
    else:
        said["chat_template"] = template
    write_json(path, said)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_combinations_give_what_transformers_gives_unmerged(
    tmp_path: Path, made: SavedTokenizers, part: int
) -> None:
    for seed in range(part, COMBINATIONS, PARTS):
        said = combination(seed)
        tokens = KINDS[said["kind"]]
        folder = tmp_path / str(seed)
        folder.mkdir()
        base = save_base_with(
            folder / "base", made, fast=said["fast base"], template=said["base's template"]
        )
        tokenizer = folder / "tokenizer"
        shutil.copytree(made.written(said["release"], said["kind"]), tokenizer)
        if said["copied model"]:
            shutil.copy(made.base / "tokenizer.model", tokenizer)
        if said["both"]:
            shutil.copytree(made.written("5", said["kind"]), tokenizer, dirs_exist_ok=True)
        if tokens.template:
            place_template(tokenizer, tokens.template, said["template in"])
        adapter = save_adapter_with(folder / "lora", made.base, rows_of(tokens))
        options: dict[str, Any] = {"output_type": said["output"]}
        if said["named"]:
            options["tokenizer"] = tokenizer
        else:
            for path in made.base.iterdir():
                (adapter / path.name).unlink()
            shutil.copytree(tokenizer, adapter, dirs_exist_ok=True)
        out = folder / "out"
        report = merge_lora(base, adapter, out, **options)
        reference = unmerged(made.by_5 / said["kind"])
        if said["output"] == "huggingface":
            require_same_tokenizer(out, reference, tokens)
        elif said["output"] == "gguf":
            require_same_gguf(next(out.glob("*.gguf")), reference, tokens)
        else:
            require_added_tokens(out, tokens)
        if said["base's template"] and not tokens.template:
            assert "chat template" in report.summary(), said
        if not said["named"]:
            assert not verify_merge(out).faults, said
        shutil.rmtree(folder)
    loaded.cache_clear()
    unmerged.cache_clear()


def test_several_templates_are_kept_by_name(tmp_path: Path, made: SavedTokenizers) -> None:
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter_with(tmp_path / "lora", made.by_5 / "chatml", PIECES + 2)
    (adapter / "additional_chat_templates").mkdir()
    further = adapter / "additional_chat_templates/tool_use.jinja"
    further.write_text("{{ messages }} {{ tools }}", encoding="utf-8")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    found = loaded(tmp_path / "out", True)
    assert found.chat_template == {"default": CHATML, "tool_use": "{{ messages }} {{ tools }}"}
    merge_lora(base, adapter, tmp_path / "gguf", output_type="gguf")
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    fields = {name: f.contents() for name, f in GGUFReader(file).fields.items()}
    assert fields["tokenizer.chat_template"] == CHATML
    assert fields["tokenizer.chat_template.tool_use"] == "{{ messages }} {{ tools }}"


def test_template_alone_joins_the_bases_tokenizer(tmp_path: Path, made: SavedTokenizers) -> None:
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter(tmp_path / "lora")
    (adapter / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert loaded(tmp_path / "out", True).chat_template == "{{ messages }}"


def test_base_and_delta_may_have_added_tokens_in_tokenizer_json(
    tmp_path: Path, made: SavedTokenizers
) -> None:
    """A model that was saved with transformers 5, into which somebody copied tokenizer.model."""
    tensors = base_tensors(PIECES)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = random_tensor(PIECES + 2, HIDDEN, seed=3)
    folder = save_base(tmp_path / "model", tensors, pieces=None, vocab_size=PIECES + 2)
    shutil.copytree(made.by_5 / "chatml", folder, dirs_exist_ok=True)
    shutil.copy(made.base / "tokenizer.model", folder)
    reference = unmerged(made.by_5 / "chatml")
    convert_checkpoint(folder, tmp_path / "out")
    require_same_tokenizer(tmp_path / "out", reference, KINDS["chatml"])
    merge_lora(folder, save_adapter(tmp_path / "lora"), tmp_path / "pth")
    require_added_tokens(tmp_path / "pth", KINDS["chatml"])


def test_list_of_ends_is_kept_and_extended(tmp_path: Path, made: SavedTokenizers) -> None:
    base = save_base_with(tmp_path / "base", made)
    write_json(base / "generation_config.json", {"eos_token_id": [2, 7], "temperature": 0.5})
    adapter = save_adapter_with(tmp_path / "lora", made.by_5 / "chatml", PIECES + 2)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    said = json.loads((tmp_path / "out/generation_config.json").read_bytes())
    assert said["eos_token_id"] == [2, 7, PIECES + 1]
    assert said["temperature"] == 0.5
    assert json.loads((tmp_path / "out/config.json").read_bytes())["eos_token_id"] == PIECES + 1


def test_delta_may_have_its_tokens_in_tokenizer_json_alone(
    tmp_path: Path, made: SavedTokenizers
) -> None:
    base = save_base_with(tmp_path / "base", made)
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    tensors = {
        name: random_tensor(PIECES + 2 if name in rows else len(tensor), *tensor.shape[1:], seed=5)
        for name, tensor in base_tensors(PIECES).items()
    }
    delta = save_base(tmp_path / "delta", tensors, pieces=None, vocab_size=PIECES + 2)
    shutil.copytree(made.by_5 / "chatml", delta, dirs_exist_ok=True)
    apply_delta(base, delta, tmp_path / "out")
    require_same_tokenizer(tmp_path / "out", unmerged(made.by_5 / "chatml"), KINDS["chatml"])
    assert not verify_merge(tmp_path / "out").faults
    apply_delta(base, delta, tmp_path / "pth", output_type="pth")
    require_added_tokens(tmp_path / "pth", KINDS["chatml"])


def test_tokens_without_rows_are_refused_and_grown_on_request(
    tmp_path: Path, made: SavedTokenizers
) -> None:
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter_with(tmp_path / "lora", made.by_5 / "chatml", None)
    before = tree(tmp_path)
    with pytest.raises(VocabularyError) as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert "--new_token_init" in caught.value.facts["remedy"]
    assert tree(tmp_path) == before
    options = {"new_token_init": "mean", "output_type": "huggingface"}
    merge_lora(base, adapter, tmp_path / "out", **options)
    require_same_tokenizer(tmp_path / "out", unmerged(made.by_5 / "chatml"), KINDS["chatml"])


def test_no_message_invents_an_id(tmp_path: Path, made: SavedTokenizers) -> None:
    """A special token of which no file says the id: the row after the last need not be its own."""
    base = save_base_with(tmp_path / "base", made)
    adapter = save_adapter_with(tmp_path / "lora", made.base, PIECES + 2)
    said = json.loads((adapter / "tokenizer_config.json").read_bytes())
    write_json(adapter / "tokenizer_config.json", said | {"eos_token": "<|im_end|>"})
    with pytest.raises(VocabularyError, match=r"'<\|im_end\|>' is not a token") as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert str(PIECES) not in caught.value.facts["remedy"]
    # The same folder with the list that has the ids is merged.
    shutil.copy(made.by_5 / "chatml/tokenizer.json", adapter)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    ids = loaded(tmp_path / "out", True).convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids == [PIECES, PIECES + 1]
