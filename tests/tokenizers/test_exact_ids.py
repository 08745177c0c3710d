"""What ``AutoTokenizer`` gives for a merged model's tokenizer, in transformers 5 and in 4.46.

The oracles: sentencepiece for text, and transformers 4.46's own SentencePiece tokenizer for what
special tokens do to a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from merge.tokenizers.sentencepiece_tokenizer import build_documents, read_tokenizer
from tests.kit.transformers_446 import run_in_main_environment, run_in_transformers_446

pytestmark = pytest.mark.slow

PROBE = Path(__file__).with_name("probe.py")
RUN: dict[str, Callable[..., Any]] = {
    "transformers 5": run_in_main_environment,
    "transformers 4.46": run_in_transformers_446,
}
EXTRA = "<extra>"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ bos_token }}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
CHAT = "<s>[INST] 你好 [/INST] Hello</s> </s><s>[INST] 再见 [/INST]"
SPECIAL = [
    "<s>你好</s>再见",
    "用户打的 </s> 和 <unk>",
    "</s>",
    " </s>",
    "<s>  两个空格",
    "</s></s>x",
    "甲[PAD]乙",
    f"甲{EXTRA}乙 {EXTRA} 丙",
    "  ▁<s>▁",
    "",
    CHAT,
]
BATCH = ["短", "一个长得多的句子，with English。", ""]
NAMES = ("small", "llama", "chinese_llama", "chinese_alpaca")


def processor(model: bytes) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model)


def source_folder(write_folder: Callable[..., Path], folder: Path, model: bytes) -> Path:
    """A folder as they are published: the old class name, empty special tokens, one added token."""
    empty = {"bos_token": "", "eos_token": "", "unk_token": ""}
    write_folder(
        folder,
        model,
        tokenizer_config={"tokenizer_class": "LLaMATokenizer", **empty},
        special_tokens_map=empty,
        added_tokens={EXTRA: processor(model).get_piece_size()},
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def merged_folder(folder: Path, source: Path) -> Path:
    """What a merge writes, as far as tokenizers go."""
    folder.mkdir(exist_ok=True)
    for name, content in build_documents(read_tokenizer(source)).items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return folder


@pytest.fixture(scope="session", params=RUN)
def answers(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    write_folder: Callable[..., Path],
    models: dict[str, bytes],
    lines: list[str],
) -> dict[str, Any]:
    """What the probe found in one transformers, for every tokenizer at hand."""
    work = tmp_path_factory.mktemp("exact_ids")
    folders = {}
    for name, model in models.items():
        source = source_folder(write_folder, work / f"{name}_source", model)
        folders[name] = str(merged_folder(work / name, source))
    (work / "answers").mkdir()
    asked = {"folders": folders, "lines": lines, "special": SPECIAL, "batch": BATCH}
    asked |= {"plain": ["small"], "target": str(work / "answers")}
    (work / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    file = RUN[request.param](PROBE, work / "request.json", timeout=1200)
    answer: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    assert f"transformers {answer['version']}".startswith(request.param)
    return answer


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param != "small":
        request.getfixturevalue("real_data")
    return str(request.param)


@pytest.fixture
def answer(answers: dict[str, Any], name: str) -> dict[str, Any]:
    return answers[name]


@pytest.fixture
def sp(models: dict[str, bytes], name: str) -> SentencePieceProcessor:
    return processor(models[name])


def test_no_line_gets_other_ids_than_sentencepiece_gives(
    answer: dict[str, Any], sp: SentencePieceProcessor, lines: list[str]
) -> None:
    assert len(lines) > 2000
    expected = [sp.encode(line) for line in lines]
    different = [line for line, a, b in zip(lines, expected, answer["ids"], strict=True) if a != b]
    assert different == []
    assert answer["with_bos"] == [[sp.bos_id(), *ids] for ids in expected]


def test_lines_would_differ_without_the_class(answers: dict[str, Any]) -> None:
    """Or the test above would prove nothing."""
    small = answers["small"]
    assert sum(a != b for a, b in zip(small["ids"], small["plain_ids"], strict=True)) > 100


def test_decoding_is_sentencepieces(
    answer: dict[str, Any], sp: SentencePieceProcessor, lines: list[str]
) -> None:
    expected = [sp.decode(sp.encode(line)) for line in lines]
    assert answer["decoded"] == expected
    assert answer["batch_decoded"] == expected[:500]


def test_each_token_decodes_alone(answer: dict[str, Any], sp: SentencePieceProcessor) -> None:
    special = dict(map(reversed, filter(lambda t: t[0], answer["special_tokens"].values())))
    n_pieces = sp.get_piece_size()
    ids = [*range(300), *range(300, n_pieces - 19, 10), *range(n_pieces - 19, n_pieces)]
    expected = [special.get(id_) or sp.decode([id_]) for id_ in ids]
    assert answer["decoded_one_by_one"] == [*expected, EXTRA]


def test_streaming_shows_the_same_text(
    answer: dict[str, Any], sp: SentencePieceProcessor, lines: list[str]
) -> None:
    """Except that transformers' streamer starts afresh after each line break."""
    checked = [(sp.encode(line)[:40], i) for i, line in enumerate(lines[:80]) if "\n" not in line]
    assert len(checked) > 60
    assert [answer["streamed"][i] for _, i in checked] == [sp.decode(ids) for ids, _ in checked]


