"""Ollama's Modelfile: of its grammar, and its prompts are those that the models were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.errors import UsageError
from merge.layouts.gguf.modelfile import GO_TEMPLATES, MODELFILE_NAME, build_modelfile
from merge.settings import MODELFILES
from merge.tokenizers.chat_formats import FORMATS
from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.ollama import fill_template, parse_modelfile
from tests.kit.rewritten_gguf import rewrite_gguf

_TALK = [
    {"role": "user", "content": "甲"},
    {"role": "assistant", "content": "乙"},
    {"role": "user", "content": "丙 {{ \n丁"},
]
_HELPFUL = "You are a helpful assistant. 你是一个乐于助人的助手。"
_LLAMA_3 = (  # Llama 3's own template, for a system message and what follows
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def _fill(name: str, talk: list[dict[str, str]], system: str | None = None) -> str:
    chat = FORMATS[name]
    return fill_template(GO_TEMPLATES[name], chat.system if system is None else system, talk)


def _fill_jinja(template: str, talk: list[dict[str, str]], **more: Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(messages=talk, **more)


@pytest.mark.parametrize("count", [1, 3])
def test_alpacas_prompt_is_that_of_the_chat_template(count: int) -> None:
    words = {"bos_token": "", "eos_token": "</s>", "add_generation_prompt": True}
    template = FORMATS["alpaca"].template
    assert _fill("alpaca", _TALK[:count]) == _fill_jinja(template, _TALK[:count], **words)


def test_alpaca_2s_prompt_is_that_of_its_authors() -> None:
    first = f"[INST] <<SYS>>\n{_HELPFUL}\n<</SYS>>\n\n甲 [/INST]"
    assert _fill("alpaca2", _TALK[:1]) == first
    assert _fill("alpaca2", _TALK) == f"{first} 乙</s><s>[INST] 丙 {{{{ \n丁 [/INST]"
    assert _fill("alpaca2", _TALK[:1], system="") == "[INST] 甲 [/INST]"


@pytest.mark.parametrize("count", [1, 3])
def test_llama_3s_prompt_is_that_of_its_template(count: int) -> None:
    whole = [{"role": "system", "content": _HELPFUL}, *_TALK[:count]]
    assert _fill("llama3", _TALK[:count]) == _fill_jinja(_LLAMA_3, whole)


@pytest.mark.parametrize("name", MODELFILES)
def test_the_file_is_of_ollamas_grammar(name: str) -> None:
    chat = FORMATS[name]
    made = build_modelfile(name, ["model.gguf"], ["<unk>", *chat.tokens])
    assert parse_modelfile(made[MODELFILE_NAME].decode()) == [
        ("FROM", "./model.gguf"),
        ("TEMPLATE", GO_TEMPLATES[name]),
        ("SYSTEM", chat.system),
        *(("PARAMETER", f"stop {word}") for word in chat.stops),
    ]


@pytest.mark.parametrize(
    "text", ["TEMPLATE x\n", "FROM ./a\nNOTHING x\n", 'FROM ./a\nSYSTEM """x\n', "FROM\n"]
)
def test_other_texts_are_not_of_the_grammar(text: str) -> None:
    with pytest.raises(ValueError, match=r"no |not one|more"):
        parse_modelfile(text)


def test_it_lies_beside_the_file_and_is_checked_with_it(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    base = make_base(tmp_path / "base")
    convert_checkpoint(base, tmp_path / "out", output_type="gguf", modelfile="alpaca2")
    path = tmp_path / "out" / MODELFILE_NAME
    (_, file), *_ = parse_modelfile(path.read_text(encoding="utf-8"))
    assert (tmp_path / "out" / file).is_file()
    assert not verify_merge(tmp_path / "out").faults
    path.write_text("FROM elsewhere\n", encoding="utf-8")
    (fault,) = verify_merge(tmp_path / "out").faults
    assert fault.facts["file"] == str(path)


def test_tokens_of_a_gguf_base_are_its_tokens(tmp_path: Path) -> None:
    """Not those of a chat template, which a base has among its documents."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    base = make_base(tmp_path / "base")
    lora = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    convert_checkpoint(base, tmp_path / "plain", output_type="gguf", chat_template="alpaca")
    (plain,) = (tmp_path / "plain").glob("*.gguf")
    tokens = gguf.GGUFReader(plain).fields["tokenizer.ggml.tokens"].contents()
    own = {"tokenizer.ggml.tokens": [*tokens[:-2], "<|eot_id|>", "<|start_header_id|>"]}
    file = rewrite_gguf(plain, tmp_path / "llama3.gguf", own)
    options = {"output_type": "gguf", "modelfile": "llama3"}
    merge_lora(file, lora, tmp_path / "out", **options)
    assert "FROM ./" in (tmp_path / "out" / MODELFILE_NAME).read_text(encoding="utf-8")
    said = {"tokenizer.chat_template": "<|start_header_id|>user<|end_header_id|>x<|eot_id|>"}
    other = rewrite_gguf(plain, tmp_path / "other.gguf", said)
    with pytest.raises(UsageError, match="another tokenizer"):
        merge_lora(other, lora, tmp_path / "no", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modelfile": "llama3"}, "another tokenizer"),
        ({"modelfile": "alpaca", "split_max_size": "30kB"}, "one GGUF file"),
        ({"modelfile": "alpaca3"}, "did you mean alpaca"),
        ({"modelfile": "alpaca", "output_type": "huggingface"}, "--output_type gguf"),
    ],
)
def test_what_cannot_be_right_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    pytest.importorskip("gguf", reason="needs the package gguf")
    base = make_base(tmp_path / "base")
    with pytest.raises(UsageError) as caught:
        convert_checkpoint(base, tmp_path / "out", **{"output_type": "gguf", **options})
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
