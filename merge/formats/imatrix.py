"""Importance matrices of llama.cpp: how much each input column of a matrix mattered on some text.

Two forms are in circulation: GGUF, which ``llama-imatrix`` writes today, and its form of before
(``.dat``). Read as llama.cpp's ``llama-quantize`` reads them (``common/imatrix-loader.cpp`` and
``tools/quantize/quantize.cpp``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import FormatError
from ..messages import tr
from ..storage.input_file import InputFile
from . import gguf

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
# Far more than any model has; beyond it a file is another kind of file.
_MOST_ENTRIES, _LONGEST_NAME, _MOST_VALUES = 1 << 17, 1 << 10, 1 << 26


@dataclass(frozen=True)
class Imatrix:
    """``factors`` (float32) by the GGUF name of a matrix, one for each column of each expert.

    ``dataset`` is the text that they were measured on, None where the file does not say it, and
    ``chunks`` the number of its parts.
    """

    path: Path
    factors: Mapping[str, torch.Tensor]
    dataset: str | None
    chunks: int


def read_imatrix(path: Path) -> Imatrix:
    """Read a whole file, some megabytes. Raises ``FormatError`` for what is no importance matrix,
    and for factors that are negative or not finite.
    """
    file = InputFile(path, "buffered")
    file.read_head()
    is_gguf = file.size >= len(gguf.MAGIC) and file.read(0, len(gguf.MAGIC)) == gguf.MAGIC
    found = _read_gguf(file) if is_gguf else _read_legacy(file)
    for name, factors in found.factors.items():
        if not bool((factors >= 0).all()) or not bool(factors.isfinite().all()):
            raise _damaged(
                path, tr("a factor of {name} that is negative, infinite or no number", name=name)
            )
    return found


def _read_gguf(file: InputFile) -> Imatrix:
    content = gguf.read(file)
    missing = [key for key in _KEYS if key not in content.metadata]
    names = [name.removesuffix(_SUMS) for name in content.tensors if name.endswith(_SUMS)]
    if missing or not names:
        raise _damaged(
            file.path, tr("a GGUF file without {missing}", missing=missing[0] if missing else _SUMS)
        )
    factors = {}
    for name in names:
        sums, counts = (content.tensors.get(name + suffix) for suffix in (_SUMS, _COUNTS))
        if sums is None or counts is None or {sums.dtype, counts.dtype} != {torch.float32}:
            raise _damaged(file.path, tr("no sums and counts in float32 for {name}", name=name))
        tokens = counts.read().flatten().round().unsqueeze(1)
        values = sums.read().flatten()
        if len(values) % len(tokens):
            raise _damaged(
                file.path,
                tr(
                    "{n_values} sums for {n_tokens} counts of {name}",
                    n_values=len(values),
                    n_tokens=len(tokens),
                    name=name,
                ),
            )
        by_expert = values.view(len(tokens), -1)
        # An expert that no token went to counts evenly.
        even = torch.ones_like(by_expert)
        factors[name] = torch.where(tokens > 0, by_expert / tokens.clamp(min=1), even).flatten()
    datasets, chunks = content.metadata[_KEYS[0]], content.metadata[_KEYS[1]]
    if not isinstance(datasets, list) or not isinstance(chunks, int):
        raise _damaged(
            file.path,
            tr("other kinds of values for {keys} and {keys_2}", keys=_KEYS[0], keys_2=_KEYS[1]),
        )
    return Imatrix(file.path, factors, str(datasets[0]) if datasets else None, chunks)


def _read_legacy(file: InputFile) -> Imatrix:
    reader = _Reader(file)
    count = reader.integer(1, _MOST_ENTRIES)
    factors = dict(_legacy_entry(reader) for _ in range(count))
    if reader.is_at_end:
        return Imatrix(file.path, factors, None, 0)
    chunks = reader.integer(0, 1 << 31)
    dataset = None if reader.is_at_end else reader.text(reader.integer(0, _LONGEST_NAME)) or None
    return Imatrix(file.path, factors, dataset, chunks)


def _legacy_entry(reader: _Reader) -> tuple[str, torch.Tensor]:
    name = reader.text(reader.integer(1, _LONGEST_NAME))
    calls = reader.integer(-(1 << 31), 1 << 31)
    values = reader.floats(reader.integer(1, _MOST_VALUES))
    return name, values / calls if calls > 0 else values


class _Reader:
    """Reads the older form from its beginning on, never beyond the end of the file."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._position = 0

    @property
    def is_at_end(self) -> bool:
        """Whether every byte was read."""
        return self._position == self._file.size

    def _take(self, count: int) -> bytes:
        if count > self._file.size - self._position:
            raise _damaged(
                self._file.path,
                tr("an end within a value at byte {position:,}", position=self._position),
            )
        self._position += count
        return self._file.read(self._position - count, count) if count else b""

    def integer(self, least: int, most: int) -> int:
        """An int32 within bounds."""
        value: int = struct.unpack("<i", self._take(4))[0]
        if not least <= value <= most:
            raise _damaged(
                self._file.path,
                tr(
                    "the number {value} at byte {position:,}",
                    value=value,
                    position=self._position - 4,
                ),
            )
        return value

    def text(self, count: int) -> str:
        """UTF-8 of so many bytes."""
        try:
            return self._take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise _damaged(self._file.path, tr("a name that is not UTF-8")) from None

    def floats(self, count: int) -> torch.Tensor:
        """So many float32."""
        return torch.frombuffer(bytearray(self._take(4 * count)), dtype=torch.float32)


def _damaged(path: Path, found: str) -> FormatError:
    return FormatError(
        tr("this is no importance matrix"),
        file=path,
        expected=tr("a file that llama.cpp's llama-imatrix wrote, whole"),
        found=found,
        remedy=tr("fetch it again, or make it with llama-imatrix -m MODEL.gguf -f TEXT"),
    )


def iter_misfits(
    imatrix: Imatrix, columns: Mapping[str, int]
) -> Iterator[tuple[str, int | None, int | None]]:
    """Yield ``(name, expected, found)`` numbers of factors where matrix and model do not agree.

    ``columns`` are those of each matrix of the model. ``token_embd.weight`` and ``output.weight``
    need no factors; llama.cpp does not measure the first, and the second only when asked.
    """
    for name, factors in imatrix.factors.items():
        if columns.get(name) != len(factors) and name != "token_embd.weight":
            yield name, columns.get(name), len(factors)
    for name, expected in columns.items():
        if name not in imatrix.factors and name not in ("token_embd.weight", "output.weight"):
            yield name, expected, None
