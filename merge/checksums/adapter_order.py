"""The order in which published adapters are merged, and what each one goes onto."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import Topic, UsageError
from ..messages import join, tr

# Adapters that go onto another one; every other goes straight onto its base.
_SIZES = ("7B", "13B", "33B")
PREREQUISITES = {
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
_GO_ON = tr("; --allow_unknown_combination merges them as they are given")


def could_be_published(columns: int) -> bool:
    """Whether there are published adapters for models as wide as this one.

    >>> could_be_published(4096), could_be_published(8192)
    (True, False)
    """
    return columns <= _WIDEST


@dataclass(frozen=True)
class AdapterInput:
    """An adapter as the user gave it, with its published name if it is known.

    ``base_name`` is what its configuration calls its base, ``rows`` those of the vocabulary that
    it brings whole.
    """

    source: str
    name: str | None
    base_name: str | None = None
    rows: int | None = None


def require_known_order(
    base_rows: int, adapters: Sequence[AdapterInput], merged: Sequence[str | None] | None = None
) -> tuple[str, ...]:
    """Check the order of published adapters; return notes on what cannot be checked.

    ``merged`` are the names of the adapters that the base's own manifest says are in it, None where
    it has no manifest. Raises ``UsageError`` for published adapters without those below them, in
    another order, or on a vocabulary that they were not trained on.
    """
    notes: list[str] = []
    rows = base_rows
    for number, adapter in enumerate(adapters):
        _require_own_vocabulary(rows, adapter)
        _require_what_it_names(base_rows, adapters, number, merged)
        wanted = PREREQUISITES.get(adapter.name or "")
        below = adapters[number - 1] if number else None
        if wanted is not None and (below is None or below.name != wanted):
            if below is not None or base_rows != _CHINESE_LLAMA_ROWS:
                raise _wrong_order_error(adapters, adapter, wanted)
            notes += _check_merged_base(adapter, wanted, merged)
        if adapter.name is not None and wanted is None:
            _require_straight_on_base(rows, adapters, number)
        rows = adapter.rows or rows
    return tuple(notes)


def find_adapter_chain(model: str | None) -> tuple[str, ...]:
    """The published adapters that make up a merged model of the first generation, in their order,
    by what a configuration calls it; none for other models.

    >>> find_adapter_chain("/data/models/chinese-alpaca-plus-7b-hf")
    ('Chinese-LLaMA-Plus-7B', 'Chinese-Alpaca-Plus-7B')
    """
    match = _MERGED.search((model or "").lower())
    if match is None:
        return ()
    edition = {None: "", "plus": "Plus-", "pro": "Pro-"}[match["edition"]]
    family = {"llama": "LLaMA", "alpaca": "Alpaca"}[match["family"]]
    name = f"Chinese-{family}-{edition}{match['size'].upper()}"
    return tuple(filter(None, (PREREQUISITES.get(name), name)))


def _require_what_it_names(
    base_rows: int,
    adapters: Sequence[AdapterInput],
    number: int,
    merged: Sequence[str | None] | None,
) -> None:
    """Raise ``UsageError`` for an adapter that says it was trained on a merged model, where what
    makes up that model is surely missing below it: adapters that are not published may be it.
    """
    adapter, below = adapters[number], [given.name for given in adapters[:number]]
    chain = find_adapter_chain(adapter.base_name) if adapter.name is None else ()
    merged_before = base_rows != _LLAMA_ROWS and merged is None
    if not chain or merged_before or None in below or None in (merged or ()):
        return
    present = [*(merged or ()), *below]
    if present[-len(chain) :] == list(chain):
        return
    missing = [name for name in chain if name not in present]
    raise UsageError(
        tr(
            "the adapter was trained on {base_name}, which is not what lies below it",
            base_name=adapter.base_name,
        ),
        file=adapter.source,
        expected=tr("{chain}, and then this adapter", chain=join(tr(", then "), chain)),
        found=join(tr(", then "), (name for name in present if name)) or tr("the plain base"),
        remedy=tr(
            "add {missing} in this order before it with --lora_model, or give a "
            "base into which they were merged",
            missing=join(tr(" and "), missing) or tr("them"),
        )
        + _GO_ON,
        topic=Topic.SIZES,
    )


def _require_straight_on_base(rows: int, adapters: Sequence[AdapterInput], number: int) -> None:
    adapter = adapters[number]
    if number:
        below = adapters[number - 1]
        raise UsageError(
            tr(
                "{name} goes straight onto its base, not onto {name_2}",
                name=adapter.name,
                name_2=below.name or below.source,
            ),
            file=adapter.source,
            expected=f"--lora_model {adapter.source}",
            found=_format_option(adapters),
            remedy=tr("give it alone") + _GO_ON,
        )
    if rows != _LLAMA_ROWS:
        raise UsageError(
            tr("{name} goes straight onto the original LLaMA", name=adapter.name),
            file=adapter.source,
            expected=tr("a base of {llama_rows} rows", llama_rows=_LLAMA_ROWS),
            found=tr("{rows} rows: something has been merged into it already", rows=rows),
            remedy=tr("give the original base") + _GO_ON,
        )


def _check_merged_base(
    adapter: AdapterInput, wanted: str, merged: Sequence[str | None] | None
) -> tuple[str, ...]:
    """An adapter that is given alone, onto a base of as many rows as ``wanted`` makes."""
    last = merged[-1] if merged else None
    if last == wanted:
        return ()
    if last is not None:
        raise UsageError(
            tr(
                "{name} was trained on top of {wanted}, and something else is in this base",
                name=adapter.name,
                wanted=wanted,
            ),
            file=adapter.source,
            expected=tr("a base into which {wanted} was merged", wanted=wanted),
            found=tr("{last}, by the base's merge_manifest.json", last=last),
            remedy=tr(
                "merge {wanted} and {name} into the original LLaMA",
                wanted=wanted,
                name=adapter.name,
            )
            + _GO_ON,
        )
    return (
        tr(
            "{name} belongs on top of {wanted}; whether the base is that model "
            "is unknown: plain Chinese-LLaMA has {chinese_llama_rows} rows as "
            "well",
            name=adapter.name,
            wanted=wanted,
            chinese_llama_rows=_CHINESE_LLAMA_ROWS,
        ),
    )


def _wrong_order_error(
    adapters: Sequence[AdapterInput], adapter: AdapterInput, wanted: str
) -> UsageError:
    below = next((given.source for given in adapters if given.name == wanted), wanted)
    return UsageError(
        tr(
            "{name} was trained on top of {wanted}, which must be merged before it",
            name=adapter.name,
            wanted=wanted,
        ),
        file=adapter.source,
        expected=f"--lora_model {below},{adapter.source}",
        found=_format_option(adapters),
        remedy=tr("give both adapters in this order, with the original LLaMA as the base") + _GO_ON,
        topic=Topic.NONSENSE,
    )


def _format_option(adapters: Sequence[AdapterInput]) -> str:
    """The adapters as they are given on the command line."""
    return "--lora_model " + ",".join(adapter.source for adapter in adapters)


def _require_own_vocabulary(rows: int, adapter: AdapterInput) -> None:
    """The second generation's adapters bring the whole vocabulary, for Llama-2 as Meta made it.

    Other people's, which were trained on a Chinese model and name it, have as many rows.
    """
    of_chinese = "chinese" in (adapter.base_name or "").lower()
    if adapter.rows == _CHINESE_LLAMA_2_ROWS and rows in _CHINESE_ROWS and not of_chinese:
        raise UsageError(
            tr(
                "this adapter of the second generation goes onto Llama-2 itself, not "
                "onto a model into which one has been merged"
            ),
            file=adapter.source,
            expected=tr(
                "{base_name}, with {llama_rows} rows",
                base_name=adapter.base_name or "Llama-2",
                llama_rows=_LLAMA_ROWS,
            ),
            found=tr("{rows} rows", rows=rows),
            remedy=tr("give Llama-2-hf as the base, and this adapter alone") + _GO_ON,
        )
