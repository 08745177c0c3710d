"""One tokenizer, opened by SentencePiece or by transformers, behind one interface."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.checksums import known_tokenizers as known
from merge.errors import FormatError, UsageError
from merge.tokenizers import sentencepiece_model as spm
from merge.tokenizers.file_names import MODEL_NAME

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class BackendTokenizer:
    """What a comparison needs to know of a tokenizer.

    ``encode`` takes lines and returns their ids without bos and eos. ``pieces`` are indexed by id.
    ``known_as`` is the published tokenizer whose bytes these are.
    """

    name: str
    library: str
    path: Path
    known_as: str | None
    pieces: Sequence[str]
    fallback_ids: frozenset[int]
    unknown_ids: frozenset[int]
    encode: Callable[[list[str]], list[list[int]]]


def open_sentencepiece(path: Path, name: str) -> BackendTokenizer:
    """Open a SentencePiece model, or a folder's ``tokenizer.model``, with SentencePiece."""
    processor = spm.load_processor(spm.serialize_model(spm.read_model(path)))
    pieces = spm.list_pieces(processor)
    return BackendTokenizer(
        name=name,
        library="sentencepiece",
        path=path,
        known_as=_recognize(path),
        pieces=pieces,
        fallback_ids=frozenset(i for i in range(len(pieces)) if processor.is_byte(i)),
        unknown_ids=frozenset({processor.unk_id()}),
        encode=processor.encode,
    )


def open_transformers(path: Path, name: str, trust_remote_code: bool = False) -> BackendTokenizer:
    """Open the same with ``AutoTokenizer``; a file alone as ``LlamaTokenizer``.

    ``trust_remote_code`` runs the class that the folder brings along, which is code.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "transformers is not installed", found=error, remedy="pip install transformers"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    loaded = _load(transformers.AutoTokenizer, path, trust_remote_code)
    pieces = loaded.convert_ids_to_tokens(list(range(len(loaded))))
    unknown = loaded.unk_token_id
    return BackendTokenizer(
        name=f"{name} (transformers)",
        library=f"transformers {transformers.__version__}",
        path=path,
        known_as=_recognize(path),
        pieces=pieces,
        fallback_ids=frozenset(i for i, p in enumerate(pieces) if _BYTE_PIECE.fullmatch(p or "")),
        unknown_ids=frozenset() if unknown is None else frozenset({unknown}),
        encode=lambda lines: loaded(lines, add_special_tokens=False)["input_ids"],
    )


def shorten_names(paths: Sequence[Path]) -> list[str]:
    """Return a short and different name for each path: as few of its last parts as will do.

    >>> shorten_names([Path("a/x/tokenizer.model"), Path("b/x"), Path("c/new.model")])
    ['a/x', 'b/x', 'new']
    """
    parts = [_select_naming_parts(path) for path in paths]
    result = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(p[-length:] == mine[-length:] for p in parts) > 1:
            length += 1
        result.append("/".join(mine[-length:]))
    return [n if result.count(n) == 1 else f"{n} #{i}" for i, n in enumerate(result, 1)]


def _select_naming_parts(path: Path) -> tuple[str, ...]:
    if path.name == MODEL_NAME:
        path = path.absolute().parent if len(path.parts) == 1 else path.parent
    elif path.suffix == ".model":
        path = path.with_suffix("")
    return path.absolute().parts[1:] if path.name in {"", ".", ".."} else path.parts


def _load(auto: Any, path: Path, trust_remote_code: bool) -> Any:
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        if path.is_dir():
            return auto.from_pretrained(str(path), **options)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / MODEL_NAME).write_bytes(path.read_bytes())
            config = json.dumps({"tokenizer_class": "LlamaTokenizer"})
            (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
            return auto.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(
            "transformers cannot load this tokenizer",
            file=path,
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="a folder needs tokenizer_config.json; or name its tokenizer.model",
        ) from error


def _recognize(path: Path) -> str | None:
    found = known.recognize_file(spm.find_model_file(path))
    return found.name if found else None
