"""LLaMA's tokenizer and a Chinese one in, a tokenizer folder out: what merge_tokenizers.py does."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merge.checksums import known_tokenizers as known
from merge.errors import FormatError, UsageError, VocabularyError
from merge.messages import join, tr
from merge.storage.atomic_write import write_atomically
from merge.tokenizers import sentencepiece_model as spm
from merge.tokenizers.file_names import MODEL_NAME, SPECIAL_TOKENS_NAME
from merge.tokenizers.sentencepiece_tokenizer import build_documents, read_tokenizer

from .extend import ExtendedModel, extend, select_text_pieces
from .output_files import require_room_for_tokenizer

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

BPE = 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class MergedTokenizer:
    """A grown tokenizer and what a person should know about it before training with it.

    ``not_text`` are control, unknown and byte pieces of the Chinese model, which are left out.
    ``unreachable`` are appended pieces that SentencePiece can never produce, see
    ``_find_unreachable``. ``digest`` is the SHA-256 of the ``tokenizer.model`` to be written.
    """

    extended: ExtendedModel
    base_pieces: int
    not_text: tuple[str, ...]
    unreachable: tuple[str, ...]
    pad_token: str | None
    digest: str

    @property
    def n_pieces(self) -> int:
        """How many pieces the tokenizer has: as many as a model for it has embedding rows."""
        return len(self.extended.model.pieces)

    @property
    def ascii_pieces(self) -> tuple[str, ...]:
        """Appended pieces that change how English, numbers and code are tokenized."""
        appended = (piece for piece in self.extended.appended if piece != self.pad_token)
        return tuple(piece for piece in appended if piece.replace("▁", "").isascii())


def merge_tokenizers(
    llama: Path,
    chinese: Path | None = None,
    *,
    user_pieces: Path | None = None,
    pad_token: str | None = None,
) -> MergedTokenizer:
    """Append the pieces of ``chinese``, then of ``user_pieces``, then ``pad_token`` to ``llama``.

    ``llama`` and ``chinese`` are SentencePiece models, or folders with a ``tokenizer.model``.
    Raises ``VocabularyError`` unless ``llama`` is a BPE model with byte pieces, or if there is
    nothing to append.
    """
    base = spm.read_model(llama)
    _refuse_other_base(base, llama)
    model = None if chinese is None else spm.read_model(chinese)
    offered = [] if model is None else select_text_pieces(model)
    text = set(offered)
    not_text = [] if model is None else [p.piece for p in model.pieces if p.piece not in text]
    if user_pieces is not None:
        offered += _read_pieces(user_pieces)
    _refuse_pad_token(pad_token)
    extended = extend(base, offered, pad_token)
    if not extended.appended:
        raise VocabularyError(
            tr("there is nothing to append: every piece is in the tokenizer already"),
            file=llama,
            found=tr(
                "{n_already_there} pieces, all already there",
                n_already_there=len(extended.already_there),
            )
            if extended.already_there
            else tr("no pieces were offered"),
            remedy=tr(
                "name a --chinese_sp_model_file, --user_pieces or a --pad_token that adds something"
            ),
        )
    return MergedTokenizer(
        extended=extended,
        base_pieces=len(base.pieces),
        not_text=tuple(not_text),
        unreachable=_find_unreachable(extended, pad_token),
        pad_token=pad_token,
        digest=hashlib.sha256(spm.serialize_model(extended.model)).hexdigest(),
    )


def _read_pieces(path: Path) -> list[str]:
    """Read one piece a line; spaces inside become SentencePiece's ``▁``, empty lines are skipped.

    A piece that starts a word is written with the ``▁`` in front.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(
            tr("the list of pieces is not UTF-8"),
            file=path,
            found=tr(
                "byte {object:#04x} at offset {start}",
                object=error.object[error.start],
                start=error.start,
            ),
            remedy=tr("save it as UTF-8, one piece a line"),
        ) from None
    pieces = [line.strip().replace(" ", "▁") for line in lines if line.strip()]
    if not pieces:
        raise FormatError(
            tr("the list of pieces is empty"),
            file=path,
            expected=tr("one piece a line"),
            remedy=tr("write the pieces into it, or leave out --user_pieces"),
        )
    return pieces


def _find_unreachable(extended: ExtendedModel, pad_token: str | None = None) -> tuple[str, ...]:
    """Return the appended pieces that no text is ever tokenized to, ``pad_token`` aside.

    SentencePiece's BPE makes a piece only from two shorter ones. Without context nothing competes
    for the characters of a piece, so one that is not reached from its own text is never reached.
    """
    alone = type(extended.model)()
    alone.CopyFrom(extended.model)
    alone.normalizer_spec.add_dummy_prefix = False
    pieces = [piece for piece in extended.appended if piece != pad_token]
    encoded = spm.load_processor(spm.serialize_model(alone)).encode(
        [piece.replace("▁", " ") for piece in pieces]
    )
    return tuple(piece for piece, ids in zip(pieces, encoded, strict=True) if len(ids) != 1)


