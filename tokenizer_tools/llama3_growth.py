"""Grow Llama 3's vocabulary: go on with its BPE training on text, so that each token is reached.

A token that is only appended is never reached, since BPE makes a token from two others. So the text
is cut by Llama 3's own pattern and tokenized by its ranks, and the most frequent pairs are merged
on. New tokens get the ids behind the special tokens: no old id changes. New merges come after all
old ones, and none makes an old token that was not reached before, so a text of which the new
tokenizer makes no new token keeps its ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from merge.errors import FormatError, UsageError, VocabularyError
from merge.interruption import raise_if_interrupted
from merge.messages import join, tr
from merge.sizes import OnBytes
from merge.storage.atomic_write import write_atomically
from merge.tokenizers.byte_level import split_by_ranks
from merge.tokenizers.tiktoken_model import SPLIT_PATTERN, dump_ranks

from .corpus import read_lines
from .llama3_base import Llama3Tokenizer, format_token, is_text, replace_ranks

if TYPE_CHECKING:
    from .bpe_continuation import Merge, PreTokens

TIKTOKEN_NAME = "original/tokenizer.model"
"""Where Meta's Hugging Face repositories have the tiktoken file. llama.cpp's converter takes one
beside ``config.json`` for a SentencePiece model."""
_MOST_TOKENS = 1_000_000
_BATCH = 4096


@dataclass(frozen=True)
class GrowthSettings:
    """What decides the result, apart from the text.

    ``vocab_size`` counts all ids, those of special tokens included; ``max_token_length`` is in
    characters.
    """

    vocab_size: int
    min_frequency: int = 2
    max_token_length: int = 16


@dataclass(frozen=True)
class PreTokenCounts:
    """How often a corpus has each pre-token, and how many lines it has."""

    lines: int
    counts: Counter[str] = field(repr=False)


@dataclass(frozen=True)
class Llama3Corpus:
    """A corpus in the ids of the old vocabulary: ``n_tokens`` of them in all."""

    lines: int
    n_tokens: int
    pre_tokens: PreTokens


@dataclass(frozen=True)
class GrownTokenizer:
    """A grown tokenizer and what a person should know about it before training with it.

    ``merges`` are in the order of the new ids.
    """

    tokenizer: Llama3Tokenizer
    base: Llama3Tokenizer
    corpus: Llama3Corpus
    merges: Sequence[Merge]

    @property
    def new_tokens(self) -> list[bytes]:
        """In id order."""
        return list(self.tokenizer.ranks)[len(self.base.ranks) :]


def check_settings(settings: GrowthSettings, base: Llama3Tokenizer) -> None:
    """Raise ``UsageError`` for numbers that mean nothing, before a corpus is read."""
    bounds = (
        ("vocab_size", settings.vocab_size, base.n_tokens + 1, _MOST_TOKENS),
        ("min_frequency", settings.min_frequency, 1, 2**31),
        ("max_token_length", settings.max_token_length, 1, 128),
    )
    for name, value, low, high in bounds:
        if not low <= value <= high:
            counted = (
                tr(", {n_tokens} of them old", n_tokens=base.n_tokens)
                if name == "vocab_size"
                else ""
            )
            raise UsageError(
                tr("--{name} is out of range", name=name),
                expected=tr("{low} to {high}{counted}", low=low, high=high, counted=counted),
                found=value,
                remedy=tr("give --{name} within these bounds", name=name),
            )


def count_pre_tokens(
    files: Sequence[Path], json_field: str = "text", on_bytes: OnBytes = lambda count: None
) -> PreTokenCounts:
    """Cut the lines of ``files`` by Llama 3's pattern, each line a text of its own.

    Raises ``FormatError`` for text that cannot be read or holds nothing.
    """
    import regex

    cut = regex.compile(SPLIT_PATTERN).findall
    counts: Counter[str] = Counter()
    lines = 0
    for file in files:
        for line in read_lines(file, json_field, on_bytes):
            lines += 1
            counts.update(cut(line.text))
            if lines % _BATCH == 0:
                raise_if_interrupted()
    if not counts:
        raise FormatError(
            tr("the corpus is empty: it holds no text to learn from"),
            file=", ".join(map(str, files[:3])) + (" ..." if len(files) > 3 else ""),
            found=tr("{lines} lines", lines=lines),
            remedy=tr("name files with text in --input"),
        )
    return PreTokenCounts(lines, counts)


def grow_tokenizer(
    base: Llama3Tokenizer,
    corpus: Llama3Corpus,
    settings: GrowthSettings,
    output: Path,
    on_merge: Callable[[], object] = lambda: None,
) -> GrownTokenizer:
    """Learn new tokens from ``corpus`` until the vocabulary has ``vocab_size``; see the module.

    A new token is whole characters, ``max_token_length`` at most, or part of a single one.
    Raises ``VocabularyError`` where the corpus has too few pairs for that many.
    """
    from .bpe_continuation import continue_merges

    wanted = settings.vocab_size - base.n_tokens
    merges = continue_merges(
        corpus.pre_tokens,
        {rank: token for token, rank in base.ranks.items()},
        base.n_tokens,
        wanted,
        min_frequency=settings.min_frequency,
        unreached=list(find_unreached(base.ranks)),
        is_wanted=partial(is_wanted_token, settings.max_token_length),
        on_merge=on_merge,
    )
    if len(merges) < wanted:
        raise VocabularyError(
            tr("the corpus does not support a vocabulary of that size"),
            expected=tr("--vocab_size of at most {n_tokens}", n_tokens=base.n_tokens + len(merges)),
            found=settings.vocab_size,
            remedy=tr("lower --vocab_size or --min_frequency, or give more text"),
        )
    grown = replace_ranks(base, apply_merges(base, merges), output)
    return GrownTokenizer(grown, base, corpus, merges)


def encode_corpus(base: Llama3Tokenizer, corpus: PreTokenCounts) -> Llama3Corpus:
    """Tokenize each pre-token with tiktoken."""
    from .bpe_continuation import PreTokens

    encode = base.load_encoding().encode_ordinary

    def encode_all() -> Iterator[list[int]]:
        words = iter(corpus.counts)
        while batch := list(islice(words, _BATCH)):
            raise_if_interrupted()
            yield from map(encode, batch)

    joined = PreTokens.join(encode_all(), corpus.counts.values())
    return Llama3Corpus(corpus.lines, joined.count_tokens(), joined)


def find_unreached(ranks: Mapping[bytes, int]) -> Iterator[list[int]]:
    """The tokens that no merges make, split as far as they go: 588 of Llama 3's, as 中文字幕.

    A pre-token that is such a token is taken whole; inside a longer one it does not occur.
    """
    for number, token in enumerate(ranks):
        if number % _BATCH == 0:
            raise_if_interrupted()
        parts = split_by_ranks(token, ranks)
        if len(parts) > 1:
            yield [ranks[part] for part in parts]


def is_wanted_token(max_length: int, token: bytes) -> bool:
    """Whether bytes are whole characters, not too many, or part of a single character.

    >>> [is_wanted_token(2, t) for t in ("的是".encode(), "的是了".encode(), "的".encode()[1:])]
    [True, False, True]
    >>> is_wanted_token(2, "的是".encode()[:4])
    False
    """
    if is_text(token):
        return len(token.decode("utf-8")) <= max_length
    begins = 0x80 <= token[0] < 0xF8
    return begins and len(token) < 4 and all(0x80 <= byte < 0xC0 for byte in token[1:])


def apply_merges(base: Llama3Tokenizer, merges: Sequence[Merge]) -> dict[bytes, int]:
    """The ranks with a token for each merge, by rank."""
    ranks = dict(base.ranks)
    tokens = {rank: token for token, rank in ranks.items()}
    for id_, merge in enumerate(merges, start=base.n_tokens):
        tokens[id_] = tokens[merge.left] + tokens[merge.right]
        ranks[tokens[id_]] = id_
    return ranks


def write_grown(
    grown: GrownTokenizer, folder: Path, more: Mapping[str, bytes] | None = None
) -> None:
    """Write the Hugging Face files, the tiktoken file and ``more``, all or none."""
    tiktoken = {TIKTOKEN_NAME: dump_ranks(grown.tokenizer.ranks)}
    write_atomically(folder, {**grown.tokenizer.documents, **tiktoken, **(more or {})})


def format_summary(grown: GrownTokenizer) -> str:
    """Describe what was read and what was learned."""
    corpus = grown.corpus
    base, merges, rows = grown.base, grown.merges, grown.tokenizer.n_tokens
    after = corpus.n_tokens - sum(merge.frequency for merge in merges)
    ascii_tokens = [token for token in grown.new_tokens if token.isascii()]
    lines = [
        tr(
            "{lines:>12,} lines read, {n_counts:,} different pre-tokens",
            lines=corpus.lines,
            n_counts=len(corpus.pre_tokens.counts),
        ),
        tr("{n_tokens:>12,} tokens in the old vocabulary", n_tokens=corpus.n_tokens),
        tr("{after:>12,} about in the new one", after=after),
        tr(
            "{n_merges:>12,} new tokens, ids {n_tokens} to {rows}; the last "
            "occurred {frequency:,} times",
            n_merges=len(merges),
            n_tokens=base.n_tokens,
            rows=rows - 1,
            frequency=merges[-1].frequency,
        ),
        tr("{rows:>12,} ids now: a model for it has {rows} embedding rows", rows=rows),
    ]
    if ascii_tokens:
        some = " ".join(map(repr, map(format_token, ascii_tokens[:5])))
        lines.append(
            tr(
                "note: {n_ascii_tokens} of the new tokens are plain ASCII ({some}): "
                "English, numbers and code that hold them get new ids",
                n_ascii_tokens=len(ascii_tokens),
                some=some,
            )
        )
    digest = sha256(dump_ranks(grown.tokenizer.ranks)).hexdigest()
    lines.append(f"sha256 {digest} {TIKTOKEN_NAME}")
    return join("\n", lines)
