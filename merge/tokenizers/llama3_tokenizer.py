"""Llama 3's tokenizer in Hugging Face's form, made from tiktoken's ranks, and back.

``tokenizer.json`` holds what ``tokenizer.model`` does and what Meta's code adds to it: the pattern,
the special tokens, and ``<|begin_of_text|>`` in front of each text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, VocabularyError
from ..untrusted.strict_json import dump_json
from .byte_level import list_merges, spell, unspell
from .file_names import SPECIAL_TOKENS_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_JSON_NAME
from .tiktoken_model import (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    END_OF_TURN,
    N_RANKS,
    SPLIT_PATTERN,
    require_llama3,
)

_PLAIN_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def build_tokenizer_json(ranks: Mapping[bytes, int], special: Mapping[str, int]) -> dict[str, Any]:
    """``tokenizer.json`` whose ids are tiktoken's, with Meta's pattern and these special tokens.

    For Llama 3 and 3.1 it is that of Meta's own Hugging Face repositories, byte for byte.

    Where ranks lie beyond the special tokens, these stand in the vocabulary too: the package
    ``tokenizers`` would number them anew otherwise. Merges are spelled as text, which every
    release reads.
    """
    vocab = {spell(token): rank for token, rank in ranks.items()}
    if max(ranks.values()) > min(special.values()):
        vocab = dict(sorted({**vocab, **special}.items(), key=lambda item: item[1]))
    merges = [f"{spell(left)} {spell(right)}" for left, right in list_merges(ranks)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, **_PLAIN_FLAGS, "special": True}
            for name, id_ in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": _sequence("pretokenizers", _split(), _byte_level(False, True, False)),
        "post_processor": _sequence(
            "processors", _byte_level(True, False, True), _template(special[BEGIN_OF_TEXT])
        ),
        "decoder": _byte_level(True, True, True),
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


def _sequence(key: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def _split() -> dict[str, Any]:
    pattern = {"Regex": SPLIT_PATTERN}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def _template(bos: int) -> dict[str, Any]:
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
    chat_template: str | None = None,
) -> dict[str, bytes]:
    """The tokenizer's files of a Hugging Face folder, by name.

    With a chat template text ends with the turn (``<|eot_id|>``), as in Meta's instruct models.
    """
    eos = END_OF_TURN if chat_template is not None else END_OF_TEXT
    names = {"bos_token": BEGIN_OF_TEXT, "eos_token": eos}
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
    if chat_template is not None:
        config["chat_template"] = chat_template
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
            "the file holds no vocabulary",
            file=path,
            expected='"model": {"vocab": tokens with their ids}',
            remedy="fetch it again, or save the tokenizer again with transformers",
        )
    merges = [_pair(entry) for entry in model.get("merges") or ()]
    if not merges:
        raise _no_llama3(path, "the merges of a byte-level BPE", "no merges")
    added = {entry.get("content") for entry in fast.get("added_tokens") or ()}
    ranks: dict[bytes, int] = {}
    for text, id_ in model["vocab"].items():
        if text in added:
            continue
        token = unspell(text)
        if token is None or type(id_) is not int:
            raise _no_llama3(path, "a vocabulary of bytes", f"{text!r}: {id_!r}")
        ranks[token] = id_
    require_llama3(ranks, path)
    if model.get("ignore_merges") is not True:
        raise _no_llama3(path, '"ignore_merges": true', repr(model.get("ignore_merges")))
    patterns = list(_patterns(fast.get("pre_tokenizer")))
    if patterns != [SPLIT_PATTERN] or fast.get("normalizer"):
        raise _no_llama3(path, f"text cut by {SPLIT_PATTERN}", repr(patterns)[:300])
    wanted = [(spell(left), spell(right)) for left, right in list_merges(ranks)]
    if merges != wanted:
        raise _no_llama3(path, f"{len(wanted):,} merges, by the ranks", f"{len(merges):,} others")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _pair(entry: object) -> tuple[str, str]:
    """A merge, which older releases of ``tokenizers`` write as text."""
    left, _, right = entry.partition(" ") if isinstance(entry, str) else ("", "", "")
    if isinstance(entry, list) and len(entry) == 2:
        left, right = entry
    return str(left), str(right)


def _patterns(step: object) -> Iterator[object]:
    """What a pre-tokenizer cuts text by, with None for a step of another kind."""
    if not isinstance(step, dict):
        return
    if step.get("type") == "Sequence":
        for part in step.get("pretokenizers") or ():
            yield from _patterns(part)
    elif step.get("type") == "Split" and step.get("behavior") == "Isolated":
        pattern = step.get("pattern")
        yield pattern.get("Regex") if isinstance(pattern, dict) else None
    elif step.get("type") != "ByteLevel" or step.get("use_regex") or step.get("add_prefix_space"):
        yield None


def _no_llama3(path: Path, expected: str, found: str) -> VocabularyError:
    return VocabularyError(
        "no tiktoken file gives the ids of this tokenizer.json",
        file=path,
        expected=expected,
        found=found,
        remedy="use --output_type huggingface, which takes tokenizer.json as it is; or take it "
        "from where the Llama 3 model is from",
    )


def find_special_tokens(fast: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The added tokens of a Llama 3's ``tokenizer.json`` by name.

    Raises ``VocabularyError`` unless each of the 256 ids behind the ranks has one, and Meta's code
    finds where a text begins and ends among them.
    """
    added = {str(e.get("content")): e.get("id") for e in fast.get("added_tokens") or ()}
    for name, id_ in ((BEGIN_OF_TEXT, N_RANKS), (END_OF_TEXT, N_RANKS + 1)):
        if added.get(name) != id_:
            raise _no_llama3(path, f"{name} as token {id_}", repr(added.get(name)))
    return {name: id_ for name, id_ in added.items() if type(id_) is int}
