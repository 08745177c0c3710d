"""Llama 3's tokenizer in Hugging Face's form, made from tiktoken's ranks, and back.

``tokenizer.json`` holds what ``tokenizer.model`` does and what Meta's code adds to it: the pattern,
the special tokens, and ``<|begin_of_text|>`` in front of each text.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..errors import FormatError, UsageError, VocabularyError
from ..messages import tr
from ..untrusted.strict_json import dump_json, parse_json
from .byte_level import list_merges, parse_spelling, spell_bytes, split_by_ranks
from .file_names import (
    CHAT_TEMPLATE_NAME,
    SPECIAL_TOKENS_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_JSON_NAME,
)
from .opaque_tokenizer import OpaqueTokenizer
from .tiktoken_model import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    END_OF_TURN,
    LLAMA3_RANKS,
    N_RANKS,
    N_SPECIAL,
    SPLIT_PATTERN,
    dump_ranks,
    has_llama3_ranks,
    map_special_tokens,
    require_llama3,
)
from .tokenizer_json import read_added_tokens

_TURNS = {"<|start_header_id|>", "<|end_header_id|>", END_OF_TURN}
_PLAIN_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def build_tokenizer_json(ranks: Mapping[bytes, int], special: Mapping[str, int]) -> dict[str, Any]:
    """``tokenizer.json`` whose ids are tiktoken's, with Meta's pattern and these special tokens.

    For Llama 3 and 3.1 it is that of Meta's own Hugging Face repositories, byte for byte.

    Where ranks lie beyond the special tokens, these stand in the vocabulary too: the package
    ``tokenizers`` would number them anew otherwise. Merges are spelled as text, which every
    release reads.
    """
    vocab = {spell_bytes(token): rank for token, rank in ranks.items()}
    if max(ranks.values()) > min(special.values()):
        vocab = dict(sorted({**vocab, **special}.items(), key=lambda item: item[1]))
    merges = [f"{spell_bytes(left)} {spell_bytes(right)}" for left, right in list_merges(ranks)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, **_PLAIN_FLAGS, "special": True}
            for name, id_ in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": _make_sequence(
            "pretokenizers", _make_split(), _make_byte_level(False, True, False)
        ),
        "post_processor": _make_sequence(
            "processors",
            _make_byte_level(True, False, True),
            _make_template(special[BEGIN_OF_TEXT]),
        ),
        "decoder": _make_byte_level(True, True, True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _make_sequence(key: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def _make_split() -> dict[str, Any]:
    pattern = {"Regex": SPLIT_PATTERN}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _make_byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def _make_template(bos: int) -> dict[str, Any]:
    def parts(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": BEGIN_OF_TEXT, "type_id": type_id}},
            {"Sequence": {"id": name, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": parts("A", 0),
        "pair": [*parts("A", 0), *parts("B", 1)],
        "special_tokens": {
            BEGIN_OF_TEXT: {"id": BEGIN_OF_TEXT, "ids": [bos], "tokens": [BEGIN_OF_TEXT]}
        },
    }


def build_llama3_documents(
    ranks: Mapping[bytes, int],
    special: Mapping[str, int],
    model_max_length: int,
) -> dict[str, bytes]:
    """The tokenizer's files of a Hugging Face folder, by name, as for Meta's base models."""
    names = {"bos_token": BEGIN_OF_TEXT, "eos_token": END_OF_TEXT}
    decoder = {
        str(id_): {"content": name, **dict(sorted(_PLAIN_FLAGS.items())), "special": True}
        for name, id_ in special.items()
    }
    config: dict[str, Any] = {
        "added_tokens_decoder": decoder,
        **names,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        TOKENIZER_JSON_NAME: dump_tokenizer_json(build_tokenizer_json(ranks, special)),
        TOKENIZER_CONFIG_NAME: dump_json(config),
        SPECIAL_TOKENS_NAME: dump_json(names),
    }


def dump_tokenizer_json(document: Mapping[str, Any]) -> bytes:
    """As the package ``tokenizers`` writes it, so that published files come out byte for byte."""
    return dump_json(document).removesuffix(b"\n")


def recover_ranks(fast: Mapping[str, Any], path: Path) -> dict[bytes, int]:
    """The ranks of the tiktoken file from which a ``tokenizer.json`` (of ``path``) was made.

    Raises ``VocabularyError`` unless it gives every text the ids that tiktoken would give it with
    Meta's pattern: a vocabulary of bytes, Llama 3's first 128,000 tokens, a merge for each way to
    cut a token in two, and Llama 3's pattern.
    """
    model = fast.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise FormatError(
            tr("the file holds no vocabulary"),
            file=path,
            expected=tr('"model": {"vocab": tokens with their ids}'),
            remedy=tr("fetch it again, or save the tokenizer again with transformers"),
        )
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise _make_refusal(path, tr("the merges of a byte-level BPE"), tr("no merges"))
    added = {entry["content"] for entry in read_added_tokens(fast, path)}
    ranks = _read_ranks(model["vocab"], added, path)
    patterns = list(_list_patterns(fast.get("pre_tokenizer")))
    if patterns != [SPLIT_PATTERN] or fast.get("normalizer"):
        raise _make_refusal(
            path,
            tr("text cut by {split_pattern}", split_pattern=SPLIT_PATTERN),
            repr(patterns)[:300],
        )
    if model.get("ignore_merges") is not True:
        raise _make_refusal(path, tr('"ignore_merges": true'), repr(model.get("ignore_merges")))
    wanted = ((spell_bytes(left), spell_bytes(right)) for left, right in list_merges(ranks))
    if any(_read_pair(given) != pair for given, pair in zip_longest(merges, wanted)):
        expected = tr("every merge that the ranks imply, in their order")
        raise _make_refusal(path, expected, tr("{n_merges:,} others", n_merges=len(merges)))
    return ranks


def _read_ranks(vocab: Mapping[str, Any], added: Container[str], path: Path) -> dict[bytes, int]:
    """The bytes of each token that is not ``added``, by id; they must be Llama 3's."""
    ranks: dict[bytes, int] = {}
    for text, id_ in vocab.items():
        if text not in added:
            token = parse_spelling(text)
            if token is None or type(id_) is not int:
                raise _make_refusal(path, tr("a vocabulary of bytes"), f"{text!r}: {id_!r}")
            ranks[token] = id_
    if not has_llama3_ranks(ranks):
        raise _make_refusal(path, LLAMA3_RANKS, tr("{n_ranks:,} tokens", n_ranks=len(ranks)))
    require_llama3(ranks, path)
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _read_pair(entry: object) -> tuple[str, str]:
    """A merge, which older releases of ``tokenizers`` write as text."""
    left, _, right = entry.partition(" ") if isinstance(entry, str) else ("", "", "")
    if isinstance(entry, list) and len(entry) == 2:
        left, right = entry
    return str(left), str(right)


