"""Ollama's Modelfile: of its grammar, and its prompts are those that the models were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest

from merge import convert_checkpoint, verify_merge
from merge.errors import UsageError
from merge.layouts.gguf.modelfile import FORMATS, MODELFILE_NAME, build_modelfile
from merge.plan.documents import _ALPACA
from merge.settings import MODELFILES
from tests.kit.llamas import make_base
from tests.kit.ollama import fill_template, parse_modelfile

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
    return fill_template(chat.template, chat.system if system is None else system, talk)


def _fill_jinja(template: str, talk: list[dict[str, str]], **more: Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(messages=talk, **more)


@pytest.mark.parametrize("count", [1, 3])
def test_alpacas_prompt_is_that_of_the_chat_template(count: int) -> None:
    words = {"bos_token": "", "eos_token": "</s>", "add_generation_prompt": True}
    assert _fill("alpaca", _TALK[:count]) == _fill_jinja(_ALPACA, _TALK[:count], **words)


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
    made = build_modelfile(name, ["model.gguf"], {"tokenizer": "".join(chat.tokens).encode()})
    assert parse_modelfile(made[MODELFILE_NAME].decode()) == [
        ("FROM", "./model.gguf"),
        ("TEMPLATE", chat.template),
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
