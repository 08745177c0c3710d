"""What the converters make of ``tokenizer.model`` and the tokens added to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..tokenizers import spm
from ..untrusted.strict_json import read_json
from ..untrusted.value_kinds import required_number
from .findings import Report

ADDED = "added_tokens.json"
CONFIG = "tokenizer_config.json"
_PAD = "[PAD]"


def check_legacy_tokens(folder: Path, rows: int, report: Report) -> None:
    """Pieces and added tokens together must be as many as the model has ``rows``."""
    path, added = folder / spm.MODEL_NAME, {}
    if not path.is_file():
        path = folder.absolute().parent / spm.MODEL_NAME
        if not path.is_file():
            report.stops(
                "there is no tokenizer",
                file=folder / spm.MODEL_NAME,
                found="no such file, neither in the folder nor above it",
                remedy="put the model's tokenizer.model into the folder",
            )
            return
        report.notes.append(f"no tokenizer.model in the folder: {path} is taken, from above it")
    elif (folder / ADDED).is_file():
        added = _listed(folder / ADDED)
    pieces = _pieces(path)
    ids = sorted(token_id for token_id in added.values() if token_id >= len(pieces))
    if ids != list(range(len(pieces), len(pieces) + len(ids))):
        report.stops(
            "the added tokens do not follow the pieces without a gap",
            file=folder / ADDED,
            expected=f"{len(pieces)} and on",
            found=ids[:8],
            remedy="number them on from the last piece",
        )
    elif rows != len(pieces) + len(ids):
        _report_counts(path, len(pieces), len(ids), rows, report)
    report.facts["vocabulary"] = f"{rows} rows, {len(pieces)} pieces, {len(ids)} added tokens"
    _note_pad([*pieces, *added], report)


def _report_counts(path: Path, pieces: int, added: int, rows: int, report: Report) -> None:
    more = rows > pieces + added
    report.stops(
        "model and tokenizer have different numbers of tokens",
        file=path,
        expected=f"{rows}, as the model",
        found=f"{pieces} pieces and {added} added tokens",
        remedy="take the model's own tokenizer"
        + (f", list the others in {ADDED}, or let --pad-vocab invent names" if more else ""),
    )


def check_huggingface_tokens(
    folder: Path, config: Mapping[str, Any], rows: int | None, report: Report
) -> None:
    """The list has ``vocab_size`` of config.json; what is missing or too much goes unnoticed.

    ``rows`` are those of the embeddings, None when they are not known.
    """
    pieces = _pieces(folder / spm.MODEL_NAME)
    size = len(pieces)
    if config.get("vocab_size"):
        size = required_number(config, "vocab_size", folder / "config.json")
    report.facts["vocabulary"] = f"vocab_size {size}, {rows} rows, {len(pieces)} pieces"
    if rows is not None and rows != size:
        report.silent(
            "the converter believes config.json, and llama.cpp refuses what comes out",
            file=folder / "config.json",
            expected=f'"vocab_size": {rows}, as the embeddings have rows',
            found=size,
            remedy="correct config.json",
        )
    if len(pieces) > size:
        report.silent(
            "the tokenizer's last pieces are left out",
            file=folder / spm.MODEL_NAME,
            expected=f"at most {size} pieces, by config.json",
            found=f"{len(pieces)}, of which {len(pieces) - size} are left out",
            remedy="correct vocab_size, or take the model's own tokenizer",
        )
    added = _added(folder)
    named = sum(len(pieces) <= token_id < size for token_id in added)
    unnamed = size - len(pieces) - named
    if unnamed > 0:
        report.silent(
            "tokens get invented names such as [PAD32000] and are marked as unused",
            file=folder / spm.MODEL_NAME,
            expected=f"{size} tokens, by config.json",
            found=f"{len(pieces)} pieces, {named} added; {unnamed} ids without a token",
            remedy=f"take the model's own tokenizer, or list them in {ADDED}",
        )
    _check_added(folder, added, pieces, size, report)
    _note_pad([*pieces, *added.values()], report)


def _check_added(
    folder: Path, added: Mapping[int, str], pieces: list[str], size: int, report: Report
) -> None:
    beyond = {i: token for i, token in added.items() if i >= size}
    renamed = {i: t for i, t in added.items() if i < len(pieces) and i < size and t != pieces[i]}
    if beyond:
        report.silent(
            "added tokens beyond the vocabulary are left out",
            file=folder,
            expected=f"ids below {size}, by config.json",
            found=beyond,
            remedy="remove them, or correct vocab_size if the embeddings have rows for them",
        )
    if renamed:
        report.silent(
            "added tokens replace pieces of the tokenizer",
            file=folder,
            expected={i: pieces[i] for i in renamed},
            found=renamed,
            remedy=f"correct {ADDED} or {CONFIG}",
        )


def _added(folder: Path) -> dict[int, str]:
    """Added tokens by id: those of ``added_tokens.json``, then those of the configuration."""
    listed = _listed(folder / ADDED) if (folder / ADDED).is_file() else {}
    added = {token_id: token for token, token_id in listed.items()}
    path = folder / CONFIG
    decoder = read_json(path).get("added_tokens_decoder", {}) if path.is_file() else {}
    for token_id, data in decoder.items() if isinstance(decoder, dict) else ():
        content = data.get("content") if isinstance(data, dict) else None
        if not token_id.isdecimal() or not isinstance(content, str):
            raise _no_tokens(path, {token_id: data})
        added[int(token_id)] = content
    return added


def _listed(path: Path) -> dict[str, int]:
    """``added_tokens.json``. Raises ``FormatError`` for anything but ids by token."""
    listed = read_json(path)
    for token, token_id in listed.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise _no_tokens(path, {token: token_id})
    return listed


def _no_tokens(path: Path, found: object) -> FormatError:
    return FormatError(
        "the file does not say which id an added token has",
        file=path,
        found=found,
        remedy="take the file from the place where the tokenizer is from",
    )


def check_special_ids(folder: Path, config: Mapping[str, Any], report: Report) -> None:
    """The ids of config.json go into the file; those of early conversions never end a text."""
    processor = spm.processor(spm.read_model(folder / spm.MODEL_NAME))
    for name, own in (("bos", processor.bos_id()), ("eos", processor.eos_id())):
        given = config.get(f"{name}_token_id")
        if isinstance(given, int) and given != own:
            report.silent(
                f"the {name} token is another one than the tokenizer's",
                file=folder / "config.json",
                expected=f'"{name}_token_id": {own}',
                found=given,
                remedy="correct config.json",
            )


def _pieces(path: Path) -> list[str]:
    return spm.pieces(spm.read_model(path))


def _note_pad(tokens: list[str], report: Report) -> None:
    if _PAD in tokens:
        report.notes.append(
            f'llama.cpp will warn that "{_PAD}" looks like a control token; that is harmless'
        )