def _list_patterns(step: object) -> Iterator[object]:
    """What a pre-tokenizer cuts text by, with None for a step of another kind."""
    if not isinstance(step, dict):
        return
    if step.get("type") == "Sequence":
        for part in step.get("pretokenizers") or ():
            yield from _list_patterns(part)
    elif step.get("type") == "Split" and step.get("behavior") == "Isolated":
        pattern = step.get("pattern")
        yield pattern.get("Regex") if isinstance(pattern, dict) else None
    elif step.get("type") != "ByteLevel" or step.get("use_regex") or step.get("add_prefix_space"):
        yield None


def _make_refusal(path: Path, expected: str, found: str) -> VocabularyError:
    return VocabularyError(
        tr("no tiktoken file gives the ids of this tokenizer.json"),
        file=path,
        expected=expected,
        found=found,
        remedy=tr(
            "take it from where the Llama 3 model is from; Hugging Face's layout "
            "can hold it as it is"
        ),
    )


def is_byte_level(tokenizer: OpaqueTokenizer) -> bool:
    """Whether its ``tokenizer.json`` spells bytes as characters, as Llama 3's does."""
    if TOKENIZER_JSON_NAME not in tokenizer.contents:
        return False
    fast = parse_json(tokenizer.contents[TOKENIZER_JSON_NAME], tokenizer.path)
    return "ByteLevel" in _list_kinds(fast.get("pre_tokenizer"))


def _list_kinds(step: object) -> list[object]:
    if not isinstance(step, dict):
        return []
    parts = step.get("pretokenizers")
    return [step.get("type")] + [k for part in parts or () for k in _list_kinds(part)]


