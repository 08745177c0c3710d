"""A comparison of tokenizers as a table for people and as a document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from merge.messages import compose, join, tr

from .compare import ALL, Disagreement, Example, TokenizerComparison

# Columns of 18, 19, 15 and 9, to the right.
_HEAD = tr("  characters/token  tokens/1000 chars  byte fallback  unknown")
_PARTS = {
    ALL: tr("all"),
    "chinese": tr("chinese"),
    "english": tr("english"),
    "code": tr("code"),
    "other": tr("others"),
}
_SHOWN = 3
_WINDOW = 4


def format_table(comparison: TokenizerComparison) -> str:
    """Return everything that was measured as plain text, lines of at most about 100 columns."""
    blocks = [
        _list_tokenizers(comparison),
        *(_format_part(comparison, name) for name in comparison.kinds),
    ]
    blocks.append(_format_coverage(comparison))
    whole = comparison.counts[0][ALL].lines
    blocks += [_format_disagreement(found, whole) for found in comparison.disagreements]
    return join("\n\n", (join("\n", block) for block in blocks))


def to_json(comparison: TokenizerComparison) -> dict[str, Any]:
    """Return the same as JSON values, with all the differing lines that were kept."""
    return {
        "tokenizers": [
            {
                "name": tokenizer.name,
                "library": tokenizer.library,
                "path": str(tokenizer.path),
                "known_as": tokenizer.known_as,
                "pieces": len(tokenizer.pieces),
                "coverage": {**asdict(coverage), "share": coverage.share},
                "parts": {
                    name: {
                        **asdict(counts[name]),
                        "characters_per_token": counts[name].characters_per_token,
                        "tokens_per_1000_characters": counts[name].tokens_per_1000_characters,
                        "fallback_share": counts[name].fallback_share,
                    }
                    for name in comparison.kinds
                },
            }
            for tokenizer, coverage, counts in zip(
                comparison.tokenizers, comparison.coverage, comparison.counts, strict=True
            )
        ],
        "disagreements": [
            {
                "first": found.first.name,
                "second": found.second.name,
                "lines": found.lines,
                "examples": [_build_example(example) for example in found.examples],
            }
            for found in comparison.disagreements
        ],
    }


def _build_example(example: Example) -> dict[str, Any]:
    return {
        "file": str(example.line.file),
        "line": example.line.number,
        "text": example.line.text,
        "first": example.first,
        "second": example.second,
    }


def _list_tokenizers(comparison: TokenizerComparison) -> list[str]:
    return [
        tr("{n_pieces:>7} pieces  {name}", n_pieces=len(t.pieces), name=t.name)
        + (compose(" = {name}", name=t.known_as) if t.known_as else "")
        for t in comparison.tokenizers
    ]


def _format_part(comparison: TokenizerComparison, name: str) -> list[str]:
    whole = comparison.counts[0][name]
    title = tr(
        "{name}: {lines:,} lines, {characters:,} characters",
        name=_PARTS[name],
        lines=whole.lines,
        characters=whole.characters,
    )
    rows = [
        f"{count.characters_per_token:>18.3f}{count.tokens_per_1000_characters:>19.1f}"
        f"{count.fallback_share:>15.2%}{count.unknown:>9,}  {tokenizer.name}"
        for tokenizer, count in zip(
            comparison.tokenizers, (counts[name] for counts in comparison.counts), strict=True
        )
    ]
    return [title, _HEAD, *rows]


def _format_coverage(comparison: TokenizerComparison) -> list[str]:
    of = comparison.coverage[0].of
    if not of:
        return [tr("the text has no Han characters")]
    rows = [
        f"{coverage.share:>18.2%}{coverage.covered:>19,}  {tokenizer.name}"
        for tokenizer, coverage in zip(comparison.tokenizers, comparison.coverage, strict=True)
    ]
    return [tr("coverage of the {of:,} commonest Han characters of the text", of=of), *rows]


def _format_disagreement(found: Disagreement, whole: int) -> list[str]:
    title = tr(
        "{lines:,} of {whole:,} lines differ: {name} / {name_2}",
        lines=found.lines,
        whole=whole,
        name=found.first.name,
        name_2=found.second.name,
    )
    shown = [line for example in found.examples[:_SHOWN] for line in _format_example(example)]
    more = found.lines - _SHOWN
    return [title, *shown, *([tr("  ... and {more:,} more", more=more)] if more > 0 else [])]


def _format_example(example: Example) -> Iterator[str]:
    start = next(
        (i for i, (a, b) in enumerate(zip(example.first, example.second, strict=False)) if a != b),
        min(len(example.first), len(example.second)),
    )
    yield tr(
        "  {file}:{number}, from token {start} on",
        file=example.line.file,
        number=example.line.number,
        start=start,
    )
    for pieces in (example.first, example.second):
        yield f"    {_format_window(pieces, start)}"


def _format_window(pieces: Sequence[str], start: int) -> str:
    cut = pieces[start : start + _WINDOW]
    return " | ".join(cut) + (" ..." if len(pieces) > start + _WINDOW else "")
