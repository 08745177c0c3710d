"""The Hugging Face folder: found and read as a checkpoint, and the shards of a merged one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory

from ..errors import LayoutError
from ..formats import open_container
from ..messages import join, tr
from ..storage.folder import Folder
from ..storage.offload import Offload
from ..tensors.lazy import Checkpoint, LazyTensor
from ..untrusted.strict_json import dump_json
from . import decoder, llama
from .config import (
    CONFIG_NAME,
    EXTENDED_MODEL_TYPES,
    LLAMA_MODEL_TYPES,
    LlamaShape,
    is_llama,
    require_decoder,
    require_no_biases,
    require_values,
)
from .elsewhere import find_unsupported_format, suggest_for_names
from .model_folder import ModelFolder
from .names import strip_wrappers
from .placement import Piece, PlacedTensor
from .quantized import is_quantized, require_unquantized

# What transformers calls the weights, by the container's ending.
STEMS = {".bin": "pytorch_model", ".safetensors": "model"}

# No separator, drive or "..": nothing that leads out of the folder.
_PLAIN_NAME = re.compile(r"[^/\\:\0.][^/\\:\0]{0,200}")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
# What training scripts leave beside the weights under the same endings.
_NO_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|adapter_model|trainer|value_head)"
)


def open_base(
    folder: ModelFolder,
    offload: Offload | None = None,
    with_extra: bool = False,
    any_decoder: bool = False,
) -> Checkpoint:
    """Open a folder as transformers saves it; every tensor of the model is there, or it is refused.

    Weights are found by the index when there is one, else by listing. safetensors are taken before
    ``.bin``, as transformers does. Rotary buffers of old conversions are dropped. Tensors that a
    LLaMA does not have are refused, or with ``with_extra`` kept apart. With ``any_decoder`` a model
    that is no LLaMA is opened too, as ``decoder.py`` says. Raises ``LayoutError`` and
    ``FormatError``.
    """
    config, path = folder.config, folder.path
    if any_decoder and not is_llama(config):
        require_decoder(config, path / CONFIG_NAME)
        files = find_weight_files(folder)
        tensors = strip_wrappers(path, collect_tensors(files, offload))
        return _open_decoder(path, config, files, tensors)
    known = EXTENDED_MODEL_TYPES if with_extra else LLAMA_MODEL_TYPES
    shape = LlamaShape.from_config(config, path / CONFIG_NAME, known)
    require_values(config, path / CONFIG_NAME)
    require_no_biases(config, path / CONFIG_NAME)
    files = find_weight_files(folder)
    tensors = strip_wrappers(path, collect_tensors(files, offload))
    if any_decoder and any(name in tensors for name in decoder.OTHER_HEADS):
        return _open_decoder(path, config, files, tensors)
    dropped = tuple(name for name in tensors if llama.is_rotary_buffer(name))
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    extra = _take_extra(kept, shape) if with_extra else {}
    tensors = _check_and_order(path, shape, kept, files, config.get("vocab_size"))
    return Checkpoint(tensors, config, tuple(files), dropped, extra=extra)


def _open_decoder(
    folder: Path,
    config: Mapping[str, Any],
    files: Mapping[Path, object],
    tensors: Mapping[str, LazyTensor],
) -> Checkpoint:
    dropped = tuple(name for name, tensor in tensors.items() if decoder.is_buffer(name, tensor))
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    config = decoder.validate_decoder_config(folder, config, kept)
    return Checkpoint(kept, config, tuple(files), dropped)


def _take_extra(tensors: dict[str, LazyTensor], shape: LlamaShape) -> dict[str, LazyTensor]:
    """Remove and return what the table does not have; a quantization's helpers stay, as mistakes.

    A bias or the like in a decoder layer stays too: it would change what the layer computes.
    """
    known = {entry.hf for entry in llama.entries(shape)}
    layers = "model.layers."
    extra = [n for n in tensors if n not in known and not n.startswith(layers)]
    return {name: tensors.pop(name) for name in extra if not is_quantized(name)}


def find_weight_files(folder: Folder) -> dict[Path, tuple[str, ...] | None]:
    """The weight files of a folder, each with the names that the index promises in it.

    Raises ``LayoutError`` when there are none or a numbered one is missing.
    """
    for suffix in (".safetensors", ".bin"):
        indexes = folder.matching(f"*{suffix}.index.json")
        if len(indexes) > 1:
            raise LayoutError(
                tr("the folder has two indexes of weights"),
                file=folder.path,
                found=join(tr(" and "), (path.name for path in indexes)),
                remedy=tr("keep the one that belongs to the weights"),
            )
        if indexes:
            return _read_index(folder, indexes[0])
        found = [p for p in folder.matching(f"*{suffix}") if not _NO_WEIGHTS.match(p.name)]
        if found:
            _require_all_numbers(folder.path, found)
            return dict.fromkeys(found)
    if (kind := find_unsupported_format(folder.path)) is not None:
        raise LayoutError(
            tr("the folder holds weights in a form that is not read here"),
            file=folder.path,
            expected=tr("pytorch_model*.bin or model*.safetensors"),
            found=kind.what,
            remedy=kind.remedy,
        )
    raise LayoutError(
        tr("the folder holds no weights"),
        file=folder.path,
        expected=tr("pytorch_model*.bin or model*.safetensors"),
        found=", ".join(list(folder.entries)[:8]) or tr("an empty folder"),
        remedy=tr("download the weights into this folder, or give the folder that has them"),
    )


def _read_index(folder: Folder, index: Path) -> dict[Path, tuple[str, ...] | None]:
    weight_map = folder.read_json(index.name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LayoutError(
            tr("the index names no weights"),
            file=index,
            expected=tr('"weight_map": {name: file}'),
            remedy=tr("fetch the index again, or remove it: the folder is then read as it is"),
        )
    names: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
            raise LayoutError(
                tr("the index names a file that cannot be in the folder"),
                file=index,
                tensor=name,
                expected=tr("the name of a file beside the index"),
                found=repr(file),
                remedy=tr("an index of weights never needs that: get the model from elsewhere"),
            )
        names.setdefault(folder.path / file, []).append(name)
    missing = sorted(path.name for path in names if path.name not in folder.files)
    if missing:
        _refuse_missing(folder.path, missing, len(names))
    return {path: tuple(here) for path, here in names.items()}


def _require_all_numbers(folder: Path, files: Iterable[Path]) -> None:
    """Without an index, numbered shards must have no gap up to their number (0 or 1 based)."""
    present = {path.name for path in files}
    match = next(filter(None, (_NUMBERED.fullmatch(path.name) for path in files)), None)
    if match is None:
        return
    count, stem, suffix = int(match["count"]), match["stem"], match["suffix"]
    names = [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(count + 1)]
    expected = names[:-1] if names[0] in present else names[1:]
    if missing := [name for name in expected if name not in present]:
        _refuse_missing(folder, missing, count)


def _refuse_missing(folder: Path, missing: list[str], count: int) -> None:
    raise LayoutError(
        tr("a part of the base model's weights is missing"),
        file=folder / missing[0],
        expected=tr("{count} weight files", count=count),
        found=tr(
            "{n_missing} missing: {missing}", n_missing=len(missing), missing=", ".join(missing[:5])
        ),
        remedy=tr("download the missing files into this folder"),
    )


def collect_tensors(
    files: Mapping[Path, tuple[str, ...] | None], offload: Offload | None
) -> dict[str, LazyTensor]:
    """Every tensor of the files, each of which must hold what the index promises in it."""
    tensors: dict[str, LazyTensor] = {}
    for path, promised in files.items():
        here = open_container(path, offload)
        for name in promised or ():
            if name not in here:
                raise LayoutError(
                    tr("the index names a tensor that its file does not hold"),
                    file=path,
                    tensor=name,
                    remedy=tr("index and weights are from different downloads: fetch both again"),
                )
        for name, tensor in here.items():
            if name in tensors and not llama.is_rotary_buffer(name):
                raise LayoutError(
                    tr("two weight files hold the same tensor"),
                    file=path,
                    tensor=name,
                    found=tr("also in {origin}", origin=tensors[name].origin),
                    remedy=tr("remove the files that do not belong to this model"),
                )
            tensors[name] = tensor
    return tensors


def _check_and_order(
    folder: Path,
    shape: LlamaShape,
    tensors: dict[str, LazyTensor],
    files: Mapping[Path, object],
    vocab_size: object,
) -> dict[str, LazyTensor]:
    """Check names, shapes and dtypes against the table; return the tensors in its order."""
    expected = {entry.hf: entry for entry in llama.entries(shape)}
    for name in tensors:
        if name not in expected:
            require_unquantized(folder, name, tensors[name])
            raise _explain_unexpected(folder, name, tensors[name])
    if shape.tie_word_embeddings and llama.LM_HEAD not in tensors:
        del expected[llama.LM_HEAD]
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise LayoutError(
            tr("the base model's weights are incomplete"),
            file=folder,
            tensor=missing[0],
            expected=tr(
                "{n_expected} tensors, as config.json describes the model", n_expected=len(expected)
            ),
            found=tr(
                "{n_missing} of them missing in {n_files} weight files",
                n_missing=len(missing),
                n_files=len(files),
            ),
            remedy=tr("a weight file is missing, or config.json is another model's"),
        )
    rows = tensors[llama.EMBED_TOKENS].rows
    head = tensors.get(llama.LM_HEAD)
    columns = tensors[llama.EMBED_TOKENS].shape[1:]
    if head is not None and columns and head.shape[1:] == columns and head.rows != rows:
        raise LayoutError(
            tr("embeddings and LM head have different numbers of rows"),
            file=folder,
            tensor=f"{llama.EMBED_TOKENS}, {llama.LM_HEAD}",
            expected=tr(
                "equal numbers; config.json says vocab_size {vocab_size}", vocab_size=vocab_size
            ),
            found=tr(
                "{rows} rows in {origin}, {rows_2} in {origin_2}",
                rows=rows,
                origin=tensors[llama.EMBED_TOKENS].origin,
                rows_2=head.rows,
                origin_2=head.origin,
            ),
            remedy=tr(
                "a weight file is from another version of the model: take all from one place"
            ),
        )
    for name, entry in expected.items():
        _check_tensor(folder, name, tensors[name], entry.complete_shape(rows))
    return {name: tensors[name] for name in expected}


def _explain_unexpected(folder: Path, name: str, tensor: LazyTensor) -> LayoutError:
    return LayoutError(
        tr("the base model holds a tensor that a LLaMA does not have"),
        file=folder,
        tensor=tensor.origin,
        expected=tr("the tensors that config.json describes"),
        found=tr("{name}, shape {shape}", name=name, shape=tensor.shape),
        remedy=suggest_for_names([name])
        or tr("another architecture, or another model's file in this folder"),
    )


def _check_tensor(folder: Path, name: str, tensor: LazyTensor, wanted: tuple[int, ...]) -> None:
    require_unquantized(folder, name, tensor)
    if tensor.shape != wanted:
        raise LayoutError(
            tr("a tensor of the base model has another shape than config.json says"),
            file=folder,
            tensor=tensor.origin,
            expected=wanted,
            found=tensor.shape,
            remedy=tr("config.json and weights are of different models: take both from one place"),
        )


def place_tensors(
    tensors: Mapping[str, LazyTensor], suffix: str, max_shard_size: int
) -> list[PlacedTensor]:
    """Distribute tensors over numbered shards, by huggingface_hub's own rule of sizes."""
    plan = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=STEMS[suffix] + "{suffix}" + suffix,
        max_shard_size=max_shard_size,
    )
    count = len(plan.filename_to_tensors)
    files = {
        name: f"{STEMS[suffix]}-{number:05}-of-{count:05}{suffix}"
        for number, names in enumerate(plan.filename_to_tensors.values(), start=1)
        for name in names
    }
    return [
        PlacedTensor(name, tensor, (Piece(files[name], name, None, 0, 0),))
        for name, tensor in tensors.items()
    ]


def build_index(placed: Iterable[PlacedTensor], suffix: str) -> dict[str, bytes]:
    """The index beside the shards: where each tensor is, and the bytes of all."""
    weight_map = {item.pieces[0].name: item.pieces[0].file for item in placed}
    total = sum(item.tensor.nbytes for item in placed)
    index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return {f"{STEMS[suffix]}{suffix}.index.json": dump_json(index)}
