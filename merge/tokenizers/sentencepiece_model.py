"""SentencePiece models as files and as messages; what they mean is SentencePiece's own business.

A ``tokenizer.model`` is one protobuf message, ``sentencepiece.ModelProto``. Reading and
serializing an untouched message gives the same bytes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FormatError, Topic, UsageError
from ..messages import tr
from ..storage.atomic_write import write_atomically
from ..untrusted.placeholders import refuse_placeholder
from .file_names import MODEL_NAME
from .tiktoken_model import is_tiktoken

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto


# ModelProto.SentencePiece.Type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def find_model_file(path: Path) -> Path:
    """Return ``path`` itself, or the ``tokenizer.model`` in it if it is a folder."""
    if path.is_dir():
        inside = path / MODEL_NAME
        if not inside.is_file():
            raise UsageError(
                tr("the folder holds no {model_name}", model_name=MODEL_NAME),
                file=path,
                remedy=tr("name a folder with a SentencePiece model, or the model file itself"),
            )
        return inside
    if not path.exists():
        raise UsageError(
            tr("there is no such tokenizer"), file=path, remedy=tr("check the spelling")
        )
    return path


def read_model(path: Path) -> ModelProto:
    """Read and check a SentencePiece model from a file, or from a folder's ``tokenizer.model``.

    Raises ``FormatError`` for what SentencePiece could not load: an empty file, another
    format, a truncated model, duplicate pieces.
    """
    file = find_model_file(path)
    content = file.read_bytes()
    refuse_placeholder(file, content)
    _refuse_tiktoken(content, file)
    model = _parse_checked(content, file)
    _require_unique_pieces(model, file)
    load_processor(content, file)
    return model


def parse_model(content: bytes) -> ModelProto:
    """Parse the bytes of a model that SentencePiece has loaded already."""
    model = _import_message_type()()
    model.ParseFromString(content)
    return model


def load_processor(content: bytes, file: Path | None = None) -> SentencePieceProcessor:
    """Load a model, given as the bytes of its file, into SentencePiece itself.

    ``file`` is where they are from, for errors. Raises ``FormatError`` for what SentencePiece
    cannot load, and for pieces that are not UTF-8.
    """
    _refuse_tiktoken(content, file)
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        list_pieces(processor)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise FormatError(
            tr("SentencePiece cannot read the tokenizer: no SentencePiece model, or a damaged one"),
            file=file,
            found=tr("{n_content} bytes; {error}", n_content=len(content), error=error),
            remedy=tr("fetch it again; LLaMA's has 499723 bytes"),
        ) from None
    return processor


def _refuse_tiktoken(content: bytes, file: Path | None) -> None:
    if is_tiktoken(content):
        raise FormatError(
            tr(
                "this {model_name} is a tiktoken file, as Llama 3 has, and no SentencePiece model",
                model_name=MODEL_NAME,
            ),
            file=file,
            expected=tr("the SentencePiece model of LLaMA 1 or 2"),
            remedy=tr(
                "merges and conversions read Llama 3's; for this command name another tokenizer"
            ),
        )


def list_pieces(processor: SentencePieceProcessor) -> list[str]:
    """Return the pieces of a model in id order."""
    pieces: list[str] = processor.id_to_piece(list(range(processor.get_piece_size())))
    return pieces


def serialize_model(model: ModelProto) -> bytes:
    """Return the bytes of ``model`` as they go into a ``tokenizer.model``."""
    return bytes(model.SerializeToString())


def write_model(model: ModelProto, path: Path) -> None:
    """Write ``model`` to ``path``, which appears whole or not at all."""
    write_atomically(path.parent, {path.name: serialize_model(model)})


def has_byte_pieces(model: ModelProto) -> bool:
    """Tell whether all 256 byte pieces are there, so that no text becomes ``<unk>``."""
    return sum(1 for piece in model.pieces if piece.type == BYTE) == 256


def _parse_checked(content: bytes, file: Path) -> ModelProto:
    message_type = _import_message_type()  # first: it tells what does not fit
    from google.protobuf.message import DecodeError

    model = message_type()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise _no_model_error(file) from None
    if not model.pieces or not model.HasField("trainer_spec"):
        # protobuf reads many a short text as a message of unknown fields
        raise _no_model_error(file)
    return model


def _import_message_type() -> type[ModelProto]:
    """Import SentencePiece's message class, which runs on the protobuf it was compiled for."""
    misfit: tuple[type[Exception], ...] = (TypeError, ImportError)  # protobuf before 5.26
    with contextlib.suppress(ImportError):
        from google.protobuf.runtime_version import VersionError

        misfit = (*misfit, VersionError)
    try:
        from sentencepiece import sentencepiece_model_pb2
    except misfit as error:
        raise UsageError(
            tr("there is no protobuf that fits the installed sentencepiece"),
            found=str(error).splitlines()[0],
            remedy=tr("pip install --upgrade sentencepiece protobuf"),
            topic=Topic.LIBRARIES,
        ) from error
    message: type[ModelProto] = sentencepiece_model_pb2.ModelProto
    return message


def _no_model_error(file: Path) -> FormatError:
    return FormatError(
        tr("this is not a SentencePiece model"),
        file=file,
        expected=tr("a SentencePiece model, such as LLaMA's tokenizer.model"),
        remedy=tr("tokenizer.json and vocabulary lists are other things; fetch the .model file"),
    )


def _require_unique_pieces(model: ModelProto, file: Path) -> None:
    counts = Counter(piece.piece for piece in model.pieces)
    repeated = [piece for piece, count in counts.items() if count > 1]
    if repeated:
        raise FormatError(
            tr("the SentencePiece model holds the same piece more than once"),
            file=file,
            found=tr(
                "{n_repeated} repeated, the first is {repeated!r}",
                n_repeated=len(repeated),
                repeated=repeated[0],
            ),
            remedy=tr("build it again from its parts, for example with merge_tokenizers.py"),
        )
