"""The published files, known by SHA-256, and the order in which published adapters are merged.

The checksums stand in ``SHA256.md`` at the root of the project and nowhere else. A digest names a
file; it does not vouch for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import UsageError

# Beside the code in a checkout; an installation puts it where pyproject.toml says.
CHECKSUMS = next(
    (
        path
        for path in (
            Path(__file__).resolve().parents[2] / "SHA256.md",
            Path(sys.prefix) / "share" / "chinese-llama-merge" / "SHA256.md",
        )
        if path.is_file()
    ),
    Path("SHA256.md"),
)
_HEADING = re.compile(r"## (?P<title>.+)")
_ROW = re.compile(r"\| (?P<model>.+?) \| (?P<part>\d+) \| `(?P<sha256>[0-9a-f]{64})` \|")
_ADAPTERS = "LoRA adapters"
_ORIGINALS = "Original weights"

# Adapters that go onto another one; every other goes straight onto its base.
_SIZES = ("7B", "13B", "33B")
BEFORE = {
    f"Chinese-Alpaca-{edition}-{size}": f"Chinese-LLaMA-Plus-{size}"
    for edition in ("Plus", "Pro")
    for size in _SIZES
}
# What configurations call merged models of the first generation.
_MERGED = re.compile(
    r"chinese[-_](?P<family>llama|alpaca)[-_](?:lora[-_])?(?:(?P<edition>plus|pro)[-_])?"
    r"(?:lora[-_])?(?P<size>7b|13b|33b)(?![a-z0-9])[^/]*$"
)
# Rows of LLaMA's vocabulary, of Chinese-LLaMA's, and of the second generation's.
_LLAMA_ROWS, _CHINESE_LLAMA_ROWS, _CHINESE_LLAMA_2_ROWS = 32000, 49953, 55296
# What a vocabulary of Chinese tokens was put into; Alpaca's has a token for padding.
_CHINESE_ROWS = (_CHINESE_LLAMA_ROWS, _CHINESE_LLAMA_ROWS + 1, _CHINESE_LLAMA_2_ROWS)
# Columns of the largest model for which there are published adapters, 33B.
_WIDEST = 6656
_GO_ON = "; --allow_unknown_combination merges them as they are given"


@dataclass(frozen=True)
class KnownFile:
    """A row of ``SHA256.md``."""

    group: str
    model: str
    part: str
    sha256: str

    @property
    def kind(self) -> str:
        """What the heading says in English, such as ``LoRA adapters (adapter_model.bin)``."""
        return self.group.partition(" · ")[0]

    @property
    def is_tokenizer(self) -> bool:
        """Whether this is a ``tokenizer.model``."""
        return "(tokenizer.model)" in self.kind

    @property
    def pattern(self) -> str:
        """How files of this kind are called, with ``*`` for what differs between parts."""
        return self.kind.rpartition("(")[2].rstrip(")")

    @property
    def file_name(self) -> str:
        """How the file is called, as far as its part tells."""
        names = {"consolidated.*.pth": f"consolidated.{self.part}.pth"}
        pattern = self.pattern
        return names.get(pattern, f"part {self.part} of {pattern}" if "*" in pattern else pattern)

    def told(self) -> str:
        """What the file is, in words."""
        return f"{self.model}, {self.file_name} · {self.kind}"


@cache
def known_files() -> dict[str, KnownFile]:
    """The published files by digest; none where ``SHA256.md`` was not installed along."""
    if not CHECKSUMS.is_file():
        return {}
    files, group = {}, ""
    for line in CHECKSUMS.read_text(encoding="utf-8").splitlines():
        if heading := _HEADING.fullmatch(line):
            group = heading["title"]
        if row := _ROW.fullmatch(line):
            files[row["sha256"]] = KnownFile(group, row["model"], row["part"], row["sha256"])
    return files


def known_sets() -> dict[tuple[str, str], tuple[KnownFile, ...]]:
    """The files that belong together, by heading and model, in the order of their parts."""
    sets: dict[tuple[str, str], tuple[KnownFile, ...]] = {}
    for known in known_files().values():
        key = known.group, known.model
        sets[key] = (*sets.get(key, ()), known)
    return sets


def tokenizer_of(model: str) -> KnownFile | None:
    """The published tokenizer of a model, by the name of the model.

    >>> tokenizer_of("Chinese-Alpaca-Pro-7B").model
    'Alpaca (7B, 13B, 33B)'
    >>> tokenizer_of("13B").model
    'LLaMA'
    """
    if any(name == model and group.startswith(_ORIGINALS) for group, name in known_sets()):
        group, family = "Tokenizer of the original models", ""
    elif model.startswith("Chinese-"):
        group, family = "Tokenizers", model.split("-")[1]
    else:
        return None
    tokenizers = (k for k in known_files().values() if k.group.startswith(group))
    return next((k for k in tokenizers if k.model.startswith(family)), None)


def known_adapter(digest: str) -> str | None:
    """The name of a published adapter by the SHA-256 of its ``adapter_model.bin``.

    >>> names = [known_adapter(digest) for digest in known_files()]
    >>> [name for name in names if name is not None and name.endswith("Pro-7B")]
    ['Chinese-Alpaca-Pro-7B']
    """
    found = known_files().get(digest)
    return found.model if found is not None and found.group.startswith(_ADAPTERS) else None


def could_be_published(columns: int) -> bool:
    """Whether there are published adapters for models as wide as this one.

    >>> could_be_published(4096), could_be_published(8192)
    (True, False)
    """
    return columns <= _WIDEST


@dataclass(frozen=True)
class Given:
    """An adapter as the user gave it, with its published name if it is known.

    ``base_name`` is what its configuration calls its base, ``rows`` those of the vocabulary that
    it brings whole.
    """

    source: str
    name: str | None
    base_name: str | None = None
    rows: int | None = None


def require_known_order(
    base_rows: int, adapters: Sequence[Given], merged: Sequence[str | None] | None = None
) -> tuple[str, ...]:
    """What cannot be told of the order of published adapters, for the user to know.

    ``merged`` are the names of the adapters that the base's own manifest says are in it, None where
    it has no manifest. Raises ``UsageError`` for published adapters without those below them, in
    another order, or on a vocabulary that they were not trained on.
    """
    notes: list[str] = []
    rows = base_rows
    for number, adapter in enumerate(adapters):
        _require_own_vocabulary(rows, adapter)
        _require_what_it_names(base_rows, adapters, number, merged)
        wanted = BEFORE.get(adapter.name or "")
        below = adapters[number - 1] if number else None
        if wanted is not None and (below is None or below.name != wanted):
            if below is not None or base_rows != _CHINESE_LLAMA_ROWS:
                raise _wrong_order(adapters, adapter, wanted)
            notes += _on_merged(adapter, wanted, merged)
        if adapter.name is not None and wanted is None:
            _require_straight_on_base(rows, adapters, number)
        rows = adapter.rows or rows
    return tuple(notes)


def chain_of(model: str | None) -> tuple[str, ...]:
    """The published adapters that make up a merged model of the first generation, in their order,
    by what a configuration calls it; none for other models.

    >>> chain_of("/data/models/chinese-alpaca-plus-7b-hf")
    ('Chinese-LLaMA-Plus-7B', 'Chinese-Alpaca-Plus-7B')
    """
    said = _MERGED.search((model or "").lower())
    if said is None:
        return ()
    edition = {None: "", "plus": "Plus-", "pro": "Pro-"}[said["edition"]]
    family = {"llama": "LLaMA", "alpaca": "Alpaca"}[said["family"]]
    name = f"Chinese-{family}-{edition}{said['size'].upper()}"
    return tuple(filter(None, (BEFORE.get(name), name)))


def _require_what_it_names(
    base_rows: int, adapters: Sequence[Given], number: int, merged: Sequence[str | None] | None
) -> None:
    """Raise ``UsageError`` for an adapter that says it was trained on a merged model, where what
    makes up that model is surely missing below it: adapters that are not published may be it.
    """
    adapter, below = adapters[number], [given.name for given in adapters[:number]]
    chain = chain_of(adapter.base_name) if adapter.name is None else ()
    merged_before = base_rows != _LLAMA_ROWS and merged is None
    if not chain or merged_before or None in below or None in (merged or ()):
        return
    present = [*(merged or ()), *below]
    if present[-len(chain) :] == list(chain):
        return
    missing = [name for name in chain if name not in present]
    raise UsageError(
        f"the adapter was trained on {adapter.base_name}, which is not what lies below it",
        file=adapter.source,
        expected=f"{', then '.join(chain)}, and then this adapter",
        found=", then ".join(name for name in present if name) or "the plain base",
        remedy=f"add {' and '.join(missing) or 'them'} in this order before it with --lora_model, "
        "or give a base into which they were merged" + _GO_ON,
    )


def _require_straight_on_base(rows: int, adapters: Sequence[Given], number: int) -> None:
    adapter = adapters[number]
    if number:
        below = adapters[number - 1]
        raise UsageError(
            f"{adapter.name} goes straight onto its base, not onto {below.name or below.source}",
            file=adapter.source,
            expected=f"--lora_model {adapter.source}",
            found="--lora_model " + ",".join(given.source for given in adapters),
            remedy="give it alone" + _GO_ON,
        )
    if rows != _LLAMA_ROWS:
        raise UsageError(
            f"{adapter.name} goes straight onto the original LLaMA",
            file=adapter.source,
            expected=f"a base of {_LLAMA_ROWS} rows",
            found=f"{rows} rows: something has been merged into it already",
            remedy="give the original base" + _GO_ON,
        )


def _on_merged(adapter: Given, wanted: str, merged: Sequence[str | None] | None) -> tuple[str, ...]:
    """An adapter that is given alone, onto a base of as many rows as ``wanted`` makes."""
    last = merged[-1] if merged else None
    if last == wanted:
        return ()
    if last is not None:
        raise UsageError(
            f"{adapter.name} was trained on top of {wanted}, and something else is in this base",
            file=adapter.source,
            expected=f"a base into which {wanted} was merged",
            found=f"{last}, by the base's merge_manifest.json",
            remedy=f"merge {wanted} and {adapter.name} into the original LLaMA" + _GO_ON,
        )
    return (
        f"{adapter.name} belongs on top of {wanted}; that the base is this one cannot be told from "
        f"its {_CHINESE_LLAMA_ROWS} rows, which plain Chinese-LLaMA has as well",
    )


def _wrong_order(adapters: Sequence[Given], adapter: Given, wanted: str) -> UsageError:
    below = next((given.source for given in adapters if given.name == wanted), wanted)
    return UsageError(
        f"{adapter.name} was trained on top of {wanted}, which must be merged before it",
        file=adapter.source,
        expected=f"--lora_model {below},{adapter.source}",
        found="--lora_model " + ",".join(given.source for given in adapters),
        remedy="give both adapters in this order, with the original LLaMA as the base" + _GO_ON,
    )


def _require_own_vocabulary(rows: int, adapter: Given) -> None:
    """The second generation's adapters bring the whole vocabulary, for Llama-2 as Meta made it.

    Other people's, which were trained on a Chinese model and name it, have as many rows.
    """
    of_chinese = "chinese" in (adapter.base_name or "").lower()
    if adapter.rows == _CHINESE_LLAMA_2_ROWS and rows in _CHINESE_ROWS and not of_chinese:
        raise UsageError(
            "this adapter of the second generation goes onto Llama-2 itself, not onto a model into "
            "which one has been merged",
            file=adapter.source,
            expected=f"{adapter.base_name or 'Llama-2'}, with {_LLAMA_ROWS} rows",
            found=f"{rows} rows",
            remedy="give Llama-2-hf as the base, and this adapter alone" + _GO_ON,
        )