def test_class_is_the_one_in_the_folder_and_sizes_are_right(
    answer: dict[str, Any], sp: SentencePieceProcessor
) -> None:
    n_pieces = sp.get_piece_size()
    assert answer["class"] == "sentencepiece_llama.LlamaTokenizer"
    assert answer["len"] == [n_pieces + 1, n_pieces, n_pieces + 1]
    assert answer["vocab"] == [*(sp.id_to_piece(i) for i in range(n_pieces)), EXTRA]


def test_special_tokens_have_the_models_names_and_ids(
    answer: dict[str, Any], sp: SentencePieceProcessor
) -> None:
    pad = sp.piece_to_id("[PAD]")
    assert answer["special_tokens"] == {
        "bos": ["<s>", 1],
        "eos": ["</s>", 2],
        "unk": ["<unk>", 0],
        "pad": ["[PAD]", pad] if pad else [None, None],
    }
    assert answer["tokens_to_ids"][-2:] == [1, 0]


def test_special_tokens_in_a_text_are_cut_out_as_by_the_slow_tokenizer(
    answer: dict[str, Any], sp: SentencePieceProcessor
) -> None:
    if answer["slow_special_ids"] is not None:
        assert answer["special_ids"] == answer["slow_special_ids"]
    eos, unk = sp.eos_id(), sp.unk_id()  # the same by hand: each part is a text of its own
    assert answer["special_ids"][0] == [1, 1, *sp.encode("你好"), eos, *sp.encode("再见")]
    assert answer["special_ids"][1] == [1, *sp.encode("用户打的 "), eos, *sp.encode(" 和 "), unk]


def test_special_tokens_decode_as_they_are_spelt_or_are_skipped(answer: dict[str, Any]) -> None:
    assert answer["special_decoded"][0] == "<s><s>你好</s>再见"
    assert answer["special_decoded"][7] == f"<s>甲{EXTRA}乙 {EXTRA} 丙"
    assert answer["special_skipped"][:4] == ["你好 再见", "用户打的   和 ", "", " "]
    assert answer["special_mask"][:2] == [1, 1]
    assert sum(answer["special_mask"]) == 3


def test_chat_template_gives_the_ids_of_its_text(
    answer: dict[str, Any], sp: SentencePieceProcessor
) -> None:
    text, ids = answer["chat"]
    assert text == CHAT
    assert ids == answer["special_ids"][-1][1:]


def test_batches_are_padded_masked_and_truncated(
    answer: dict[str, Any], sp: SentencePieceProcessor
) -> None:
    pad = sp.piece_to_id("[PAD]") or sp.eos_id()
    rows = [[1, *sp.encode(text)] for text in BATCH]
    width = max(map(len, rows))
    for side, batch in answer["batches"]["padded"].items():
        fill = [[pad] * (width - len(row)) for row in rows]
        mask = [[0] * len(f) for f in fill]
        ones = [[1] * len(row) for row in rows]
        left = side == "left"
        assert set(batch) == {"input_ids", "attention_mask"}
        assert batch["input_ids"] == [
            f + row if left else row + f for f, row in zip(fill, rows, strict=True)
        ]
        assert batch["attention_mask"] == [
            m + one if left else one + m for m, one in zip(mask, ones, strict=True)
        ]
    assert answer["batches"]["truncated"] == [row[:4] for row in rows]
    pair = answer["batches"]["pair"]
    assert pair["input_ids"] == rows[0] + rows[1]
    assert pair["special_tokens_mask"] == [int(i == 1) for i in rows[0] + rows[1]]


def test_pickled_tokenizer_gives_the_same_ids(answer: dict[str, Any]) -> None:
    assert answer["pickled"] == answer["special_ids"]


def test_saved_tokenizer_keeps_its_model_its_class_and_its_settings(
    answer: dict[str, Any], models: dict[str, bytes], name: str
) -> None:
    saved = answer["saved"]
    assert {"tokenizer.model", "sentencepiece_llama.py", "added_tokens.json"} < set(saved["files"])
    assert bytes.fromhex(saved["model"]) == models[name]
    assert saved["class"] == answer["class"]
    assert saved["len"] == answer["len"][0]
    assert saved["ids"] == [[*ids, 2] for ids in answer["special_ids"]]  # add_eos_token was set


def test_without_legacy_only_the_start_of_a_text_gets_a_space(
    write_folder: Callable[..., Path], small_model: bytes, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "source", small_model, tokenizer_config={"legacy": False})
    folder = merged_folder(tmp_path / "merged", source)
    ask = """
import json, sys
from transformers import AutoTokenizer, LlamaTokenizer
folder, texts, slow = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "True"
load = lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokenizer = LlamaTokenizer.from_pretrained(folder) if slow else load()
ids = [tokenizer(text)["input_ids"] for text in texts]
print(json.dumps([ids, [tokenizer.decode(i) for i in ids]]))
"""
    texts = json.dumps([text for text in SPECIAL if EXTRA not in text])
    ours = run_in_main_environment(ask, folder, texts, False)
    slow = run_in_transformers_446(ask, folder, texts, True)
    assert ours == slow
    assert run_in_transformers_446(ask, folder, texts, False) == slow
