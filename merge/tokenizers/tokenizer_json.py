"""What a ``tokenizer.json`` says beside the pieces: added tokens, and which tokens frame a text.

transformers 5 saves no ``tokenizer.model`` and no ``added_tokens.json``; what it added to a LLaMA's
vocabulary stands in ``tokenizer.json`` alone. Its merges are not used: they cannot express
vocabularies whose appended pieces all have the score 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, VocabularyError
from ..messages import tr
from .sentencepiece_model import list_pieces

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


def read_added_tokens(fast: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    """The added tokens as ``added_tokens_decoder`` has them, each with its ``id``.

    Raises ``FormatError`` for a list that is none.
    """
    listed = fast.get("added_tokens") or []
    entries = listed if isinstance(listed, list) else [listed]
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("content"), str)
            or type(entry.get("id")) is not int
        ):
            raise FormatError(
                tr("the list of added tokens is not one"),
                file=file,
                expected=tr('"added_tokens": [{"id": 32000, "content": "<pad>", ...}]'),
                found=repr(entry)[:80],
                remedy=tr("fetch it again, or save the tokenizer again with transformers"),
            )
    return [
        {"id": entry["id"], "content": entry["content"]}
        | {flag: bool(entry.get(flag, False)) for flag in _FLAGS}
        for entry in entries
    ]


def derive_settings(fast: Mapping[str, Any]) -> dict[str, bool]:
    """What ``tokenizer_config.json`` of transformers 4 says of the same: whether bos and eos frame
    a text, and whether a space is put before each part between special tokens (``legacy``) or
    before the first alone. transformers 5 writes none of it there.
    """
    return {**_derive_frame(fast), **_derive_spacing(fast)}


def _derive_spacing(fast: Mapping[str, Any]) -> dict[str, bool]:
    before = fast.get("pre_tokenizer")
    scheme = before.get("prepend_scheme") if isinstance(before, dict) else None
    return {"legacy": scheme == "always"} if scheme in ("always", "first") else {}


def _derive_frame(fast: Mapping[str, Any]) -> dict[str, bool]:
    processor = fast.get("post_processor")
    if not isinstance(processor, dict):
        return {}
    for part in processor.get("processors") or [processor]:
        single = part.get("single") if isinstance(part, dict) else None
        if isinstance(single, list) and single:
            first, last = ("SpecialToken" in single[index] for index in (0, -1))
            return {"add_bos_token": first, "add_eos_token": last}
    return {}


def require_same_pieces(
    fast: Mapping[str, Any], file: Path, model: SentencePieceProcessor, model_file: Path
) -> None:
    """Raise ``VocabularyError`` unless both vocabularies give every piece the same id."""
    ids = dict(_list_ids(fast, file))
    added = {entry["content"]: entry["id"] for entry in read_added_tokens(fast, file)}
    pieces = list_pieces(model)
    for id_, piece in enumerate(pieces):
        theirs = ids.get(piece, added.get(piece))
        if theirs != id_:
            raise _contradiction_error(
                file,
                tr(
                    "{piece!r} as token {id}, as in {model_file}",
                    piece=piece,
                    id=id_,
                    model_file=model_file,
                ),
                tr("{piece!r} as token {theirs}", piece=piece, theirs=theirs)
                if theirs is not None
                else tr("no {piece!r}", piece=piece),
            )
    further = [text for text, id_ in ids.items() if id_ >= len(pieces) and text not in added]
    if further:
        raise _contradiction_error(
            file,
            tr(
                "the {n_pieces} pieces of {model_file}, and added tokens",
                n_pieces=len(pieces),
                model_file=model_file,
            ),
            tr(
                "{n_further} further pieces, such as {further!r}",
                n_further=len(further),
                further=further[0],
            ),
        )


def list_tokens(fast: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Every token by id, added ones included. Raises ``FormatError`` where there are none."""
    tokens = {id_: text for text, id_ in _list_ids(fast, file)}
    return tokens | {entry["id"]: entry["content"] for entry in read_added_tokens(fast, file)}


def _list_ids(fast: Mapping[str, Any], file: Path) -> Iterator[tuple[str, int]]:
    """Pieces with their ids: of BPE by name, of a unigram model in the order of a list."""
    model = fast.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict) and all(type(id_) is int for id_ in vocab.values()):
        yield from vocab.items()
    elif isinstance(vocab, list) and all(isinstance(e, list) and e for e in vocab):
        yield from ((str(entry[0]), id_) for id_, entry in enumerate(vocab))
    else:
        raise FormatError(
            tr("the file holds no vocabulary"),
            file=file,
            expected=tr('"model": {"vocab": pieces with their ids}'),
            found=repr(vocab)[:80],
            remedy=tr("fetch it again, or save the tokenizer again with transformers"),
        )


def _contradiction_error(file: Path, expected: str, found: str) -> VocabularyError:
    return VocabularyError(
        tr("tokenizer.json and tokenizer.model hold different vocabularies"),
        file=file,
        expected=expected,
        found=found,
        remedy=tr("take both from the same place: the tokenizer that the adapter was trained with"),
    )
