"""The vocabulary of a GGUF file: SentencePiece's pieces with scores, or byte-level BPE with merges.

Keys, values and their order are those of llama.cpp's ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import VocabularyError
from ...messages import tr
from ...tokenizers.byte_level_bpe import ByteLevelBpeTokenizer
from ...tokenizers.embedded_tokenizer import EmbeddedTokenizer
from ...tokenizers.file_names import CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME
from ...tokenizers.padding_rows import are_padding
from ...tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from ...untrusted.strict_json import read_json
from ..config import CONFIG_NAME
from .bpe_tokens import describe_bpe_limits, find_pre_tokenizer, list_bpe_tokens
from .tokens import adds_dummy_prefix, describe_limits, list_tokens, require_bpe

if TYPE_CHECKING:
    from gguf import GGUFWriter, SpecialVocab

GgufTokenizer = SentencePieceTokenizer | ByteLevelBpeTokenizer | EmbeddedTokenizer
"""The tokenizers of which llama.cpp makes the same ids; the last is copied from a base in GGUF."""


def require_known_to_llama_cpp(tokenizer: GgufTokenizer) -> None:
    """Raise ``VocabularyError`` for a tokenizer that llama.cpp cannot follow."""
    if isinstance(tokenizer, ByteLevelBpeTokenizer):
        find_pre_tokenizer(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        require_bpe(tokenizer)


def describe_tokenizer_limits(tokenizer: GgufTokenizer) -> tuple[str, ...]:
    """Lines for people about text of which llama.cpp will make other ids, if there is any."""
    if isinstance(tokenizer, ByteLevelBpeTokenizer):
        return tuple(describe_bpe_limits(tokenizer))
    return describe_limits(tokenizer) if isinstance(tokenizer, SentencePieceTokenizer) else ()


def require_vocab_matches_rows(rows: int, tokenizer: GgufTokenizer, kept: bool) -> None:
    """llama.cpp loads no model whose tokens and rows differ; rows that are padding are given tokens
    that are never used. ``kept``: so the user wants all rows beyond the tokens to be. Raises
    ``VocabularyError`` for tokens without a row, and for rows that are no padding.
    """
    surplus = rows - tokenizer.n_tokens
    is_copied = isinstance(tokenizer, EmbeddedTokenizer)  # which gets no token that it lacks
    is_padded = are_padding(surplus, rows) or (kept and surplus > 0)
    if surplus and (is_copied or not is_padded):
        raise VocabularyError(
            tr("a GGUF file must have a token for each row of the embeddings"),
            file=tokenizer.path,
            expected=tr("{rows} tokens, one for each row", rows=rows),
            found=tr("{n_tokens} tokens", n_tokens=tokenizer.n_tokens),
            remedy=tr(
                "give the tokenizer that the model was trained with, with "
                "--tokenizer; for rows that are padding, write --output_type "
                "huggingface and let llama.cpp's converter name them"
            ),
        )


def add_vocabulary(writer: GGUFWriter, folder: Path, tokenizer: GgufTokenizer, rows: int) -> None:
    """Add every key of the vocabulary; ``folder`` holds the documents of a Hugging Face folder.

    Raises ``VocabularyError`` where nothing says which tokens begin and end a text: llama.cpp would
    take others.
    """
    if isinstance(tokenizer, EmbeddedTokenizer):
        from .base import add_embedded_tokenizer  # which needs torch

        add_embedded_tokenizer(writer, tokenizer)
        return
    path = folder / TOKENIZER_CONFIG_NAME
    config = read_json(path) if path.is_file() else {}
    if config.get("add_prefix_space") is not None:
        writer.add_add_space_prefix(config["add_prefix_space"])
    if isinstance(tokenizer, ByteLevelBpeTokenizer):
        _add_bpe(writer, folder, tokenizer, rows)
    else:
        _add_sentencepiece(writer, folder, tokenizer, rows, config)


def _add_sentencepiece(
    writer: GGUFWriter,
    folder: Path,
    tokenizer: SentencePieceTokenizer,
    rows: int,
    config: Mapping[str, Any],
) -> None:
    from gguf import SpecialVocab

    if config.get("add_prefix_space") is None and not adds_dummy_prefix(tokenizer):
        writer.add_add_space_prefix(False)
    tokens = list_tokens(tokenizer, folder, config, rows)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token.text.encode("utf-8") for token in tokens])
    writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types([token.kind for token in tokens])
    special = SpecialVocab(folder, n_vocab=len(tokens))
    # What only the tokenizer says: the unknown token, an end that config.json lists.
    for kind in ("bos", "eos", "unk", "pad"):
        token = getattr(tokenizer, f"{kind}_token")
        if token is not None:
            special.special_token_ids.setdefault(kind, token.id)
    special.add_to_gguf(writer, quiet=True)


def _add_bpe(writer: GGUFWriter, folder: Path, tokenizer: ByteLevelBpeTokenizer, rows: int) -> None:
    from gguf import SpecialVocab

    tokens = list(list_bpe_tokens(tokenizer, rows))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(find_pre_tokenizer(tokenizer))
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_types([token.kind for token in tokens])
    with _without_warnings():
        special = SpecialVocab(folder, load_merges=True, n_vocab=len(tokens))
    _complete_bpe(special, folder, tokenizer)
    special.add_to_gguf(writer, quiet=True)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The package warns of Llama 3's own way to join two texts, which llama.cpp has no key for."""
    logger = logging.getLogger("gguf.vocab")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _complete_bpe(special: SpecialVocab, folder: Path, tokenizer: ByteLevelBpeTokenizer) -> None:
    """Say what llama.cpp would take to be as in GPT-2 or Llama 3 where the converter is silent."""
    config = read_json(folder / CONFIG_NAME)
    for kind in ("bos", "eos"):
        stated = config.get(f"{kind}_token_id")
        first = stated[0] if isinstance(stated, list) and stated else stated
        id_ = tokenizer.token_ids.get(f"{kind}_token_id", first)
        if kind not in special.special_token_ids and type(id_) is int:
            special.special_token_ids[kind] = id_
        if kind not in special.special_token_ids:
            raise VocabularyError(
                tr(
                    "nothing says which token {text} a text",
                    text=tr("begins") if kind == "bos" else tr("ends"),
                ),
                file=tokenizer.path.with_name(TOKENIZER_CONFIG_NAME),
                expected=tr(
                    '"{kind}_token", or "{kind}_token_id" in {config_name}',
                    kind=kind,
                    config_name=CONFIG_NAME,
                ),
                found=tr("neither"),
                remedy=tr(
                    "take the tokenizer's files and config.json from the place where the "
                    "weights are from"
                ),
            )
    # llama.cpp puts a token before a text unless it is told; the order is the converter's.
    added = {"bos": False, "eos": False} | special.add_special_token
    special.add_special_token = added
    template = folder / CHAT_TEMPLATE_NAME
    if template.is_file():  # the one that transformers takes where there are two
        special.chat_template = template.read_text(encoding="utf-8")
