"""The command that grows a tokenizer: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from merge.checksums import known_tokenizers as known
from merge.commands.merge_tokenizers import main
from tests.kit.run import ROOT
from tokenizer_tools import merging

SCRIPTS = ROOT / "scripts"


def run(models: Path, output: Path, *more: str, chinese: str | None = "chinese.model") -> int:
    options = ["--llama_tokenizer_dir", str(models / "llama.model"), "--output_dir", str(output)]
    if chinese is not None:
        options += ["--chinese_sp_model_file", str(models / chinese)]
    return main([*options, *more])


def load(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize(
    ("options", "tokenizer"),
    [
        ([], known.CHINESE_LLAMA),
        (["--pad_token", "[PAD]"], known.CHINESE_ALPACA),
        (["--pad_token"], known.CHINESE_ALPACA),
    ],
)
def test_published_digests_come_out_of_the_script(
    real_data: Path, tmp_path: Path, options: list[str], tokenizer: known.KnownTokenizer
) -> None:
    tokenizers = real_data / "tokenizers"
    command = [sys.executable, str(SCRIPTS / "merge_tokenizers.py")]
    command += ["--llama_tokenizer_dir", str(tokenizers / "llama.model")]
    command += ["--chinese_sp_model_file", str(tokenizers / "chinese_sp.model")]
    command += ["--output_dir", str(tmp_path / "out"), *options]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, check=True, text=True, encoding="utf-8"
    )
    written = (tmp_path / "out" / "tokenizer.model").read_bytes()
    assert known.recognize_bytes(written) == tokenizer
    assert f"the published {tokenizer.name}" in done.stdout
    assert "345 of the new pieces can never occur" in done.stdout


def test_the_alpaca_tokenizer_is_built_from_the_llama_one_alone(
    real_data: Path, tmp_path: Path
) -> None:
    tokenizers = real_data / "tokenizers"
    chinese_llama = merging.merge_tokenizers(
        tokenizers / "llama.model", tokenizers / "chinese_sp.model"
    )
    merging.write_tokenizer(chinese_llama, tmp_path / "first")
    options = ["--llama_tokenizer_dir", str(tmp_path / "first"), "--pad_token", "--quiet"]
    assert main([*options, "--output_dir", str(tmp_path / "second")]) == 0
    found = known.recognize_file(tmp_path / "second" / "tokenizer.model")
    assert found == known.CHINESE_ALPACA


def test_pieces_come_in_the_order_chinese_then_user_then_pad(
    models: Path, tmp_path: Path, small_llama: ModelProto
) -> None:
    user = tmp_path / "pieces.txt"
    user.write_text("甲乙丙丁\n\n  New York \n▁the\n", encoding="utf-8-sig")
    output = tmp_path / "out"
    assert run(models, output, "--user_pieces", str(user), "--pad_token", "<pad>") == 0
    tokenizer = load(output)
    last = [tokenizer.id_to_piece(len(tokenizer) - back) for back in (3, 2, 1)]
    assert last == ["甲乙丙丁", "New▁York", "<pad>"]
    assert tokenizer.piece_to_id("▁the") < len(small_llama.pieces)
    special = json.loads((output / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert special["pad_token"] == "<pad>"


def test_the_account_adds_up(
    models: Path,
    tmp_path: Path,
    small_chinese: ModelProto,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(models, tmp_path / "out") == 0
    out = capsys.readouterr().out
    numbers = [int(line.split()[0]) for line in out.splitlines()[:5]]
    before, appended, there, left_out, now = numbers
    assert appended + there + left_out == len(small_chinese.pieces)
    assert before + appended == now == len(load(tmp_path / "out"))
    assert left_out == 3


def test_unreachable_pieces_are_those_that_never_occur(models: Path, tmp_path: Path) -> None:
    user = tmp_path / "pieces.txt"
    # 甲乙 and 丙丁 make 甲乙丙丁; nothing makes 戊己庚, whose parts 戊己 and 己庚 are missing
    user.write_text("甲\n乙\n丙\n丁\n戊\n己\n庚\n甲乙\n丙丁\n甲乙丙丁\n戊己庚\n", encoding="utf-8")
    merged = merging.merge_tokenizers(models / "llama.model", user_pieces=user, pad_token="[PAD]")
    assert merged.unreachable == ("戊己庚",)
    merging.write_tokenizer(merged, tmp_path / "out")
    tokenizer = load(tmp_path / "out")
    assert "甲乙丙丁" in tokenizer.encode("甲乙丙丁", out_type=str)
    assert "戊己庚" not in tokenizer.encode("戊己庚", out_type=str)


def test_an_existing_tokenizer_is_replaced_only_on_request(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(models, output) == 0
    before = (output / "tokenizer.model").read_bytes()
    assert run(models, output, "--pad_token") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (output / "tokenizer.model").read_bytes() == before
    assert run(models, output, "--pad_token", "--overwrite", "--quiet") == 0
    assert load(output).id_to_piece(len(load(output)) - 1) == "[PAD]"
    assert not list(output.glob("*.partial"))


def test_a_file_of_another_tokenizer_is_refused_in_any_case(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert run(models, output, "--overwrite") == 2
    assert str(output / "tokenizer.json") in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("llama", "options", "words"),
    [
        ("chinese.model", ["--pad_token"], ["not of LLaMA's kind", "0 byte pieces", "swapped"]),
        ("missing", ["--pad_token"], ["no such tokenizer", "missing"]),
        ("empty.model", ["--pad_token"], ["is empty", "empty.model"]),
        ("text.txt", ["--pad_token"], ["not a SentencePiece model", "text.txt"]),
        ("llama.model", [], ["nothing to append", "--user_pieces"]),
        ("llama.model", ["--pad_token", "<s>"], ["nothing to append", "already there"]),
        ("llama.model", ["--pad_token", ""], ["pad token", "[PAD]"]),
        ("llama.model", ["--pad_token", "a b"], ["pad token", "'a b'"]),
        ("llama.model", ["--chinese_sp_model_file", "{}/text.txt"], ["not a SentencePiece model"]),
        ("llama.model", ["--user_pieces", "{}/gbk.txt"], ["not UTF-8", "0xba", "offset 0"]),
        ("llama.model", ["--user_pieces", "{}/empty.model"], ["list of pieces is empty"]),
        ("llama.model", ["--user_pieces", "{}/none.txt"], ["No such file", "none.txt"]),
    ],
)
def test_bad_input_is_told_in_one_message_and_nothing_is_written(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    llama: str,
    options: list[str],
    words: list[str],
) -> None:
    for name in ("llama.model", "chinese.model"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "text.txt").write_text("只是一行字\n", encoding="utf-8")
    (tmp_path / "gbk.txt").write_bytes("汉字\n".encode("gbk"))
    arguments = ["--llama_tokenizer_dir", str(tmp_path / llama)]
    arguments += [option.format(tmp_path) for option in options]
    assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert all(word in told.err for word in words), told.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (49954, ["Chinese-LLaMA tokenizer (49953", "those of Chinese-Alpaca", "--pad_token"]),
        (32000, ["those of LLaMA", "--tokenizer"]),
        (55296, ["those of Chinese-LLaMA-2", "--tokenizer"]),
    ],
)
def test_mixups_get_names(rows: int, words: list[str]) -> None:
    message = known.explain_mismatch(known.CHINESE_LLAMA, rows)
    assert message is not None
    assert all(word in message for word in words), message


def test_no_mixup_is_claimed_where_nothing_is_known() -> None:
    tokenizer = known.CHINESE_LLAMA
    assert known.explain_mismatch(tokenizer, 49953) is None
    assert known.explain_mismatch(tokenizer, 50000) is None
    assert known.explain_mismatch(None, 49954) is None


def test_an_unknown_tokenizer_gets_no_name(models: Path, real_data: Path) -> None:
    assert known.recognize_file(models / "llama.model") is None
    llama = known.recognize_file(real_data / "tokenizers" / "llama.model")
    assert llama == known.LLAMA


def test_a_protobuf_that_does_not_fit_is_told(models: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['google.protobuf'] = None; "
    code += "from merge.commands.merge_tokenizers import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--llama_tokenizer_dir", str(models / "llama.model")]
    done = subprocess.run(
        [*command, "--pad_token", "--output_dir", str(tmp_path / "out")],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 2
    assert "no protobuf that fits" in done.stderr
    assert "pip install --upgrade" in done.stderr
