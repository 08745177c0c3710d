"""What the tokenizer's files of a result say beside the vocabulary, against those of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MergeError, VerificationError
from ..layouts.config import CONFIG_NAME, GENERATION_CONFIG_NAME
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..storage.folder import Folder
from ..tokenizers.opaque_tokenizer import read_opaque_tokenizer
from ..tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer, read_tokenizer
from ..untrusted.strict_json import read_json

_REMEDY = tr("merge again; or put the file that lacks it beside the result")


def check_tokenizer_files(folder: Path, tokenizer: SentencePieceTokenizer) -> Iterator[MergeError]:
    """Added tokens, special tokens and template of the inputs' tokenizer must be in the result.

    Meta's layout has no place but for the added tokens.
    """
    try:
        found = read_tokenizer(folder)
    except MergeError:
        return  # reported by the check of the vocabulary
    if found.added_tokens != tokenizer.added_tokens:
        odd = sorted(found.added_tokens.items() ^ tokenizer.added_tokens.items())
        yield _make_fault(
            folder, tr("added tokens differ"), tokenizer, tr("otherwise: {odd}", odd=odd[:4])
        )
    if ModelFolder(folder).is_meta:
        return
    for name in ("bos_token", "eos_token", "pad_token"):
        theirs, ours = getattr(tokenizer, name), getattr(found, name)
        if theirs is not None and theirs != ours:
            described = f"{ours.content!r} ({ours.id})" if ours is not None else tr("none")
            expected = f"{name} {theirs.content!r} ({theirs.id})"
            yield _make_fault(
                folder, tr("the {name} is another one", name=name), tokenizer, described, expected
            )
    if tokenizer.has_template and not found.has_template:
        yield _make_fault(
            folder, tr("the chat template is lost"), tokenizer, tr("none"), tr("a chat template")
        )
    if found.eos_token is not None:
        yield from _check_end(folder / GENERATION_CONFIG_NAME, found.eos_token.id)


def check_copied_end(folder: Path) -> Iterator[VerificationError]:
    """Beside a tokenizer that came with an adapter, configurations must end text where it does."""
    end = read_opaque_tokenizer(Folder(folder)).token_ids.get("eos_token_id")
    if end is not None:
        for name in (CONFIG_NAME, GENERATION_CONFIG_NAME):
            yield from _check_end(folder / name, end)


def _check_end(path: Path, end: int) -> Iterator[VerificationError]:
    """Hold a configuration's end of text against the tokenizer's; that of LLaMA's ``config.json``
    is checked with the vocabulary.
    """
    stated: Any = read_json(path).get("eos_token_id") if path.is_file() else None
    if stated is not None and end not in (stated if isinstance(stated, list) else [stated]):
        yield VerificationError(
            tr("generation would not end where the tokenizer ends a text"),
            file=path,
            expected=tr("eos_token_id {end}", end=end),
            found=tr("eos_token_id {stated}", stated=stated),
            remedy=tr("merge again, or write the tokenizer's id there"),
        )


def _make_fault(
    folder: Path,
    sentence: str,
    tokenizer: SentencePieceTokenizer,
    found: str,
    expected: str | None = None,
) -> VerificationError:
    tokens = ", ".join(f"{text!r}: {id_}" for text, id_ in tokenizer.added_tokens.items()) or tr(
        "none"
    )
    return VerificationError(
        tr("the tokenizer is not that of the inputs: {sentence}", sentence=sentence),
        file=folder,
        expected=tr("{expected}, as in {path}", expected=expected or tokens, path=tokenizer.path),
        found=found,
        remedy=_REMEDY,
    )
