"""Which tokens the JSON files beside a ``tokenizer.model`` name, checked against the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import FormatError, VocabularyError
from ..messages import tr
from .file_names import ADDED_TOKENS_NAME, MODEL_NAME, TOKENIZER_CONFIG_NAME, TOKENIZER_JSON_NAME

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPECIAL_NAMES = tuple(f"{n}_token" for n in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""The keys under which transformers names one special token each."""
ADDITIONAL_SPECIAL_TOKENS = "additional_special_tokens"

PAD_PIECES = ("[PAD]", "<pad>")
"""What the padding piece of Chinese-Alpaca and of Chinese-LLaMA-2 is called."""


_FETCH_AGAIN = tr("fetch the file again, or save the tokenizer again with transformers")


class SpecialToken(NamedTuple):
    """A special token and its id."""

    content: str
    id: int


def _list_added_ids(
    added: dict[str, Any], config: dict[str, Any], fast: list[dict[str, Any]], folder: Path
) -> Iterator[tuple[str, int, Path]]:
    """Yield content, id and source of every token in the places that list added tokens.

    ``added_tokens_decoder`` of transformers 4.34 and later maps ids to ``AddedToken`` objects;
    ``fast`` is the list of ``tokenizer.json``.
    """
    for entry in fast:
        yield entry["content"], entry["id"], folder / TOKENIZER_JSON_NAME
    for content, id_ in added.items():
        yield content, _parse_id(id_, folder / ADDED_TOKENS_NAME), folder / ADDED_TOKENS_NAME
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(map(get_content, decoder.values())):
        raise FormatError(
            tr("the list of added tokens is not one"),
            file=folder / TOKENIZER_CONFIG_NAME,
            expected=tr('"added_tokens_decoder": {"32000": {"content": "<pad>"}}'),
            found=repr(decoder)[:80],
            remedy=_FETCH_AGAIN,
        )
    for id_, token in decoder.items():
        yield (
            get_content(token),
            _parse_id(id_, folder / TOKENIZER_CONFIG_NAME),
            folder / TOKENIZER_CONFIG_NAME,
        )


def _parse_id(value: object, file: Path) -> int:
    if str(value).isdecimal():
        return int(str(value))
    raise FormatError(
        tr("a token id is not a whole number"),
        file=file,
        expected=tr("0 or more"),
        found=repr(value),
        remedy=_FETCH_AGAIN,
    )


def collect_added_tokens(
    listed: dict[str, Any],
    config: dict[str, Any],
    fast: list[dict[str, Any]],
    model: SentencePieceProcessor,
    folder: Path,
) -> dict[str, int]:
    """Return the tokens beyond the model's pieces, in id order; refuse what contradicts it."""
    n_pieces = model.get_piece_size()
    added: dict[str, int] = {}
    sources: dict[str, Path] = {}
    for content, id_, file in _list_added_ids(listed, config, fast, folder):
        is_piece = _find_piece_id(content, model)
        known = added.get(content, id_) if is_piece is None else is_piece
        if known != id_ or (id_ < n_pieces and is_piece is None):
            raise VocabularyError(
                tr(
                    "the added token {content!r} contradicts {content_2}",
                    content=content,
                    content_2=sources.get(content, MODEL_NAME),
                ),
                file=file,
                expected=tr("id {known}", known=known)
                if known != id_
                else tr("{id_to_piece!r} as {id}", id_to_piece=model.id_to_piece(id_), id=id_),
                found=tr("{content!r} as id {id}", content=content, id=id_),
                remedy=tr("take the JSON files from the same place as the tokenizer.model"),
            )
        if is_piece is None:
            added[content] = id_
            sources.setdefault(content, file)
    added = dict(sorted(added.items(), key=lambda item: item[1]))
    if list(added.values()) != list(range(n_pieces, n_pieces + len(added))):
        raise VocabularyError(
            tr(
                "the ids of the added tokens do not follow the {n_pieces} pieces of {model_name}",
                n_pieces=n_pieces,
                model_name=MODEL_NAME,
            ),
            file=folder,
            expected=tr(
                "{n_pieces} to {n_pieces_2}",
                n_pieces=n_pieces,
                n_pieces_2=n_pieces + len(added) - 1,
            ),
            found=", ".join(f"{content!r}: {id_}" for content, id_ in added.items()),
            remedy=tr("take the JSON files from the same place as the tokenizer.model"),
        )
    return added


def collect_special_tokens(
    config: dict[str, Any], special_map: dict[str, Any], model: SentencePieceProcessor
) -> dict[str, Any]:
    """Return the special tokens by ``SPECIAL_NAMES``, with what the model supplies filled in."""
    special = {
        name: source[name]
        for source in (config, special_map)
        for name in SPECIAL_NAMES
        if get_content(source.get(name))
    }
    own = {"bos_token": model.bos_id(), "eos_token": model.eos_id(), "unk_token": model.unk_id()}
    for name, id_ in own.items():
        if id_ >= 0:
            special.setdefault(name, model.id_to_piece(id_))
    last = model.id_to_piece(model.get_piece_size() - 1)
    if last in PAD_PIECES:
        special.setdefault("pad_token", last)
    return {name: special[name] for name in SPECIAL_NAMES if name in special}


def collect_more_special_tokens(config: dict[str, Any], special_map: dict[str, Any]) -> list[Any]:
    """Return the tokens that are special without a role, as text or ``AddedToken`` objects.

    transformers 5 calls them ``extra_special_tokens``; its tokens with a role of their own, an
    object under the same name, are not among them.
    """
    for source in (special_map, config):
        for name in (ADDITIONAL_SPECIAL_TOKENS, "extra_special_tokens"):
            if isinstance(source.get(name), list):
                return list(source[name])
    return []


def find_token(
    name: str, value: object, model: SentencePieceProcessor, added: dict[str, int], folder: Path
) -> SpecialToken:
    """Find the id of a special token; transformers would silently append an unknown one."""
    content = get_content(value)
    id_ = _find_piece_id(content, model)
    if id_ is None:
        id_ = added.get(content)
    if id_ is None:
        n_tokens = model.get_piece_size() + len(added)
        raise VocabularyError(
            tr(
                "the {name} {content!r} is not a token of this tokenizer",
                name=name,
                content=content,
            ),
            file=folder,
            expected=tr("one of the {n_tokens} pieces and added tokens", n_tokens=n_tokens),
            remedy=tr(
                "if the adapter has a row for it, take the file that gives its id "
                "({model_name}, {tokenizer_json_name} or {added_tokens_name}) from "
                "where the adapter was trained; if not, remove it from the file that "
                "names it",
                model_name=MODEL_NAME,
                tokenizer_json_name=TOKENIZER_JSON_NAME,
                added_tokens_name=ADDED_TOKENS_NAME,
            ),
        )
    return SpecialToken(content, id_)


def _find_piece_id(content: str, model: SentencePieceProcessor) -> int | None:
    id_ = int(model.piece_to_id(content))  # unk's for what is no piece
    return id_ if model.id_to_piece(id_) == content else None


def get_content(value: object) -> str:
    """Return the text of a token that is given as text or as an ``AddedToken`` object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
