"""Training a Chinese vocabulary: fit for LLaMA, repeatable, and refusing what cannot work."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from merge.commands.train_chinese_tokenizer import main
from merge.tokenizers import sentencepiece_model as spm
from tests.kit.tokenizer_models import TEXT


def run(source: Path, output: Path, *more: str, size: int = 2200) -> int:
    options = ["--input", str(source), "--vocab_size", str(size), "--output_dir", str(output)]
    return main([*options, "--quiet", *more])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_model_suits_llama(tmp_path: Path, model_type: str) -> None:
    assert run(TEXT, tmp_path, "--model_type", model_type) == 0
    model = SentencePieceProcessor(model_file=str(tmp_path / "chinese_sp.model"))
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    assert len(pieces) == 2200
    assert not any(model.is_byte(i) for i in range(len(model)))
    assert not [piece for piece in pieces if sum(c.isdigit() for c in piece) > 1]
    assert model.encode("，！（Ａ）", out_type=str) == ["，", "！", "（", "Ａ", "）"]
    assert model.encode("的", out_type=str) == ["的"]


def test_the_vocabulary_is_listed_in_id_order(tmp_path: Path) -> None:
    assert run(TEXT, tmp_path) == 0
    model = spm.read_model(tmp_path / "chinese_sp.model")
    rows = (tmp_path / "chinese_sp.vocab").read_bytes().decode("utf-8").split("\n")
    assert rows.pop() == ""
    assert [row.rsplit("\t", 1)[0] for row in rows] == [piece.piece for piece in model.pieces]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_text_and_seed_give_the_same_bytes(tmp_path: Path, model_type: str) -> None:
    options = ["--model_type", model_type, "--input_sentence_size", "450"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(TEXT, tmp_path / name, *options, "--seed", seed, size=2000) == 0
    a, b, c = ((tmp_path / name / "chinese_sp.model").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_every_kind_of_file_trains_the_same_model(tmp_path: Path) -> None:
    content = TEXT.read_bytes()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    rows = (json.dumps({"body": line}) for line in content.decode("utf-8").split("\n"))
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert run(TEXT, tmp_path / "1") == 0
    assert run(tmp_path / "a.txt.gz", tmp_path / "2") == 0
    assert run(tmp_path / "a.jsonl", tmp_path / "3", "--json_field", "body") == 0
    models = {(tmp_path / name / "chinese_sp.model").read_bytes() for name in "123"}
    assert len(models) == 1


def test_what_is_dropped_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [line for line in TEXT.read_text(encoding="utf-8").split("\n") if line.strip()]
    long = "。".join(random.Random(0).choices(words, k=300))
    (tmp_path / "a.txt").write_text("\n".join([*words, "", "", "▅", long]), encoding="utf-8")
    options = ["--input", str(tmp_path / "a.txt"), "--vocab_size", "2000"]
    options += ["--output_dir", str(tmp_path / "out"), "--input_sentence_size", "555"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert f"{len(words) + 4} lines read" in out
    assert "2 dropped: empty" in out
    assert "1 dropped: with the character U+2585" in out
    assert "1 longer than SentencePiece takes" in out
    assert "555 learned from, seed 0" in out


def test_an_existing_model_is_replaced_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(TEXT, tmp_path) == 0
    assert run(TEXT, tmp_path, size=2100) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(spm.read_model(tmp_path / "chinese_sp.model").pieces) == 2200
    assert run(TEXT, tmp_path, "--overwrite", size=2100) == 0
    assert len(spm.read_model(tmp_path / "chinese_sp.model").pieces) == 2100


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", [], ["corpus is empty", "0 lines", "a.txt"]),
        (b"\n  \n\n", [], ["corpus is empty", "3 empty"]),
        ("汉字".encode("gbk"), [], ["not UTF-8", "iconv"]),
        (b"word\n", ["--vocab_size", "500"], ["does not support", "at most", "500"]),
        (None, ["--vocab_size", "90"], ["smaller than the number of different", "at least"]),
        (None, ["--vocab_size", "0"], ["--vocab_size is out of range", "0"]),
        (None, ["--character_coverage", "1.5"], ["--character_coverage is out of range"]),
        (None, ["--num_threads", "0"], ["--num_threads is out of range"]),
    ],
    ids=["empty", "blank", "gbk", "large", "small", "no size", "coverage", "threads"],
)
def test_bad_input_is_told_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model_type: str,
    content: bytes | None,
    options: list[str],
    words: list[str],
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT.read_bytes() if content is None else content)
    assert run(file, tmp_path / "out", "--model_type", model_type, *options) == 2
    told = capsys.readouterr()
    assert not told.out
    assert all(word in told.err for word in words), told.err
    assert not (tmp_path / "out").exists()
