"""The importance matrix that a GGUF file is quantized with, held against the model's matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...errors import LayoutError, UsageError
from ...formats.imatrix import Imatrix, iter_misfits, read_imatrix
from ...messages import tr
from ...tensors.lazy import LazyTensor
from ...user_paths import expand_user
from .names import StoredTensor

# Longer texts are cut off, as by llama-quantize.
_LONGEST_TEXT = 127


@dataclass(frozen=True)
class Importance:
    """Factors for the columns of matrices (float32), by Hugging Face name; none without a file.

    ``keys`` are what the GGUF file says about it, in llama-quantize's order.
    """

    factors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    keys: Mapping[str, int | str] = field(default_factory=dict)
    path: Path | None = None


def read_importance(
    path: str | Path | None, tensors: Mapping[str, LazyTensor], stored: Iterable[StoredTensor]
) -> Importance:
    """Read the file; ``stored`` says which of ``tensors`` GGUF's are made of.

    Raises ``UsageError`` where there is no such file, ``FormatError`` where it is another kind of
    file, ``LayoutError`` where it is one of another model.
    """
    if path is None:
        return Importance()
    file = expand_user(path)
    if "\0" in str(file) or not file.is_file():
        raise UsageError(
            tr("the importance matrix does not exist"),
            file=file,
            remedy=tr("give the path of a file"),
        )
    found = read_imatrix(file)
    matrices = {}
    for item in stored:
        parts = [part for part in item.parts if part in tensors and len(tensors[part].shape) > 1]
        if parts:
            matrices[item.name] = parts
    columns = {
        name: sum(tensors[part].shape[-1] for part in parts) for name, parts in matrices.items()
    }
    _require_same_model(found, columns)
    factors: dict[str, torch.Tensor] = {}
    for name, parts in matrices.items():
        if len(found.factors.get(name, ())) == columns[name]:
            # One expert after the other, as in the file.
            factors |= dict(zip(parts, found.factors[name].view(len(parts), -1), strict=True))
    return Importance(factors, _list_keys(found), file)


def _require_same_model(imatrix: Imatrix, columns: Mapping[str, int]) -> None:
    misfits = list(iter_misfits(imatrix, columns))
    if not misfits:
        return
    name, expected, found = misfits[0]
    matrices = tr("{n_columns} matrices", n_columns=len(columns))
    raise LayoutError(
        tr("the importance matrix is one of another model"),
        file=imatrix.path,
        tensor=name,
        expected=tr("no such matrix; the model has {matrices}", matrices=matrices)
        if expected is None
        else tr("{expected} factors, one for each column", expected=expected),
        found=(tr("{found} factors", found=found) if found else tr("none"))
        + tr("; {n_misfits} matrices do not fit", n_misfits=len(misfits)),
        remedy=tr("make one of this model, with llama-imatrix on its GGUF file in f16"),
    )


def _list_keys(imatrix: Imatrix) -> dict[str, int | str]:
    keys: dict[str, int | str] = {"quantize.imatrix.file": _shorten(imatrix.path.name)}
    if imatrix.dataset:
        keys["quantize.imatrix.dataset"] = _shorten(imatrix.dataset)
    keys["quantize.imatrix.entries_count"] = len(imatrix.factors)
    if imatrix.chunks > 0:
        keys["quantize.imatrix.chunks_count"] = imatrix.chunks
    return keys


def _shorten(text: str) -> str:
    return text.encode("utf-8", "replace")[:_LONGEST_TEXT].decode("utf-8", "ignore")
