"""What ``examples/convert_legacy_llama.py`` would make of a folder with ``consolidated.00.pth``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import torch

from ..formats.file_tensor import contiguous_strides
from ..formats.torch.names import SavedTensor
from ..layouts import llama
from .archive import Archive, open_archive, tensors_in
from .configuration import Configuration, read_configuration
from .findings import Report
from .vocabulary import check_legacy_tokens

FIRST = "consolidated.00.pth"
CONVERTER = "examples/convert_legacy_llama.py"
# What the converter looks for, in this order; what the second finds counts only without the first.
_SAFETENSORS = ("model-00001-of-*.safetensors", "model.safetensors", "consolidated.safetensors")
_TORCH = (FIRST, "pytorch_model-00001-of-*.bin", "*.pt", "pytorch_model.bin")
_CLASSES = {
    "torch._utils._rebuild_tensor_v2",
    "torch._tensor._rebuild_from_type_v2",
    "torch.BFloat16Storage",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.Tensor",
}
_SKIPPED = re.compile(r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs")
_SPLIT_BY_COLUMNS = re.compile(r"tok_embeddings\..*|.*\.(attention\.wo|feed_forward\.w2)\.weight")

Shards = Mapping[Path, Mapping[str, SavedTensor]]


def check(folder: Path) -> Report:
    """Everything that can be told before the converter runs."""
    report = Report(CONVERTER)
    if not _is_chosen(folder, report):
        return report
    files = _shard_files(folder, report)
    report.facts["reads"] = ", ".join(path.name for path in files)
    shards: dict[Path, dict[str, SavedTensor]] = {}
    for path in files:
        with report.collecting():
            archive = open_archive(path)
            _check_archive(archive, report)
            shards[path] = tensors_in(archive, "model")
    if len(shards) == len(files) and _same_names(shards, report):
        _check_model(folder, shards, report)
    return report


def _is_chosen(folder: Path, report: Report) -> bool:
    """Whether the converter would read ``consolidated.00.pth``, and nothing else is in its way."""
    safetensors = _found(folder, _SAFETENSORS)
    found = safetensors or _found(folder, _TORCH)
    remedy = "keep weights of two kinds in two folders"
    names = ", ".join(sorted(found))
    if len(found) > 1:
        report.stops("several models are in the folder", file=folder, found=names, remedy=remedy)
    elif safetensors:
        report.silent(
            "other weights are read than the .pth files",
            file=folder,
            expected=FIRST,
            found=names,
            remedy=remedy,
        )
    elif found != [FIRST]:
        report.stops(
            "the first file has another name than the converter looks for",
            file=folder,
            expected=FIRST,
            found=names or ", ".join(sorted(path.name for path in folder.glob("*.pth"))),
            remedy="name the files consolidated.00.pth, consolidated.01.pth and on",
        )
    return found == [FIRST]


def _found(folder: Path, patterns: Sequence[str]) -> list[str]:
    return [path.name for pattern in patterns for path in folder.glob(pattern)]


def _shard_files(folder: Path, report: Report) -> list[Path]:
    """The files up to the first gap in their numbers, which is where the converter stops."""
    files: list[Path] = []
    while (path := folder / f"consolidated.{len(files):02}.pth").is_file():
        files.append(path)
    left = sorted(set(folder.glob("consolidated.*.pth")) - set(files))
    if left:
        report.silent(
            "files after a gap in the numbers are not read",
            file=folder / f"consolidated.{len(files):02}.pth",
            found=f"no such file, but {', '.join(path.name for path in left)}",
            remedy="fetch the missing file",
        )
    return files


def _check_archive(archive: Archive, report: Report) -> None:
    unknown = {name for name in archive.classes if name.startswith("torch")} - _CLASSES
    if unknown:
        report.stops(
            "the pickle holds more than plain float tensors",
            file=archive.path,
            expected="tensors of float16, bfloat16 or float32, no parameters",
            found=", ".join(sorted(unknown)),
            remedy="save the state dict, in a float dtype and detached, with torch.save",
        )
    if archive.unchecked:
        report.stops(
            "the archive has no checksums, which the converter's zip reader demands",
            file=archive.path,
            expected="the CRC-32 of every record",
            found=f"0 for {len(archive.unchecked)} records, the first is {archive.unchecked[0]}",
            remedy="load it with torch and save it again, without skip_data",
        )
    for name, tensor in tensors_in(archive, "model").items():
        _check_layout(archive.path, name, tensor, report)


def _check_layout(path: Path, name: str, tensor: SavedTensor, report: Report) -> None:
    """The converter reads ``stride[0] * size[0]`` elements in a row and gives them the shape."""
    read = tensor.strides[0] * tensor.shape[0] if tensor.shape else -1
    by_rows = zip(tensor.shape, tensor.strides, contiguous_strides(tensor.shape), strict=True)
    is_contiguous = all(size == 1 or stride == wanted for size, stride, wanted in by_rows)
    if is_contiguous and read == prod(tensor.shape):
        return
    add = report.silent if read == prod(tensor.shape) else report.stops
    add(
        "the tensor does not lie in the file row by row",
        file=path,
        tensor=name,
        expected="a contiguous tensor with a storage of its own",
        found=f"shape {tuple(tensor.shape)}, strides {tensor.strides}",
        remedy="save tensor.contiguous().clone()",
    )


def _same_names(shards: Shards, report: Report) -> bool:
    """Every name must be in every shard."""
    names = {name for shard in shards.values() for name in shard}
    whole = True
    for path, shard in shards.items():
        if lacking := sorted(names - shard.keys()):
            whole = False
            report.stops(
                "a shard lacks a tensor that another one has",
                file=path,
                tensor=lacking[0],
                found=f"{len(lacking)} of {len(names)} missing",
                remedy="take all files from one place",
            )
    return whole


def _check_model(folder: Path, shards: Shards, report: Report) -> None:
    tensors = _joined(shards, report)
    if "tok_embeddings.weight" not in tensors or "layers.0.attention.wq.weight" not in tensors:
        report.stops(
            "the tensors do not have Meta's names",
            file=folder / FIRST,
            expected="tok_embeddings.weight, layers.0.attention.wq.weight and so on",
            found=next(iter(tensors), "no tensor at all"),
            remedy="convert_checkpoint.py --output_type pth writes them",
        )
        return
    rows = tensors["tok_embeddings.weight"][0]
    found = read_configuration(folder, tensors, report)
    if found is not None:
        report.facts["context"] = f"{found.context} positions ({found.context_reason})"
        _check_shapes(folder, tensors, found, report)
    vocab_size = rows if found is None else found.vocab_size
    check_legacy_tokens(folder, rows if vocab_size is None else vocab_size, report)
    dtype = next(iter(shards.values()))["layers.0.attention.wq.weight"].dtype
    if dtype == torch.bfloat16:
        report.notes.append(
            "bfloat16 becomes float32, twice the size, unless --outtype f16 is said"
        )


def _joined(shards: Shards, report: Report) -> dict[str, tuple[int, ...]]:
    """Shapes of the whole tensors, joined as the converter joins them whatever Meta did."""
    joined = {}
    for name, first in next(iter(shards.values())).items():
        parts = [shard[name] for shard in shards.values()]
        shape = list(first.shape)
        if len(parts) > 1 and len(first.shape) > 1:
            axis = 1 if _SPLIT_BY_COLUMNS.fullmatch(name) else 0
            shape[axis] = sum(part.shape[axis] for part in parts)
            rest = {part.shape[1 - axis] for part in parts}
            if len(rest) > 1 or len({part.dtype for part in parts}) > 1:
                report.stops(
                    "the parts of a tensor do not fit together",
                    tensor=name,
                    found="; ".join(f"{tuple(p.shape)} {p.dtype}" for p in parts),
                    remedy="take all files from one place",
                )
        joined[name] = tuple(shape)
    return joined


def _check_shapes(
    folder: Path, tensors: Mapping[str, tuple[int, ...]], found: Configuration, report: Report
) -> None:
    """Names must be the table's; shapes are written unseen, and llama.cpp refuses wrong ones."""
    described = folder / found.name
    entries = {entry.meta: entry for entry in llama.entries(found.shape)}
    for name in tensors:
        if name not in entries and not _SKIPPED.fullmatch(name):
            report.stops(
                "a tensor is none of this model's",
                file=described,
                tensor=name,
                expected=f"{len(entries)} tensors, as {found.name} describes the model",
                remedy=f"{found.name} is another model's, or the model is no LLaMA",
            )
    rows = tensors["tok_embeddings.weight"][0] if found.vocab_size is None else found.vocab_size
    for name, entry in entries.items():
        wanted = tuple(rows if size is None else size for size in entry.shape)
        if tensors.get(name) != wanted:
            report.silent(
                "a tensor is not what the model needs; llama.cpp refuses the file that comes out",
                file=described,
                tensor=name,
                expected=f"{wanted}, by {found.name}",
                found=tensors.get(name, "no such tensor"),
                remedy="take all files from one place",
            )


def applies(folder: Path) -> bool:
    """Whether a folder has weights in Meta's files."""
    return any(True for _ in folder.glob("*.pth"))
