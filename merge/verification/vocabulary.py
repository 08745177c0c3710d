"""The tokenizer of a result against its rows: how many, in which order, which ids are special."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizer_tools.huggingface import MODEL_NAME, TokenizerFolder, read_tokenizer
from tokenizer_tools.known import mixup, recognise_bytes

from ..errors import MergeError, VerificationError
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..lazy import Checkpoint


def check_vocabulary(
    folder: Path,
    result: Checkpoint,
    base: Checkpoint | None,
    parents: Sequence[Path],
    padded: bool,
) -> Iterator[MergeError]:
    """Yield what is wrong between the tokenizer of ``folder`` and the rows of ``result``.

    ``parents`` are the tokenizers that this one extends or is: the base's and the adapters', which
    must give every id the same piece. ``padded``: rows beyond the tokens were asked for.
    """
    rows = result.tensors[EMBED_TOKENS].rows
    head = result.tensors.get(LM_HEAD)
    if head is not None and head.rows != rows:
        yield VerificationError(
            "embeddings and LM head have different numbers of rows",
            file=folder,
            tensor=LM_HEAD,
            expected=f"{rows} rows, as {EMBED_TOKENS}",
            found=f"{head.rows} rows",
            remedy="merge again",
        )
    try:
        tokenizer = read_tokenizer(folder)
    except MergeError as error:
        yield error
        return
    yield from _counts(tokenizer, rows, base, padded)
    yield from _special_ids(tokenizer, result)
    for parent in parents:
        yield from _order(tokenizer, parent)


def _counts(
    tokenizer: TokenizerFolder, rows: int, base: Checkpoint | None, padded: bool
) -> Iterator[VerificationError]:
    kept = base is not None and rows == base.tensors[EMBED_TOKENS].rows
    if tokenizer.n_tokens == rows or (tokenizer.n_tokens < rows and (padded or kept)):
        return
    known = recognise_bytes(tokenizer.contents[MODEL_NAME])
    yield VerificationError(
        "tokenizer and rows do not belong together",
        file=tokenizer.path,
        tensor=EMBED_TOKENS,
        expected=f"{rows} tokens, one for each row",
        found=f"{tokenizer.n_tokens} tokens ({tokenizer.n_pieces} pieces and "
        f"{len(tokenizer.added_tokens)} added ones)",
        remedy=mixup(known, rows)
        or "put the tokenizer back that the merge wrote, or merge again with the right --tokenizer",
    )


def _special_ids(tokenizer: TokenizerFolder, result: Checkpoint) -> Iterator[VerificationError]:
    for name in ("bos_token", "eos_token"):
        token, stated = getattr(tokenizer, name), result.config.get(f"{name}_id")
        listed = stated if isinstance(stated, list) else [stated]
        if token is not None and stated is not None and token.id not in listed:
            yield VerificationError(
                "config.json gives a special token another id than the tokenizer does",
                file=tokenizer.path,
                expected=f"{name}_id {token.id} ({token.content})",
                found=f"{name}_id {stated}",
                remedy="put back the config.json that the merge wrote",
            )


def _order(tokenizer: TokenizerFolder, parent: Path) -> Iterator[VerificationError]:
    """Every id must mean the same piece as in a tokenizer that the rows come from."""
    ours, theirs = _pieces(tokenizer), _pieces(read_tokenizer(parent))
    for id_, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            yield VerificationError(
                "the tokenizer gives an id another piece than the tokenizer its rows come from",
                file=tokenizer.path,
                expected=f"{other!r} as token {id_}, as in {parent}",
                found=repr(one),
                remedy="put the tokenizer back that the merge wrote, or merge again with the right "
                "--tokenizer",
            )
            return


def _pieces(tokenizer: TokenizerFolder) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(tokenizer.contents[MODEL_NAME])
    pieces = [model.id_to_piece(id_) for id_ in range(model.get_piece_size())]
    return [*pieces, *tokenizer.added_tokens]
