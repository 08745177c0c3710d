"""Byte-level BPE in a GGUF file: its tokens, as llama.cpp's ``convert_hf_to_gguf.py`` lists them.

llama.cpp makes ids of text by itself, from tokens and merges. How it cuts text before any merging
is a pre-tokenizer of its own, which the file names (``tokenizer.ggml.pre``). The converter finds
that name by the ids of a test text, which change with every new token; here it is found by the
pattern in ``tokenizer.json``, which does not.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import VocabularyError
from ...messages import tr
from ...tokenizers.byte_level_bpe import ByteLevelBpeTokenizer
from ...tokenizers.tiktoken_model import SPLIT_PATTERN
from .tokens import Token, looks_special

# What llama.cpp calls the pre-tokenizer that cuts text by a pattern.
_PRE_TOKENIZERS = {SPLIT_PATTERN: "llama-bpe"}
# Flags of added tokens that llama.cpp has no place for.
_UNKNOWN_FLAGS = ("lstrip", "rstrip", "single_word")


def find_pre_tokenizer(tokenizer: ByteLevelBpeTokenizer) -> str:
    """What llama.cpp calls the pre-tokenizer. Raises ``VocabularyError`` for any but Llama 3's."""
    name = _PRE_TOKENIZERS.get(tokenizer.pattern)
    if name is None:
        raise VocabularyError(
            tr("this tokenizer cuts text by another pattern than Llama 3's"),
            file=tokenizer.path,
            expected=SPLIT_PATTERN,
            found=tokenizer.pattern,
            remedy=tr("write --output_type huggingface, and use llama.cpp's own converter"),
        )
    return name


def list_bpe_tokens(tokenizer: ByteLevelBpeTokenizer, rows: int) -> Iterator[Token]:
    """A token for each of ``rows``; ids that have none are padding."""
    from gguf import TokenType

    for id_ in range(rows):
        text = tokenizer.tokens[id_] if id_ < tokenizer.n_tokens else None
        added = tokenizer.added.get(id_)
        if text is None:
            yield Token(f"[PAD{id_}]", 0.0, TokenType.UNUSED)
        elif added is None:
            yield Token(text, 0.0, TokenType.NORMAL)
        elif added["special"] or looks_special(text):
            yield Token(text, 0.0, TokenType.CONTROL)
        else:  # looked for in the text as it is typed
            typed = text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
            yield Token(typed, 0.0, TokenType.USER_DEFINED)


def describe_bpe_limits(tokenizer: ByteLevelBpeTokenizer) -> Iterator[str]:
    """Lines for people about text of which llama.cpp will make other ids, if there is any."""
    if not tokenizer.takes_whole_words:
        yield (
            tr(
                "llama.cpp takes a word that is a token for that token, as Meta's "
                "Llama 3 does; this tokenizer.json merges it from parts (no "
                "ignore_merges), and may make other ids of it"
            )
        )
    flagged = [
        entry["content"]
        for entry in tokenizer.added.values()
        if any(entry[flag] for flag in _UNKNOWN_FLAGS)
    ]
    if flagged:
        listed = ", ".join(flagged[:3]) + (", ..." if flagged[3:] else "")
        yield (
            tr(
                "llama.cpp finds added tokens ({listed}) in any place and keeps the "
                "spaces around them, though tokenizer.json says otherwise (lstrip, "
                "rstrip, single_word)",
                listed=listed,
            )
        )
