"""The tokens of a GGUF file, as llama.cpp's ``convert_hf_to_gguf.py`` lists them.

llama.cpp makes ids of text by itself, from pieces and scores. It knows BPE, a space before the
text, and pieces of single bytes; what else a SentencePiece model may ask for is refused or told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import VocabularyError
from ...messages import join, tr
from ...tokenizers import sentencepiece_model as spm
from ...tokenizers.file_names import ADDED_TOKENS_NAME, MODEL_NAME, TOKENIZER_CONFIG_NAME
from ...tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from ...tokenizers.special_tokens import get_content
from ...untrusted.strict_json import parse_json, read_json

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

# Scores of tokens that are no pieces of the SentencePiece model.
_ADDED_SCORE = -1000.0
_PADDING_SCORE = -10000.0
# Added tokens that are taken for control tokens though nothing marks them so.
_LOOK_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


@dataclass(frozen=True)
class Token:
    """A token as the file lists it; ``kind`` is a ``gguf.TokenType``."""

    text: str
    score: float
    kind: int


def list_tokens(
    tokenizer: SentencePieceTokenizer, folder: Path, config: Mapping[str, Any], rows: int
) -> list[Token]:
    """Every token by id: the pieces of the SentencePiece model, then the added ones, then one for
    each of ``rows`` that is padding.

    ``folder`` holds the tokenizer's documents, ``config`` is its ``tokenizer_config.json``.
    """
    from gguf import TokenType

    tokens = list(_iter_pieces(tokenizer.contents[MODEL_NAME]))
    added = read_json(folder / ADDED_TOKENS_NAME) if (folder / ADDED_TOKENS_NAME).is_file() else {}
    special = set(_special_contents(tokenizer))
    for text in tokenizer.added_tokens:
        is_control = text in special or looks_special(text)
        kind = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        tokens.append(Token(text, _ADDED_SCORE, kind))
    for text, id_ in added.items():
        tokens[id_] = Token(text, _ADDED_SCORE, TokenType.USER_DEFINED)
    for id_, entry in config.get("added_tokens_decoder", {}).items():
        text = entry["content"]
        is_control = entry.get("special") or looks_special(text)
        kind = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        # llama.cpp looks for user-defined tokens in the text as it is typed.
        text = text if is_control else text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        tokens[int(id_)] = Token(text, _ADDED_SCORE, kind)
    padding = range(len(tokens), rows)
    return tokens + [Token(f"[PAD{n}]", _PADDING_SCORE, TokenType.UNUSED) for n in padding]


def _special_contents(tokenizer: SentencePieceTokenizer) -> Iterator[str]:
    """Added tokens that are special by the files of the tokenizer's own folder."""
    content = tokenizer.contents.get(TOKENIZER_CONFIG_NAME, b"{}")
    config = parse_json(content, tokenizer.path / TOKENIZER_CONFIG_NAME)
    for entry in (config.get("added_tokens_decoder") or {}).values():
        if isinstance(entry, dict) and entry.get("special"):
            yield get_content(entry)


def _iter_pieces(model: bytes) -> Iterator[Token]:
    from gguf import TokenType

    pieces = spm.load_processor(model)
    kinds = (
        (pieces.IsUnknown, TokenType.UNKNOWN),
        (pieces.IsControl, TokenType.CONTROL),
        (pieces.IsUnused, TokenType.UNUSED),
        (pieces.IsByte, TokenType.BYTE),
    )
    for id_ in range(pieces.get_piece_size()):
        kind = next((kind for is_of, kind in kinds if is_of(id_)), TokenType.NORMAL)
        yield Token(pieces.id_to_piece(id_), pieces.get_score(id_), kind)


def looks_special(text: str) -> bool:
    """Whether llama.cpp's converter takes a token for a control token by its looks."""
    framed = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return text in _LOOK_SPECIAL or any(
        text.startswith(first) and text.endswith(last) for first, last in framed
    )


def adds_dummy_prefix(tokenizer: SentencePieceTokenizer) -> bool:
    """Whether SentencePiece puts a space before a text; llama.cpp does unless it is told."""
    return bool(_parse_model(tokenizer).normalizer_spec.add_dummy_prefix)


def require_bpe(tokenizer: SentencePieceTokenizer) -> None:
    """llama.cpp joins pieces as BPE does, whatever the model is. Raises ``VocabularyError``."""
    trainer = _parse_model(tokenizer).trainer_spec
    if trainer.model_type != trainer.BPE:
        raise VocabularyError(
            tr(
                "llama.cpp would make other ids of text than SentencePiece does with this tokenizer"
            ),
            file=tokenizer.path,
            expected=tr("a BPE model, as LLaMA's is"),
            found=trainer.ModelType.Name(trainer.model_type).lower(),
            remedy=tr("write --output_type huggingface"),
        )


def describe_limits(tokenizer: SentencePieceTokenizer) -> tuple[str, ...]:
    """A line for people about text of which llama.cpp will make other ids, if there is any."""
    model = _parse_model(tokenizer)
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    own = [piece.piece for piece in model.pieces if piece.type == spm.USER_DEFINED]
    wanted = {
        tr("rewriting of characters before the search for pieces"): normalizer.precompiled_charsmap,
        tr("dropping of repeated and outer spaces"): normalizer.remove_extra_whitespaces,
        tr("spaces that stay spaces"): not normalizer.escape_whitespaces,
        tr("spaces that end a piece"): trainer.treat_whitespace_as_suffix,
        tr(
            "user-defined pieces ({pieces})",
            pieces=", ".join(own[:3]) + (", ..." if own[3:] else ""),
        ): own,
        tr("the unknown token, for there are no pieces of bytes"): not trainer.byte_fallback,
    }
    asked = [what for what, is_wanted in wanted.items() if is_wanted]
    if not asked:
        return ()
    return (
        tr(
            "llama.cpp knows nothing of what this tokenizer.model asks for, and "
            "makes other ids of text that it touches: {asked}",
            asked=join("; ", asked),
        ),
    )


def _parse_model(tokenizer: SentencePieceTokenizer) -> ModelProto:
    return spm.parse_model(tokenizer.contents[MODEL_NAME])
