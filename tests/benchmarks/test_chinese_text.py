"""Text drawn for measurements: of the size asked for, of the list's words, the same each time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.chinese_text import write_text


def test_text_has_the_size_and_the_frequencies_and_is_repeatable(tmp_path: Path) -> None:
    words = tmp_path / "dict.txt"
    words.write_text("的 900 uj\n中 100 f\n", encoding="utf-8")
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for path, seed in ((first, 0), (second, 0), (other, 1)):
        write_text(words, path, 60_000, seed)
    assert 60_000 <= first.stat().st_size < 60_200
    counts = Counter(first.read_text(encoding="utf-8").replace("\n", ""))
    assert counts.keys() == {"的", "中"}
    assert 0.88 < counts["的"] / counts.total() < 0.92
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
