"""Reading text: every line of every kind of file, and counts of what is left out."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge.errors import FormatError, UsageError
from tokenizer_tools import corpus

LINES = ["  前面有两个空格", "", "tab\tinside", "全角　空格", "emoji 😀", "last without end"]


def write(path: Path, lines: list[str]) -> Path:
    """Write lines as the name of the file says."""
    if ".jsonl" in path.name:
        lines = [json.dumps({"text": line, "n": 1}, ensure_ascii=False) for line in lines]
    content = "\n".join(lines).encode("utf-8")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.gz"])
def test_every_kind_of_file_gives_the_same_lines(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, LINES)
    found = list(corpus.read_lines(file))
    assert [line.text for line in found] == LINES
    assert [line.number for line in found] == [1, 2, 3, 4, 5, 6]


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "一\r\n二\r\n".encode())
    assert [line.text for line in corpus.read_lines(file)] == ["一", "二"]


def test_text_with_line_ends_inside_json_is_several_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ["一\r\n二\n三"])
    assert [line.text for line in corpus.read_lines(file)] == ["一", "二", "三"]


def test_a_field_is_chosen_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "no", "内容": "是"}\n\n', encoding="utf-8")
    assert [line.text for line in corpus.read_lines(file, "内容")] == ["是"]


def test_progress_adds_up_to_the_size_on_disk(tmp_path: Path) -> None:
    files = [write(tmp_path / name, LINES * 5000) for name in ("a.txt", "b.txt.gz")]
    told: list[int] = []
    for file in files:
        assert sum(1 for _ in corpus.read_lines(file, on_bytes=told.append)) == 30000
    assert sum(told) == corpus.count_bytes(files)


def test_folders_are_searched_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    names = ["b/2.txt", "a.jsonl.gz", "c.txt", "b/1.txt.gz"]
    for name in names:
        write(tmp_path / name, LINES)
    write(tmp_path / "ignored.md", LINES)
    found = [path.relative_to(tmp_path).as_posix() for path in corpus.find_text_files([tmp_path])]
    assert found == ["a.jsonl.gz", "b/1.txt.gz", "b/2.txt", "c.txt"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "好\n".encode() + "汉字".encode("gbk"), ["not UTF-8", "line 2", "GB18030"]),
        ("a.txt", "汉字".encode("utf-16"), ["not UTF-8", "line 1", "UTF-16"]),
        ("a.txt.gz", gzip.compress(b"text" * 999)[:-9], ["damaged or unfinished"]),
        ("a.txt.gz", b"no gzip at all", ["damaged or unfinished"]),
        ("a.txt.gz", gzip.compress(b"")[:10] + b"\xff" * 99, ["damaged or unfinished"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', ["not JSON", "line 2"]),
        ("a.jsonl", b'{"body": "a", "id": 1}', ["no text under 'text'", "body, id"]),
        ("a.jsonl", b'{"text": 3}', ["no text under 'text'", "line 1"]),
        ("a.jsonl", b'["a"]', ["no text under 'text'", "list"]),
        ("a.jsonl", b"[" * 200_000, ["not JSON", "line 1"]),
    ],
    ids=[
        *("gbk", "utf-16", "cut gzip", "no gzip", "damaged gzip"),
        *("cut json", "no field", "no string", "no object", "deep json"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        list(corpus.read_lines(file))
    assert all(word in str(caught.value) for word in [*words, str(file)]), str(caught.value)


def test_missing_files_empty_folders_and_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such text file"):
        corpus.find_text_files([tmp_path / "missing.txt"])
    with pytest.raises(UsageError, match="holds no text"):
        corpus.find_text_files([tmp_path])
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UsageError, match="kind of text file"):
        corpus.find_text_files([tmp_path / "a.json"])


def test_dropped_lines_are_counted_by_reason(tmp_path: Path) -> None:
    texts = ["好", "", "  ", "a\0b", "▅", "好。" * 1000]
    stats = corpus.LineStats()
    lines = (corpus.Line(tmp_path, i, text) for i, text in enumerate(texts))
    kept = list(corpus.select_training_lines(lines, stats))
    assert stats.lines == 6
    assert stats.kept == len(kept) == 3
    assert stats.split == 1
    assert sorted(stats.dropped.values()) == [1, 1, 2]
    assert "".join(kept) == "好" + "好。" * 1000
    assert all(part.endswith("。") for part in kept[1:])


@given(text=st.text(alphabet="a 汉😀。！", max_size=200), max_bytes=st.integers(4, 40))
def test_cutting_loses_nothing_and_keeps_the_limit(text: str, max_bytes: int) -> None:
    parts = list(corpus.split_text(text, max_bytes))
    assert "".join(parts) == text
    assert all(part and len(part.encode("utf-8")) <= max_bytes for part in parts)


@given(count=st.integers(0, 200), size=st.integers(1, 50), seed=st.integers(0, 9))
def test_a_sample_is_bounded_repeatable_and_of_the_text(count: int, size: int, seed: int) -> None:
    lines = [str(i) for i in range(count)]
    kept = corpus.sample(iter(lines), size, seed)
    assert kept == corpus.sample(iter(lines), size, seed)
    assert len(kept) == len(set(kept)) == min(count, size)
    assert set(kept) <= set(lines)
    assert corpus.sample(iter(lines), 0, seed) == lines
    assert count > size or kept == lines


def test_every_line_is_equally_likely_to_be_sampled() -> None:
    lines = [str(i) for i in range(20)]
    times = Counter(line for seed in range(4000) for line in corpus.sample(lines, 5, seed))
    # 1000 times each are expected, with a standard deviation of 27.4; five of them either way
    assert all(863 <= times[line] <= 1137 for line in lines)
