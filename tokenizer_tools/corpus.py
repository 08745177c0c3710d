"""Lines of text from .txt and .jsonl files, plain or .gz, with a count of what was left out."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from merge.errors import FormatError, UsageError
from merge.messages import tr
from merge.sizes import OnBytes

_SUFFIXES = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
_EXPECTED = tr("UTF-8 text, one of ") + ", ".join(_SUFFIXES)
_MOST_BYTES = 4192
"""SentencePiece's own ``max_sentence_length``, in bytes: it skips longer lines."""
_SENTENCE_ENDS = "。！？；!?;"


@dataclass
class LineStats:
    """What became of the lines that were read; ``dropped`` and ``split`` count them by reason."""

    lines: int = 0
    kept: int = 0
    split: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Line:
    """A line without its end, and where it stands; ``number`` counts from 1."""

    file: Path
    number: int
    text: str


def find_text_files(inputs: Iterable[Path]) -> list[Path]:
    """Return files as given, and in place of a folder the text files below it in name order."""
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES) and p.is_file())
            if not below:
                raise UsageError(
                    tr("the folder holds no text"),
                    file=path,
                    expected=_EXPECTED,
                    remedy=tr("give the folder that holds the text, or its files by name"),
                )
            files += below
        elif not path.exists():
            raise UsageError(
                tr("there is no such text file"), file=path, remedy=tr("check the spelling")
            )
        elif path.name.endswith(_SUFFIXES) or path.suffix not in {".gz", ".json", ".parquet"}:
            files.append(path)
        else:
            raise UsageError(
                tr("this kind of text file is not read"),
                file=path,
                expected=_EXPECTED,
                remedy=tr("convert it, or unpack it, to one of these"),
            )
    return files


def read_lines(
    file: Path, json_field: str = "text", on_bytes: OnBytes = lambda count: None
) -> Iterator[Line]:
    """Yield the lines of one file; of ``.jsonl`` the text under ``json_field``, line by line.

    Raises ``FormatError`` for bytes that are not UTF-8, a line that is no JSON object with
    such a field, and a damaged ``.gz``.
    """
    is_json = file.name.endswith((".jsonl", ".jsonl.gz"))
    with file.open("rb") as raw:
        stream: BinaryIO | gzip.GzipFile = (
            gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
        )
        done = 0
        for number, content in enumerate(_iter_raw_lines(stream, file), 1):
            on_bytes(raw.tell() - done)
            done = raw.tell()
            text = _decode(content, file, number)
            if not is_json:
                yield Line(file, number, text)
            elif text.strip():
                value = _parse_json_line(text, json_field, file, number)
                for part in value.split("\n"):
                    yield Line(file, number, part.rstrip("\r"))


def select_training_lines(lines: Iterable[Line], stats: LineStats) -> Iterator[str]:
    """Yield what SentencePiece can learn from, and count the rest in ``stats``.

    Lines longer than ``_MOST_BYTES`` are cut after a sentence, not skipped as SentencePiece
    would: Chinese paragraphs are often that long.
    """
    for line in lines:
        stats.lines += 1
        text = line.text.strip()
        reason = _find_drop_reason(text)
        if reason:
            stats.dropped[reason] += 1
            continue
        parts = list(split_text(text))
        stats.split += len(parts) > 1
        stats.kept += len(parts)
        yield from parts


def split_text(text: str, max_bytes: int = _MOST_BYTES) -> Iterator[str]:
    """Cut ``text`` into parts of at most ``max_bytes`` in UTF-8, after a sentence if possible."""
    start = 0
    while start < len(text):
        head = text[start : start + max_bytes].encode("utf-8")[:max_bytes]
        part = head.decode("utf-8", errors="ignore")  # the last character may be cut in two
        if start + len(part) < len(text):
            part = part[: max(map(part.rfind, _SENTENCE_ENDS)) + 1] or part
        yield part
        start += len(part)


def sample(lines: Iterable[str], size: int, seed: int) -> list[str]:
    """Keep ``size`` lines, each equally likely, however large the corpus is; 0 keeps all.

    A corpus of at most ``size`` lines is kept whole and in order.
    """
    generator = random.Random(seed)
    kept: list[str] = []
    for index, line in enumerate(lines):
        if not size or index < size:
            kept.append(line)
            continue
        place = generator.randrange(index + 1)
        if place < size:
            kept[place] = line
    return kept


def count_bytes(files: Sequence[Path]) -> int:
    """Return the bytes that reading ``files`` reports as progress."""
    return sum(file.stat().st_size for file in files)


def _find_drop_reason(text: str) -> str | None:
    if not text:
        return "empty"
    if "\0" in text:
        return tr("with a NUL character")
    if "\u2585" in text:  # SentencePiece marks unknown characters with it while it trains
        return tr("with the character U+2585, which SentencePiece reserves")
    return None


def _iter_raw_lines(stream: BinaryIO | gzip.GzipFile, file: Path) -> Iterator[bytes]:
    try:
        yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(
            tr("the compressed file is damaged or unfinished"),
            file=file,
            expected=tr("a whole gzip file"),
            found=str(error),
            remedy=tr("fetch it again"),
        ) from None


def _decode(content: bytes, file: Path, number: int) -> str:
    try:
        text = content.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        encoding = _guess_encoding(content)
        raise FormatError(
            tr("the text is not UTF-8"),
            file=file,
            found=tr(
                "byte {content:#04x} in line {number}, column {start}",
                content=content[error.start],
                number=number,
                start=error.start + 1,
            ),
            remedy=tr(
                "convert it, for example: iconv -f {encoding} -t UTF-8 IN > OUT", encoding=encoding
            ),
        ) from None
    return text.rstrip("\r\n")


def _guess_encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    return "GB18030"


def _parse_json_line(text: str, json_field: str, file: Path, number: int) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            tr("a line is not JSON"),
            file=file,
            expected=tr("a JSON object in each line"),
            found=tr("line {number}: {error}", number=number, error=error),
            remedy=tr("correct the line; plain text belongs in a .txt file"),
        ) from None
    found = value.get(json_field) if isinstance(value, dict) else None
    if not isinstance(found, str):
        names = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise FormatError(
            tr("a line has no text under {json_field!r}", json_field=json_field),
            file=file,
            found=tr("line {number}: {names}", number=number, names=names),
            remedy=tr("name the right field with --json_field"),
        )
    return found.encode("utf-8", errors="replace").decode("utf-8")  # "\ud800" is valid JSON
