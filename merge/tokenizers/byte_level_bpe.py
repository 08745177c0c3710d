"""Byte-level BPE in a ``tokenizer.json``, as Llama 3 has it: tokens by id, and how text is cut.

Read for programs that tokenize by themselves and need the parts one by one; the files as they are
go along in ``OpaqueTokenizer``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import VocabularyError
from ..messages import tr
from ..untrusted.strict_json import parse_json
from .file_names import ADDED_TOKENS_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_JSON_NAME
from .opaque_tokenizer import OpaqueTokenizer
from .special_tokens import get_content
from .tokenizer_json import read_added_tokens

# What a BPE model may ask for beside its merges, none of which byte-level BPE needs.
_OTHER_FEATURES = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")
_MOST_TOKENS = 1 << 22
_SENTENCEPIECE = tr("name the folder with the model's tokenizer.model with --tokenizer")
_COPIED = tr("use --output_type huggingface, which takes tokenizer.json as it is")
_SAVE_AGAIN = tr("fetch it again, or save the tokenizer again with transformers")


@dataclass(frozen=True)
class ByteLevelBpeTokenizer:
    """Tokens by id; ``path`` is the ``tokenizer.json``.

    ``tokens`` are spelled as there (bytes as characters, added tokens as typed), None for an id
    that has none. ``added`` are the added tokens with their flags, by id. ``pattern`` is the
    regular expression that cuts text before any merging. With ``takes_whole_words`` a word that is
    a token becomes that token, whatever the merges would make of it (``ignore_merges``).
    ``token_ids`` are those that configurations name.
    """

    path: Path
    tokens: tuple[str | None, ...] = field(repr=False)
    added: Mapping[int, Mapping[str, Any]] = field(repr=False)
    pattern: str
    takes_whole_words: bool
    token_ids: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """One more than the largest id."""
        return len(self.tokens)


class _OtherKindError(Exception):
    """What makes a tokenizer another kind than this: what was expected and found, and a remedy."""

    def __init__(self, expected: str, found: str, remedy: str = _COPIED) -> None:
        super().__init__(found)
        self.expected, self.found, self.remedy = expected, found, remedy


def read_byte_level_bpe(tokenizer: OpaqueTokenizer) -> ByteLevelBpeTokenizer:
    """Read a tokenizer's ``tokenizer.json``.

    Raises ``VocabularyError`` for another kind of tokenizer, for one without merges, and where
    other files list an added token that ``tokenizer.json`` does not have.
    """
    path = _find_file(tokenizer)
    try:
        found = _parse(tokenizer.contents.get(TOKENIZER_JSON_NAME), path)
    except _OtherKindError as other:
        raise VocabularyError(
            tr("this tokenizer is no byte-level BPE like Llama 3's"),
            file=path,
            expected=other.expected,
            found=other.found,
            remedy=other.remedy,
        ) from None
    ids = {text: id_ for id_, text in enumerate(found.tokens) if text is not None}
    _require_listed(tokenizer, path.parent, ids)
    return replace(found, token_ids=tokenizer.token_ids)


def find_byte_level_bpe(tokenizer: OpaqueTokenizer) -> ByteLevelBpeTokenizer | None:
    """The same by ``tokenizer.json`` alone, None for another kind of tokenizer."""
    try:
        found = _parse(tokenizer.contents.get(TOKENIZER_JSON_NAME), _find_file(tokenizer))
    except _OtherKindError:
        return None
    return replace(found, token_ids=tokenizer.token_ids)


def _find_file(tokenizer: OpaqueTokenizer) -> Path:
    folder = tokenizer.path if tokenizer.path.is_dir() else tokenizer.path.parent
    return folder / TOKENIZER_JSON_NAME


@lru_cache(maxsize=2)  # a merge asks before torch is imported, and again as it plans its output
def _parse(content: bytes | None, path: Path) -> ByteLevelBpeTokenizer:
    if content is None:
        raise _OtherKindError(TOKENIZER_JSON_NAME, tr("none"), _SAVE_AGAIN)
    fast = parse_json(content, path)
    vocab = _read_vocabulary(fast)
    added = {entry["id"]: entry for entry in read_added_tokens(fast, path)}
    texts = {id_: text for text, id_ in vocab.items()}
    texts |= {id_: entry["content"] for id_, entry in added.items()}
    if not 0 <= min(texts) <= max(texts) < _MOST_TOKENS:
        raise _OtherKindError(
            tr("ids from 0 to {most_tokens:,}", most_tokens=_MOST_TOKENS),
            f"{max(texts):,}",
            _SAVE_AGAIN,
        )
    tokens = tuple(texts.get(id_) for id_ in range(max(texts) + 1))
    whole_words = fast["model"].get("ignore_merges") is True
    return ByteLevelBpeTokenizer(path, tokens, added, _read_pattern(fast), whole_words)


def _read_vocabulary(fast: Mapping[str, Any]) -> dict[str, int]:
    """The ids of a BPE model that has merges."""
    model = fast.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise _OtherKindError(tr('"model": {"type": "BPE"}'), repr(kind), _SENTENCEPIECE)
    for name in _OTHER_FEATURES:
        if model.get(name):
            raise _OtherKindError(tr('no "{name}"', name=name), repr(model[name]), _SENTENCEPIECE)
    vocab, merges = model.get("vocab"), model.get("merges")
    if (
        not isinstance(vocab, dict)
        or not vocab
        or not all(type(id_) is int for id_ in vocab.values())
        or len(set(vocab.values())) < len(vocab)
    ):
        raise _OtherKindError(
            tr('"vocab": tokens, each with an id of its own'), tr("others"), _SAVE_AGAIN
        )
    if not isinstance(merges, list) or not merges or not _are_pairs(merges):
        found = tr("no merges") if not merges else tr("others")
        raise _OtherKindError(tr('"merges": pairs of tokens'), found, _SAVE_AGAIN)
    return vocab


def _are_pairs(merges: list[Any]) -> bool:
    """Whether all are pairs of tokens, which older releases of ``tokenizers`` write as text."""
    kinds = set(map(type, merges))
    if kinds == {str}:
        return {merge.count(" ") for merge in merges} == {1}
    return (
        kinds == {list}
        and set(map(len, merges)) == {2}
        and set(map(type, chain.from_iterable(merges))) == {str}
    )


def _read_pattern(fast: Mapping[str, Any]) -> str:
    """The one pattern by which text is cut before its bytes are spelled as characters."""
    steps = list(_list_steps(fast.get("pre_tokenizer")))
    kinds = [step.get("type") for step in steps]
    if fast.get("normalizer"):
        raise _OtherKindError(tr("no normalizer"), repr(fast["normalizer"])[:200])
    if kinds != ["Split", "ByteLevel"]:
        found = ", ".join(map(str, kinds)) or tr("none")
        raise _OtherKindError(tr("a pre_tokenizer of Split and ByteLevel"), found)
    split, spelled = steps
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if (
        not isinstance(regex, str)
        or split.get("behavior") != "Isolated"
        or split.get("invert")
        or spelled.get("add_prefix_space")
        or spelled.get("use_regex") is not False
    ):
        raise _OtherKindError(tr("a pre_tokenizer that cuts by one pattern"), repr(steps)[:300])
    return regex


def _list_steps(step: object) -> Iterator[Mapping[str, Any]]:
    if not isinstance(step, dict):
        return
    parts = step.get("pretokenizers")
    if step.get("type") == "Sequence" and isinstance(parts, list):
        for part in parts:
            yield from _list_steps(part)
    else:
        yield step


def _require_listed(tokenizer: OpaqueTokenizer, folder: Path, ids: Mapping[str, int]) -> None:
    """Raise ``VocabularyError`` where a file beside ``tokenizer.json`` adds to its tokens."""
    listed: list[tuple[str, object, object]] = []
    if ADDED_TOKENS_NAME in tokenizer.contents:
        file = folder / ADDED_TOKENS_NAME
        added = parse_json(tokenizer.contents[ADDED_TOKENS_NAME], file)
        listed += [(ADDED_TOKENS_NAME, text, id_) for text, id_ in added.items()]
    if TOKENIZER_CONFIG_NAME in tokenizer.contents:
        file = folder / TOKENIZER_CONFIG_NAME
        config = parse_json(tokenizer.contents[TOKENIZER_CONFIG_NAME], file)
        decoder = config.get("added_tokens_decoder")
        for id_, token in (decoder if isinstance(decoder, dict) else {}).items():
            number = int(id_) if str(id_).isdecimal() else id_
            listed.append((TOKENIZER_CONFIG_NAME, get_content(token), number))
    for name, text, id_ in listed:
        found = ids.get(text) if isinstance(text, str) else None
        if found != id_:
            raise VocabularyError(
                tr("{name} lists an added token that tokenizer.json does not have", name=name),
                file=folder / name,
                expected=tr("{text!r} as token {id}, in tokenizer.json too", text=text, id=id_),
                found=tr("none") if found is None else tr("token {found}", found=found),
                remedy=_SAVE_AGAIN,
            )
