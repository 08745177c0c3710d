"""Both libraries: greedy answers are their own, and streaming changes no character."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge import convert_checkpoint
from merge.errors import MergeError
from merge.inference import opening
from merge.inference.opening import Models, find_model, open_model
from merge.inference.settings import ChatSettings
from merge.inference.talk import Talk, choose_prompting
from merge.tokenizers.chat_formats import FORMATS
from tests.inference.conftest import ANSWER
from tests.kit.run import run_python
from tests.kit.talking_models import set_template

_GREEDY = ChatSettings(template="alpaca", temperature=0, repetition_penalty=1.0, max_tokens=40)
_LLAMA_CPP = """
import json, sys
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=512, n_gpu_layers=0, verbose=False)
done = llm(sys.argv[2], max_tokens=40, temperature=0.0, repeat_penalty=1.0)
print(json.dumps(done["choices"][0]["text"]))
"""
_PROMPT = "### Instruction:\n\nSay it\n\n### Response:\n\n"


def answer(path: Path, question: str, settings: ChatSettings = _GREEDY) -> list[str]:
    """The pieces of one answer."""
    with closing(Models([find_model(str(path))], settings)) as models:
        model = models.get(0)
        return list(Talk(choose_prompting(model, settings), settings).ask(model, question))


def test_greedy_answer_is_that_of_transformers_generate(random_model: Path, tmp_path: Path) -> None:
    convert_checkpoint(random_model, tmp_path / "written")  # with the tokenizer's own class
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "written", trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32)
    ids = tokenizer(FORMATS["alpaca"].system + "\n\n" + _PROMPT, return_tensors="pt")
    done = model.generate(**ids, do_sample=False, max_new_tokens=40, pad_token_id=2)
    expected = tokenizer.decode(done[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    pieces = answer(random_model, "Say it")
    assert "".join(pieces) == expected
    assert len(pieces) > 10


def test_greedy_answer_is_that_of_llama_cpps_completion(random_gguf: Path) -> None:
    prompt = FORMATS["alpaca"].system + "\n\n" + _PROMPT
    theirs = run_python("-c", _LLAMA_CPP, random_gguf, prompt)
    options = ("--temperature", 0, "--repetition_penalty", 1, "--max_tokens", 40)
    words = (random_gguf, "--template", "alpaca", "--prompt", "Say it", *options)
    ours = run_python("scripts/chat.py", *words, "--quiet")
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == json.loads(theirs.stdout) + "\n"
    assert len(ours.stdout) > 40


def test_characters_of_several_byte_tokens_come_whole(reciting: Path) -> None:
    assert answer(reciting, "x") == list(ANSWER)


def test_characters_come_whole_from_llama_cpp(reciting_gguf: Path) -> None:
    words = (reciting_gguf, "--template", "alpaca", "--prompt", "x", "--temperature", 0)
    done = run_python("scripts/chat.py", *words)
    assert (done.returncode, done.stdout) == (0, ANSWER + "\n")
    assert "template: alpaca" in done.stderr


def test_drawing_with_a_seed_gives_the_same_answer_again(random_model: Path) -> None:
    drawn = {"template": "alpaca", "temperature": 2.0, "top_k": 0, "top_p": 1.0, "max_tokens": 20}
    said: dict[int, set[str]] = {1: set(), 2: set()}
    for seed in (1, 2, 1, 2):
        said[seed].add("".join(answer(random_model, "x", ChatSettings(**drawn, seed=seed))))  # type: ignore[arg-type]
    assert [len(one) for one in said.values()] == [1, 1]
    assert said[1] != said[2]


def test_closing_an_answer_ends_it_and_the_talk_goes_on(random_model: Path) -> None:
    settings = ChatSettings(template="alpaca", temperature=0, max_tokens=2000)
    model = open_model(find_model(str(random_model)), settings)
    talk = Talk(choose_prompting(model, settings), settings)
    pieces = talk.ask(model, "x")
    first = next(pieces)
    pieces.close()
    assert [turn["content"] for turn in talk.turns] == ["x", first.strip()]
    assert next(talk.ask(model, "y"))


def test_template_of_the_tokenizer_is_used_where_it_has_one(
    random_model: Path, tmp_path: Path
) -> None:
    convert_checkpoint(random_model, tmp_path / "own")
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    folder = set_template(tmp_path / "own", template)
    model = open_model(find_model(str(folder)), ChatSettings())
    prompting = choose_prompting(model, ChatSettings())
    assert prompting.template == template
    asked = [{"role": "user", "content": "hi"}]
    assert model.render(template, asked) == "<s>user: hi\n"
    ids = model.encode("<s>user: hi\n")
    assert ids.count(1) == 1
    assert ids == model.encode("user: hi\n")


@pytest.mark.parametrize("available", [None, 1000])
def test_one_model_at_a_time_is_in_memory_unless_both_fit(
    random_model: Path, reciting: Path, available: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [find_model(str(path)) for path in (random_model, reciting)]
    monkeypatch.setattr(opening, "available_memory", lambda: available)
    models = Models(sources, ChatSettings(device="cpu"))
    models.get(0), models.get(1)
    assert [models.is_open(0), models.is_open(1)] == [False, True]
    monkeypatch.setattr(opening, "available_memory", lambda: 1 << 40)
    models = Models(sources, ChatSettings(device="cpu"))
    models.get(0), models.get(1)
    assert [models.is_open(0), models.is_open(1)] == [True, True]


def test_earlier_turns_are_left_out_when_the_context_is_full(reciting: Path) -> None:
    settings = ChatSettings(template="alpaca", temperature=0, context=300, max_tokens=20)
    model = open_model(find_model(str(reciting)), settings)
    talk = Talk(choose_prompting(model, settings), settings)
    for question in "abcdef":
        assert "".join(talk.ask(model, question)) == ANSWER
    assert [turn["content"] for turn in talk.turns][-2:] == ["f", ANSWER]
    assert len(talk.turns) < 12
    with pytest.raises(MergeError, match="longer than the model's context"):
        next(talk.ask(model, "word " * 300))


def test_model_that_does_not_say_how_it_is_talked_to_is_refused(random_model: Path) -> None:
    model = open_model(find_model(str(random_model)), ChatSettings())
    with pytest.raises(MergeError, match="does not say") as caught:
        choose_prompting(model, ChatSettings())
    assert "--template alpaca" in caught.value.facts["remedy"]
    with pytest.raises(MergeError, match="another tokenizer"):
        choose_prompting(model, ChatSettings(template="llama3"))
    with pytest.raises(MergeError, match="no chat template of its own"):
        choose_prompting(model, ChatSettings(template="own"))


def test_alpaca_2_is_asked_as_its_authors_do(random_model: Path) -> None:
    model = open_model(find_model(str(random_model)), ChatSettings())
    known = FORMATS["alpaca2"]
    talk = [("system", known.system), ("user", "甲"), ("assistant", "乙"), ("user", "丙")]
    asked = [{"role": role, "content": content} for role, content in talk]
    first = f"<s>[INST] <<SYS>>\n{known.system}\n<</SYS>>\n\n甲 [/INST]"
    assert model.render(known.template, asked[:2]) == first
    assert model.render(known.template, asked) == f"{first} 乙</s><s>[INST] 丙 [/INST]"
