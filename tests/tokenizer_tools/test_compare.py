"""Comparing tokenizers: numbers against SentencePiece and by hand, the table, the picture."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from merge.commands.compare_tokenizers import main
from tests.kit.tokenizer_models import TEXT
from tokenizer_tools import backends, line_kinds
from tokenizer_tools.backends import BackendTokenizer
from tokenizer_tools.compare import compare_tokenizers, list_commonest
from tokenizer_tools.corpus import Line
from tokenizer_tools.extend import extend, select_text_pieces

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib, which draws the plot"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers to compare with"
)


def characters(name: str, splits: str = "") -> BackendTokenizer:
    """A tokenizer that can be followed by hand: a token a character, two for ``splits``."""

    def encode(lines: list[str]) -> list[list[int]]:
        return [[i for c in line for i in ([1, 2] if c in splits else [ord(c)])] for line in lines]

    return BackendTokenizer(
        name=name,
        library="none",
        path=Path(name),
        known_as=None,
        pieces=[chr(i) for i in range(0x10000)],
        fallback_ids=frozenset({1, 2}),
        unknown_ids=frozenset({0}),
        encode=encode,
    )


def lines_of(*texts: str) -> list[Line]:
    return [Line(Path("a.txt"), number, text) for number, text in enumerate(texts, 1)]


def test_counts_are_those_done_by_hand() -> None:
    plain, splitting = characters("plain"), characters("splitting", splits="你a")
    lines = lines_of("你好你们", "", "a bad day", "x = a[0];")
    found = compare_tokenizers([plain, splitting], lines, [(0, 1)])
    assert found.kinds == ["all", "chinese", "english", "code"]
    assert found.counts[0]["all"].lines == 3
    assert found.counts[0]["all"].characters == found.counts[0]["all"].tokens == 22
    assert found.counts[0]["all"].fallback == 0
    chinese = found.counts[1]["chinese"]
    assert (chinese.characters, chinese.tokens, chinese.fallback) == (4, 6, 4)
    assert chinese.characters_per_token == pytest.approx(4 / 6)
    assert chinese.tokens_per_1000_characters == pytest.approx(1500)
    assert chinese.fallback_share == pytest.approx(4 / 6)
    assert (found.counts[1]["english"].tokens, found.counts[1]["code"].tokens) == (12, 10)
    assert [(c.covered, c.of) for c in found.coverage] == [(3, 3), (2, 3)]
    assert found.disagreements[0].lines == 3
    assert [example.line.number for example in found.disagreements[0].examples] == [1, 3, 4]


def test_equal_tokenizers_do_not_disagree() -> None:
    found = compare_tokenizers(
        [characters("a"), characters("b")], lines_of("你好", "day"), [(0, 1)]
    )
    assert found.disagreements[0].lines == 0


def test_the_commonest_characters_are_at_most_3500_by_number_then_code_point() -> None:
    counted = Counter({chr(0x4E00 + i): 1 + (i % 7 == 0) for i in range(7000)})
    expected = [chr(0x4E00 + i) for i in range(0, 7000, 7)]
    expected += [chr(0x4E00 + i) for i in range(7000) if i % 7][:2500]
    assert list_commonest(counted) == expected


def test_parts_of_the_text() -> None:
    labels = Counter(
        line_kinds.classify_line(line) for line in TEXT.read_text(encoding="utf-8").split("\n")
    )
    assert set(labels) == set(line_kinds.LINE_KINDS)
    assert line_kinds.classify_line("他用 Python 写了一个很短的脚本。") == "chinese"
    assert line_kinds.classify_line("    return total") == "code"
    assert line_kinds.classify_line('printf("%d\\n", i);') == "code"
    assert line_kinds.classify_line("She said (twice) that it was fine.") == "english"
    assert (
        line_kinds.classify_line("Русский текст")
        == line_kinds.classify_line("   ")
        == line_kinds.classify_line("")
        == "other"
    )


@pytest.fixture
def grown(models: Path, small_llama: Any, small_chinese: Any, tmp_path: Path) -> Path:
    """The small model grown by the small Chinese one, with a pad token."""
    folder = tmp_path / "grown"
    folder.mkdir()
    model = extend(small_llama, select_text_pieces(small_chinese), "[PAD]").model
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    config = {"tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_numbers_are_sentencepieces_own(models: Path, grown: Path, tmp_path: Path) -> None:
    options = ["--tokenizers", str(models / "llama.model"), str(grown), "--text", str(TEXT)]
    assert main([*options, "--json", str(tmp_path / "out.json"), "--quiet"]) == 0
    told = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    lines = [line for line in TEXT.read_text(encoding="utf-8").split("\n") if line]
    encoded = []
    for path, found in zip(
        (models / "llama.model", grown / "tokenizer.model"), told["tokenizers"], strict=True
    ):
        tokenizer = SentencePieceProcessor(model_file=str(path))
        pieces = [tokenizer.encode(line, out_type=str) for line in lines]
        encoded.append(pieces)
        flat = [piece for line in pieces for piece in line]
        whole = found["parts"]["all"]
        assert whole["lines"] == len(lines)
        assert whole["characters"] == sum(map(len, lines))
        assert whole["tokens"] == len(flat)
        assert whole["fallback"] == sum(p.startswith("<0x") and len(p) == 6 for p in flat)
        assert whole["tokens"] == sum(
            found["parts"][part]["tokens"] for part in found["parts"] if part != "all"
        )
        vocabulary = {tokenizer.id_to_piece(i) for i in range(len(tokenizer))}
        han = {c for line in lines for c in line if "\u4e00" <= c <= "\u9fff"}
        outside = found["coverage"]["of"] - len(han)  # extension blocks and the like
        covered = len(han & vocabulary)
        assert covered <= found["coverage"]["covered"] <= covered + outside
    differing = [i for i, (a, b) in enumerate(zip(*encoded, strict=True)) if a != b]
    assert told["disagreements"][0]["lines"] == len(differing)
    examples = told["disagreements"][0]["examples"]
    assert [example["text"] for example in examples] == [lines[i] for i in differing][:1000]
    assert examples[0]["second"] == encoded[1][differing[0]]


def test_the_table_names_everything(
    models: Path, grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokenizers", str(models / "llama.model"), str(grown), "--text", str(TEXT)]
    assert main(options) == 0
    out = capsys.readouterr().out
    for word in ("600 pieces  llama", "pieces  grown", "chinese:", "english:", "code:"):
        assert word in out
    for word in ("coverage of the", "lines differ: llama / grown", "mixed.txt:1, from token"):
        assert word in out


@needs_transformers
def test_transformers_is_compared_with_sentencepiece_from_the_same_file(
    grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(grown))
    tokenizer = SentencePieceProcessor(model_file=str(grown / "tokenizer.model"))
    lines = [line for line in TEXT.read_text(encoding="utf-8").split("\n") if line]
    theirs = loaded(lines, add_special_tokens=False)["input_ids"]
    expected = sum(a != b for a, b in zip(theirs, tokenizer.encode(lines), strict=True))
    options = ["--tokenizers", str(grown), "--text", str(TEXT), "--library", "transformers"]
    assert main(options) == (1 if expected else 0)
    assert f"{expected} of {len(lines)} lines differ: grown / grown (tr" in capsys.readouterr().out


@needs_transformers
def test_a_model_file_alone_is_opened_by_transformers_too(models: Path) -> None:
    opened = backends.open_transformers(models / "llama.model", "small")
    direct = backends.open_sentencepiece(models / "llama.model", "small")
    assert list(opened.pieces) == list(direct.pieces)
    assert opened.fallback_ids == direct.fallback_ids
    assert opened.encode(["The quick fox"]) == direct.encode(["The quick fox"])


@needs_matplotlib
@pytest.mark.parametrize("text", ["今天下雨。\nIt rained.\n", "no Chinese here\n"])
def test_the_plot_is_a_picture_of_fair_size(
    models: Path, grown: Path, tmp_path: Path, text: str
) -> None:
    from matplotlib.image import imread

    named = tmp_path / "中文"  # no font of matplotlib has it; warnings are errors
    grown.rename(named)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    options = ["--tokenizers", str(models / "llama.model"), str(named)]
    options += ["--text", str(tmp_path / "a.txt"), "--plot", str(tmp_path / "out.png"), "--quiet"]
    assert main(options) == 0
    image = imread(tmp_path / "out.png")
    assert image.shape[0] > 400
    assert image.shape[1] == 1500
    ink = image[..., :3].min(axis=2) < 0.9
    assert 0.05 < ink.mean() < 0.6


def test_without_matplotlib_a_plot_is_refused_before_any_work(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["--tokenizers", str(models / "llama.model"), "--text", str(TEXT)]
    assert main([*options, "--plot", str(tmp_path / "out.png")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokenizers", "{}/missing", "--text", "{}/a.txt"], ["no such tokenizer", "missing"]),
        (["--tokenizers", "{}/a.txt", "--text", "{}/a.txt"], ["not a SentencePiece model"]),
        (["--tokenizers", "{}/llama.model", "--text", "{}/none"], ["no such text file", "none"]),
        (["--tokenizers", "{}/llama.model", "--text", "{}/empty.txt"], ["text is empty"]),
        (["--tokenizers", "{}/llama.model", "--text", "{}/gbk.txt"], ["not UTF-8", "line 1"]),
        (
            ["--tokenizers", "{}/llama.model", "--text", "{}/a.txt", "--plot", "{}/a.txt"],
            ["--plot writes a .png file", "a.txt"],
        ),
        (
            ["--tokenizers", "{}/llama.model", "--text", "{}/a.txt", "--json", "{}/a.txt"],
            ["--json writes a .json file"],
        ),
        (
            ["--tokenizers", "{}/llama.model", "--text", "{}/a.txt", "--trust_remote_code"],
            ["--trust_remote_code needs --library transformers"],
        ),
    ],
)
def test_bad_input_is_told_in_one_message(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: list[str],
) -> None:
    (tmp_path / "llama.model").write_bytes((models / "llama.model").read_bytes())
    (tmp_path / "a.txt").write_text("只是一行字\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "gbk.txt").write_bytes("汉字".encode("gbk"))
    arguments = [option.format(tmp_path) for option in options]
    outputs = ["--json", str(tmp_path / "out.json")] if "--json" not in arguments else []
    assert main([*arguments, *outputs]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert all(word in told.err for word in words), told.err
    assert not (tmp_path / "out.json").exists()
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "只是一行字\n"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/tokenizer.model", "b/tokenizer.model"], ["a", "b"]),
        (["x/m/tokenizer.model", "y/m"], ["x/m", "y/m"]),
        (["llama.model", "chinese_sp.model"], ["llama", "chinese_sp"]),
        (["a", "a"], ["a #1", "a #2"]),
    ],
)
def test_names_are_short_and_different(paths: list[str], expected: list[str]) -> None:
    assert backends.shorten_names([Path(path) for path in paths]) == expected