def write_tokenizer(merged: MergedTokenizer, folder: Path, overwrite: bool = False) -> None:
    """Write ``tokenizer.model`` and the Hugging Face files that go with it into ``folder``.

    Raises ``OutputError`` if one of them is there, unless ``overwrite``, or a file of another
    tokenizer.
    """
    contents = _build_files(merged)
    require_room_for_tokenizer(folder, contents, overwrite)
    write_atomically(folder, contents)


def _build_files(merged: MergedTokenizer) -> dict[str, bytes]:
    """Return the files of the tokenizer folder by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / MODEL_NAME).write_bytes(spm.serialize_model(merged.extended.model))
        if merged.pad_token is not None:
            special = json.dumps({"pad_token": merged.pad_token}, ensure_ascii=False)
            (folder / SPECIAL_TOKENS_NAME).write_text(special, encoding="utf-8")
        return build_documents(read_tokenizer(folder))


def format_summary(merged: MergedTokenizer) -> str:
    """Describe what was appended, what was not, and which published tokenizer the result is."""
    extended = merged.extended
    lines = [
        tr("{base_pieces:>7} pieces before", base_pieces=merged.base_pieces),
        tr(
            "{n_appended:>7} appended, in the order given, with score 0",
            n_appended=len(extended.appended),
        ),
        tr(
            "{n_already_there:>7} were already there and keep their ids",
            n_already_there=len(extended.already_there),
        ),
        tr(
            "{n_not_text:>7} control, unknown or byte pieces left out",
            n_not_text=len(merged.not_text),
        ),
        tr(
            "{n_pieces:>7} pieces now: a model for it has {n_pieces} embedding rows",
            n_pieces=merged.n_pieces,
        ),
    ]
    if merged.pad_token is not None:
        pad_id = _find_id(extended.model, merged.pad_token)
        lines.append(
            tr("pad token {pad_token!r} is {pad_id}", pad_token=merged.pad_token, pad_id=pad_id)
        )
    if merged.ascii_pieces:
        lines.append(
            tr(
                "note: {n_ascii_pieces} of the new pieces are plain ASCII ({join}): "
                "English, numbers and code that hold them get new ids",
                n_ascii_pieces=len(merged.ascii_pieces),
                join=_join(merged.ascii_pieces),
            )
        )
    if merged.unreachable:
        lines.append(
            tr(
                "note: {n_unreachable} of the new pieces can never occur ({join}): "
                "no two shorter pieces make them",
                n_unreachable=len(merged.unreachable),
                join=_join(merged.unreachable),
            )
        )
    name = known.recognize_digest(merged.digest)
    lines.append(
        f"sha256 {merged.digest}" + (tr(" = the published {name}", name=name.name) if name else "")
    )
    return join("\n", lines)


def _refuse_other_base(base: ModelProto, llama: Path) -> None:
    if base.trainer_spec.model_type != BPE or not spm.has_byte_pieces(base):
        n_bytes = sum(1 for piece in base.pieces if piece.type == spm.BYTE)
        kind = "BPE" if base.trainer_spec.model_type == BPE else tr("not BPE")
        raise VocabularyError(
            tr("the tokenizer to be extended is not of LLaMA's kind"),
            file=spm.find_model_file(llama),
            expected=tr("BPE with 256 byte pieces: pieces with score 0 work in no other kind"),
            found=tr(
                "{kind}, {n_bytes} byte pieces, {n_pieces} pieces in all",
                kind=kind,
                n_bytes=n_bytes,
                n_pieces=len(base.pieces),
            ),
            remedy=tr(
                "check that --llama_tokenizer_dir and --chinese_sp_model_file are not swapped"
            ),
        )


def _refuse_pad_token(pad_token: str | None) -> None:
    if pad_token is not None and (not pad_token or pad_token.split() != [pad_token]):
        raise UsageError(
            tr("the pad token must be a piece without spaces"),
            expected=tr("such as [PAD]"),
            found=repr(pad_token),
            remedy=tr("give another --pad_token"),
        )


def _find_id(model: ModelProto, piece: str) -> int:
    return [p.piece for p in model.pieces].index(piece)


def _join(pieces: tuple[str, ...]) -> str:
    return " ".join(pieces[:5]) + (" ..." if len(pieces) > 5 else "")
