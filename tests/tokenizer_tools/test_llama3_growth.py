"""Llama 3's vocabulary grown on Chinese: the same ids in tiktoken, tokenizers, transformers and
llama.cpp, each new token reached, nothing changed for text without one.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from merge.commands.compare_tokenizers import main as compare
from merge.tokenizers.tiktoken_model import dump_ranks, map_special_tokens, read_ranks
from tests.kit.grown_llama3 import NEW, OLD, TIKTOKEN, Grown, grow
from tests.kit.run import ROOT

CLIENT = ROOT / "tests" / "oracles" / "llama_cpp_client.py"
FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "original/tokenizer.model",
}


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_folder_holds_both_forms_and_nothing_else(grown: Grown) -> None:
    assert set(files(grown.folder)) == FILES
    before = grown.base.read_bytes()
    content = (grown.folder / TIKTOKEN).read_bytes()
    assert content.startswith(before)
    assert [int(line.split()[1]) for line in content[len(before) :].splitlines()] == list(
        range(OLD, OLD + NEW)
    )


def test_old_ids_and_merges_stay_in_tokenizer_json(grown: Grown, tmp_path: Path) -> None:
    from merge.tokenizers.llama3_tokenizer import build_tokenizer_json

    before = build_tokenizer_json(read_ranks(grown.base), map_special_tokens("3"))
    after = json.loads((grown.folder / "tokenizer.json").read_bytes())
    assert before["model"]["vocab"].items() <= after["model"]["vocab"].items()
    new = {text for text, id_ in after["model"]["vocab"].items() if id_ >= OLD}
    merges = [m for m in after["model"]["merges"] if not new & {*m.split(), m.replace(" ", "")}]
    assert merges == before["model"]["merges"]
    for name in ("added_tokens", "pre_tokenizer", "post_processor", "decoder"):
        assert after[name] == before[name]


def test_tokenizers_and_transformers_give_tiktokens_ids(grown: Grown) -> None:
    from transformers import AutoTokenizer

    meta = grown.meta()
    ids = [meta.encode(line) for line in grown.held_out]
    assert sum(id_ >= OLD for line in ids for id_ in line) > 3000
    fast = Tokenizer.from_file(str(grown.folder / "tokenizer.json"))
    encoded = fast.encode_batch(grown.held_out, add_special_tokens=False)
    assert [encoding.ids for encoding in encoded] == ids
    loaded = AutoTokenizer.from_pretrained(grown.folder)
    assert loaded(grown.held_out, add_special_tokens=False)["input_ids"] == ids
    assert len(loaded) == OLD + NEW
    assert [loaded.decode(line, clean_up_tokenization_spaces=False) for line in ids] == (
        grown.held_out
    )
    turn = "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
    assert loaded(turn)["input_ids"] == [128_000, *meta.encode(turn)]


def test_the_merges_are_those_that_transformers_makes_of_the_tiktoken_file(grown: Grown) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.convert_slow_tokenizer import TikTokenConverter

        converter = TikTokenConverter(vocab_file=str(grown.folder / TIKTOKEN))
        vocab, merges = converter.extract_vocab_merges_from_model(str(grown.folder / TIKTOKEN))
    model = json.loads((grown.folder / "tokenizer.json").read_bytes())["model"]
    assert vocab.items() <= model["vocab"].items()
    assert [" ".join(pair) for pair in merges] == model["merges"]


def write_vocabulary(path: Path, folder: Path) -> None:
    """A GGUF file of a vocabulary alone, as llama.cpp has Llama 3's."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    fast = json.loads((folder / "tokenizer.json").read_bytes())
    special = {entry["id"] for entry in fast["added_tokens"]}
    tokens = {entry["id"]: entry["content"] for entry in fast["added_tokens"]}
    tokens |= {id_: text for text, id_ in fast["model"]["vocab"].items()}
    kinds = gguf.TokenType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([tokens[id_] for id_ in range(len(tokens))])
    writer.add_token_types(
        [kinds.CONTROL if id_ in special else kinds.NORMAL for id_ in range(len(tokens))]
    )
    writer.add_token_merges(fast["model"]["merges"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama.cpp is not installed: make llama_cpp compiles it",
)
def test_llama_cpp_gives_tiktokens_ids(grown: Grown, tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "vocab.gguf", grown.folder)
    job = {"model": str(tmp_path / "vocab.gguf"), "lines": grown.held_out, "prompts": [], "more": 0}
    subprocess.run(
        [sys.executable, str(CLIENT), str(tmp_path)],
        input=json.dumps(job).encode(),
        check=True,
        capture_output=True,
    )
    meta = grown.meta()
    ids = json.loads((tmp_path / "result.json").read_bytes())["ids"]
    assert ids == [meta.encode(line) for line in grown.held_out]


def merge_lowest_first(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """BPE as it is defined, without the rule that bytes which are a token are taken whole."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while known := [p for p in map(b"".join, pairwise(parts)) if p in ranks]:
        best = min(known, key=ranks.__getitem__)
        place = next(i for i, p in enumerate(map(b"".join, pairwise(parts))) if p == best)
        parts[place : place + 2] = [best]
    return parts


def test_merges_alone_reach_every_new_token(grown: Grown) -> None:
    ranks = read_ranks(grown.folder / TIKTOKEN)
    for token in grown.new_tokens:
        assert merge_lowest_first(token, ranks) == [token]
    fast = json.loads((grown.folder / "tokenizer.json").read_bytes())
    fast["model"]["ignore_merges"] = False
    texts = {t.decode(): id_ for t, id_ in grown.new_tokens.items() if is_whole(t)}
    encoded = Tokenizer.from_str(json.dumps(fast)).encode_batch(
        list(texts), add_special_tokens=False
    )
    assert [encoding.ids for encoding in encoded] == [[id_] for id_ in texts.values()]


def is_whole(token: bytes) -> bool:
    return "\ufffd" not in token.decode("utf-8", "replace")


def test_new_tokens_are_whole_characters_or_part_of_one(grown: Grown) -> None:
    for token in grown.new_tokens:
        text = token.decode("utf-8", "replace")
        assert len(token) < 4 or (is_whole(token) and len(text) <= 16)


def test_text_without_a_new_token_keeps_its_ids(grown: Grown) -> None:
    before, after = grown.meta(grown.base), grown.meta()
    pieces = [part for line in grown.held_out for part in (line[:7], line[3:5], line[-9:])]
    kept = [text for text in pieces if max(after.encode(text), default=0) < OLD]
    assert 200 < len(kept) < len(pieces)
    for text in kept:
        assert after.encode(text) == before.encode(text)


def test_no_old_token_is_reached_that_was_not_before(grown: Grown, tmp_path: Path) -> None:
    """中文字幕 is an old token that merges do not reach: 中, 文字, 幕. With 文字幕 they would."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("我看中文字幕吧\n你读文字幕了\n" * 50, encoding="utf-8")
    assert grow(grown.base, corpus, tmp_path / "out", size=OLD + 5) == 0
    before, after = grown.meta(grown.base), grown.meta(tmp_path / "out" / TIKTOKEN)
    whole = before.encode("中文字幕")
    assert len(whole) == 1
    assert after.encode("中文字幕") == whole
    for text in ("我看中文字幕吧", "有中文字幕的", "文字幕"):
        assert whole[0] not in after.encode(text)


def test_the_same_text_gives_the_same_bytes(grown: Grown, tmp_path: Path) -> None:
    content = grown.corpus.read_text(encoding="utf-8")
    lines = content.split("\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("\n".join(lines[1000:]), encoding="utf-8")
    rows = "\n".join(json.dumps({"body": line}) for line in lines[:1000])
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    assert grow(grown.base, tmp_path / "in", tmp_path / "out", "--json_field", "body") == 0
    assert files(tmp_path / "out") == files(grown.folder)


def test_a_grown_tokenizer_grows_on_as_in_one_go(grown: Grown, tmp_path: Path) -> None:
    """Also from the Hugging Face folder, whose other files stay as they are."""
    half = tmp_path / "half"
    assert grow(grown.base, grown.corpus, half, size=OLD + NEW // 2) == 0
    (half / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert grow(half, grown.corpus, tmp_path / "out") == 0
    template = {"chat_template.jinja": b"{{ messages }}"}
    assert files(tmp_path / "out") == files(grown.folder) | template


def test_the_comparison_tells_what_was_gained(grown: Grown, tmp_path: Path) -> None:
    text = tmp_path / "held_out.txt"
    text.write_text("\n".join(grown.held_out), encoding="utf-8")
    more = ["--held_out", str(text)]
    assert grow(grown.base, grown.corpus, tmp_path / "out", *more) == 0
    told = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    before, after = (tokenizer["parts"]["all"] for tokenizer in told["tokenizers"])
    meta, old = grown.meta(), grown.meta(grown.base)
    assert after["tokens"] == sum(len(meta.encode(line)) for line in grown.held_out)
    assert before["tokens"] == sum(len(old.encode(line)) for line in grown.held_out)
    assert after["characters_per_token"] > 1.1 * before["characters_per_token"]
    paths = [str(grown.base), str(grown.folder)]
    options = ["--text", str(text), "--json", str(tmp_path / "again.json"), "--quiet"]
    assert compare(["--tokenizers", *paths, *options]) == 0
    again = json.loads((tmp_path / "again.json").read_bytes())
    assert [t["parts"] for t in again["tokenizers"]] == [t["parts"] for t in told["tokenizers"]]
    assert compare(["--tokenizers", *paths, *options, "--library", "transformers"]) == 0


def garbage(folder: Path, grown: Grown) -> list[str]:
    (folder / "tokenizer.model").write_bytes(b"\x00\x01 no tokens \xff" * 50)
    return ["--llama3_tokenizer", str(folder / "tokenizer.model")]


def another_model(folder: Path, grown: Grown) -> list[str]:
    ranks = dict(list(read_ranks(grown.base).items())[:50_256])
    (folder / "gpt2.tiktoken").write_bytes(dump_ranks(ranks))
    return ["--llama3_tokenizer", str(folder / "gpt2.tiktoken")]


def sentencepiece(folder: Path, grown: Grown) -> list[str]:
    return ["--llama3_tokenizer", str(grown.base.with_name("llama.model"))]


def another_fast_tokenizer(folder: Path, grown: Grown) -> list[str]:
    fast = json.loads((grown.folder / "tokenizer.json").read_bytes())
    del fast["model"]["merges"]
    (folder / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    return ["--llama3_tokenizer", str(folder)]


def added_token(folder: Path, grown: Grown) -> list[str]:
    shutil.copytree(grown.folder, folder / "padded")
    fast = json.loads((folder / "padded" / "tokenizer.json").read_bytes())
    fast["added_tokens"].append({**fast["added_tokens"][0], "id": OLD + NEW, "content": "[PAD]"})
    (folder / "padded" / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    return ["--llama3_tokenizer", str(folder / "padded")]


def nothing(folder: Path, grown: Grown) -> list[str]:
    return ["--llama3_tokenizer", str(folder)]


def corpus_of(content: bytes) -> Callable[[Path, Grown], list[str]]:
    def make(folder: Path, grown: Grown) -> list[str]:
        (folder / "corpus.txt").write_bytes(content)
        return ["--input", str(folder / "corpus.txt")]

    return make


def options(*words: str) -> Callable[[Path, Grown], list[str]]:
    return lambda folder, grown: list(words)


BAD: dict[str, tuple[Callable[[Path, Grown], list[str]], str]] = {
    "garbage": (garbage, "no tiktoken vocabulary"),
    "another model's": (another_model, "as many as GPT-2's"),
    "SentencePiece": (sentencepiece, "of SentencePiece"),
    "no merges": (another_fast_tokenizer, "the merges of a byte-level BPE"),
    "an added token": (added_token, "'[PAD]' as 131256"),
    "an empty folder": (nothing, "holds no tokenizer"),
    "an empty corpus": (corpus_of(b""), "the corpus is empty"),
    "blank lines": (corpus_of(b"\n\n\n"), "the corpus is empty"),
    "not UTF-8": (corpus_of("简体中文".encode("gb18030")), "is not UTF-8"),
    "a small corpus": (corpus_of("你好你好".encode()), "--vocab_size of at most 128257"),
    "a vocabulary below the base": (options("--vocab_size", "128256"), "128257 to"),
    "a frequency of none": (options("--min_frequency", "0"), "--min_frequency is out of range"),
    "no such file": (options("--held_out", "gone.txt"), "no such text file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_in_one_message(
    name: str, grown: Grown, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, told = BAD[name]
    (tmp_path / "in").mkdir()
    assert grow(grown.base, grown.corpus, tmp_path / "out", *make(tmp_path / "in", grown)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("error:") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_only_replaced_when_told(
    grown: Grown, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(grown.folder, tmp_path / "out")
    assert grow(grown.base, grown.corpus, tmp_path / "out", size=OLD + 10) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert files(tmp_path / "out") == files(grown.folder)
    assert grow(grown.base, grown.corpus, tmp_path / "out", "--overwrite", size=OLD + 10) == 0
    assert files(tmp_path / "out") != files(grown.folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "chat_template.jinja", "added_tokens.json"])
def test_files_of_another_tokenizer_are_refused_in_any_case(
    grown: Grown, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_bytes(b"of another")
    assert grow(grown.base, grown.corpus, output, "--overwrite", size=OLD + 10) == 2
    error = capsys.readouterr().err
    assert "a file of another tokenizer" in error
    assert str(output / name) in error
    assert files(output) == {name: b"of another"}


def test_special_tokens_are_named_as_in_the_release(grown: Grown, tmp_path: Path) -> None:
    meta = tmp_path / "meta"
    meta.mkdir()
    shutil.copyfile(grown.base, meta / "tokenizer.model")
    (meta / "params.json").write_text('{"use_scaled_rope": true}', encoding="utf-8")
    assert grow(meta, grown.corpus, tmp_path / "out", size=OLD + 10) == 0
    fast = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert fast.token_to_id("<|eom_id|>") == 128_008
    assert fast.token_to_id("<|eot_id|>") == 128_009


# Sends Ctrl-C when the first tokens are merged.
STOPPED = """
import signal, sys
from merge.commands.extend_llama3_tokenizer import main
from tokenizer_tools import bpe_continuation as training

merge = training._State.merge

def interrupt(*arguments):
    signal.raise_signal(signal.SIGINT)
    return merge(*arguments)

training._State.merge = interrupt
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_ctrl_c_ends_the_training_and_leaves_nothing(grown: Grown, tmp_path: Path) -> None:
    words = ["--llama3_tokenizer", str(grown.base), "--input", str(grown.corpus), "--quiet"]
    words += ["--vocab_size", str(OLD + NEW), "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-c", STOPPED, *words]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, encoding="utf-8")
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted:")
    assert not (tmp_path / "out").exists()