def recover_tiktoken_file(tokenizer: OpaqueTokenizer, rows: int) -> bytes:
    """Meta's ``tokenizer.model`` for a model of ``rows`` embedding rows, from ``tokenizer.json``.

    Raises ``VocabularyError`` as ``recover_ranks`` does, and where Meta's code would give a special
    token another id: it counts them by their place behind the ranks.
    """
    folder = tokenizer.path if tokenizer.path.is_dir() else tokenizer.path.parent
    path = folder / TOKENIZER_JSON_NAME
    fast = parse_json(tokenizer.contents[TOKENIZER_JSON_NAME], path)
    ranks = recover_ranks(fast, path)
    added = {entry["content"]: entry["id"] for entry in read_added_tokens(fast, path)}
    known = (map_special_tokens("3"), map_special_tokens("3.1"))
    if added not in known:
        odd = sorted(added.items() - known[0].items() - known[1].items())
        found = (
            tr("{odd!r} as {odd_2}", odd=odd[0][0], odd_2=odd[0][1])
            if odd
            else tr("{n_added} added tokens", n_added=len(added))
        )
        raise _make_refusal(path, tr("the 256 special tokens of Meta's code, 128000 and on"), found)
    if len(ranks) > N_RANKS or rows != N_RANKS + N_SPECIAL:
        found = tr("{n_ranks} ranks, {rows} rows of embeddings", n_ranks=len(ranks), rows=rows)
        raise _make_refusal(
            path,
            tr(
                "{n_ranks} ranks, and {n_ranks_2} rows",
                n_ranks=N_RANKS,
                n_ranks_2=N_RANKS + N_SPECIAL,
            ),
            found,
        )
    return dump_ranks(ranks)


def split_into_old_tokens(tokenizer: OpaqueTokenizer, known: int) -> tuple[tuple[int, ...], ...]:
    """For each token from ``known`` on, the ids below ``known`` to which merges bring its bytes.

    Raises ``VocabularyError`` for a tokenizer that is not Llama 3's, grown or not.
    """
    path = tokenizer.path / TOKENIZER_JSON_NAME
    fast = parse_json(tokenizer.contents[TOKENIZER_JSON_NAME], path)
    ranks = recover_ranks(fast, path)
    old = {token: rank for token, rank in ranks.items() if rank < known}
    new = {rank: token for token, rank in ranks.items() if rank >= known}
    for entry in read_added_tokens(fast, path):
        new.setdefault(entry["id"], entry["content"].encode("utf-8"))
    wanted = range(known, tokenizer.n_tokens or 0)
    return tuple(tuple(old[part] for part in split_by_ranks(new[id_], old)) for id_ in wanted)


def with_llama3_template(tokenizer: object, template: bytes) -> OpaqueTokenizer:
    """A Llama 3's tokenizer with a chat template in which text ends with the turn.

    Raises ``UsageError`` for a tokenizer without Llama 3's tokens of headers and turns.
    """
    tokens: dict[str, int] = {}
    if isinstance(tokenizer, OpaqueTokenizer) and TOKENIZER_JSON_NAME in tokenizer.contents:
        path = tokenizer.path / TOKENIZER_JSON_NAME
        fast = parse_json(tokenizer.contents[TOKENIZER_JSON_NAME], path)
        tokens = {entry["content"]: entry["id"] for entry in read_added_tokens(fast, path)}
    if not isinstance(tokenizer, OpaqueTokenizer) or not tokens.keys() >= _TURNS:
        raise UsageError(
            tr("--chat_template llama3 needs Llama 3's tokenizer"),
            expected=tr("the tokens {turns}", turns=", ".join(sorted(_TURNS))),
            remedy=tr("leave it out, or give the template of the model's own generation"),
        )
    contents = {**tokenizer.contents, CHAT_TEMPLATE_NAME: template}
    for name in (TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_NAME):
        said = parse_json(contents.get(name, b"{}"), tokenizer.path / name)
        if name in contents or name == TOKENIZER_CONFIG_NAME:
            said.pop("chat_template", None)
            contents[name] = dump_json({**said, "eos_token": END_OF_TURN})
    ids = {**tokenizer.token_ids, "eos_token_id": tokens[END_OF_TURN]}
    return replace(tokenizer, contents=contents, token_ids=ids)
