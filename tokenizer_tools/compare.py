"""Measure tokenizers on a text: how long it gets, what falls back to bytes, where two differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from merge.errors import FormatError
from merge.messages import tr

from .backends import BackendTokenizer
from .corpus import Line
from .line_kinds import LINE_KINDS, classify_line, find_han

ALL = "all"
_MOST_COMMON = 3500
"""As many Han characters as Chinese schools call common; here the commonest of the text itself."""
_BATCH_LINES = 1024
_MOST_EXAMPLES = 1000


@dataclass
class TokenCounts:
    """Tokens of some lines; ``characters`` are code points, line ends aside."""

    lines: int = 0
    characters: int = 0
    tokens: int = 0
    fallback: int = 0
    unknown: int = 0

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_1000_characters(self) -> float:
        return 1000 * self.tokens / self.characters if self.characters else 0.0

    @property
    def fallback_share(self) -> float:
        return self.fallback / self.tokens if self.tokens else 0.0

    @property
    def fallback_or_unknown_share(self) -> float:
        """The share of tokens for which the vocabulary has no piece: bytes and ``<unk>``."""
        return (self.fallback + self.unknown) / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Coverage:
    """How many of the commonest Han characters of the text need neither bytes nor ``<unk>``."""

    covered: int
    of: int

    @property
    def share(self) -> float:
        return self.covered / self.of if self.of else 0.0


@dataclass(frozen=True)
class Example:
    """A line that two tokenizers cut differently."""

    line: Line
    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass
class Disagreement:
    """On how many lines two tokenizers give different pieces, and the first of these lines."""

    first: BackendTokenizer
    second: BackendTokenizer
    lines: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class TokenizerComparison:
    """``counts`` and ``coverage`` stand in the order of ``tokenizers``; ``counts`` by part."""

    tokenizers: Sequence[BackendTokenizer]
    counts: list[dict[str, TokenCounts]]
    coverage: list[Coverage]
    disagreements: list[Disagreement]

    @property
    def kinds(self) -> list[str]:
        """The whole, and the parts of which the text has lines."""
        return [name for name in (ALL, *LINE_KINDS) if self.counts[0][name].lines]


def compare_tokenizers(
    tokenizers: Sequence[BackendTokenizer],
    lines: Iterable[Line],
    pairs: Sequence[tuple[int, int]],
) -> TokenizerComparison:
    """Run every tokenizer over ``lines``, and compare those that ``pairs`` names by position.

    Lines are taken as they are, leading spaces included; empty ones are passed over. Memory does
    not depend on their number. Raises ``FormatError`` if there is no line with characters.
    """
    counts = [{name: TokenCounts() for name in (ALL, *LINE_KINDS)} for _ in tokenizers]
    found = [Disagreement(tokenizers[a], tokenizers[b]) for a, b in pairs]
    characters: Counter[str] = Counter()
    for batch in _iter_batches(line for line in lines if line.text):
        texts = [line.text for line in batch]
        labels = [classify_line(text) for text in texts]
        for text in texts:
            characters.update(find_han(text))
        encoded = [tokenizer.encode(texts) for tokenizer in tokenizers]
        for tokenizer, ids, count in zip(tokenizers, encoded, counts, strict=True):
            _count_tokens(tokenizer, texts, labels, ids, count)
        for (a, b), disagreement in zip(pairs, found, strict=True):
            _compare_pieces(disagreement, batch, encoded[a], encoded[b])
    if not counts[0][ALL].lines:
        raise FormatError(
            tr("the text is empty"), remedy=tr("name files with lines of text in --text")
        )
    common = list_commonest(characters)
    coverage = [_measure_coverage(tokenizer, common) for tokenizer in tokenizers]
    return TokenizerComparison(tokenizers, counts, coverage, found)


def list_commonest(characters: Counter[str]) -> list[str]:
    """Return the commonest characters; of equally common ones those with the lower code point."""
    return sorted(characters, key=lambda c: (-characters[c], c))[:_MOST_COMMON]


def _count_tokens(
    tokenizer: BackendTokenizer,
    texts: Sequence[str],
    labels: Sequence[str],
    encoded: Sequence[Sequence[int]],
    counts: dict[str, TokenCounts],
) -> None:
    for text, label, ids in zip(texts, labels, encoded, strict=True):
        fallback = sum(i in tokenizer.fallback_ids for i in ids)
        unknown = sum(i in tokenizer.unknown_ids for i in ids)
        for count in (counts[ALL], counts[label]):
            count.lines += 1
            count.characters += len(text)
            count.tokens += len(ids)
            count.fallback += fallback
            count.unknown += unknown


def _compare_pieces(
    found: Disagreement,
    lines: Sequence[Line],
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
) -> None:
    for line, a, b in zip(lines, first, second, strict=True):
        pieces_a = tuple(found.first.pieces[i] for i in a)
        pieces_b = tuple(found.second.pieces[i] for i in b)
        if pieces_a != pieces_b:
            found.lines += 1
            if len(found.examples) < _MOST_EXAMPLES:
                found.examples.append(Example(line, pieces_a, pieces_b))


def _measure_coverage(tokenizer: BackendTokenizer, characters: Sequence[str]) -> Coverage:
    bad = tokenizer.fallback_ids | tokenizer.unknown_ids
    encoded = tokenizer.encode(list(characters)) if characters else []
    return Coverage(sum(bad.isdisjoint(ids) for ids in encoded), len(characters))


def _iter_batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    iterator = iter(lines)
    while batch := list(islice(iterator, _BATCH_LINES)):
        yield batch
