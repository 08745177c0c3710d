"""What ``convert_hf_to_gguf.py`` would make of a folder as transformers saves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizer_tools.spm import MODEL_NAME

from ..formats import open_container
from ..json_text import read_json
from ..layouts import llama
from ..layouts.config import CONFIG_NAME, LlamaShape, rope_scaling
from ..layouts.huggingface import weight_files
from ..layouts.quantised import FLOATS
from ..lazy import LazyTensor, dtype_name
from .archive import begins_as_zip, open_archive, tensors_in
from .findings import Report
from .vocabulary import check_huggingface_tokens, check_special_ids

CONVERTER = "convert_hf_to_gguf.py"
# Names under which that script knows a LLaMA with its own names of tensors.
_ARCHITECTURES = (["LlamaForCausalLM"], ["LLaMAForCausalLM"])
_SCALINGS = ("linear", "yarn", "llama3", "longrope", "su")


def applies(folder: Path) -> bool:
    """Whether a folder has what transformers saves: weights or ``config.json``."""
    return has_weights(folder) or (folder / CONFIG_NAME).is_file()


def has_weights(folder: Path) -> bool:
    """Whether there are weights under Hugging Face's endings."""
    patterns = ("pytorch_model*.bin", "*.safetensors", "*.index.json")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def check(folder: Path) -> Report:
    """Everything that can be told before the converter runs."""
    report = Report(CONVERTER)
    if not (folder / CONFIG_NAME).is_file():
        report.stops("there is no config.json", file=folder / CONFIG_NAME, found="no such file")
        return report
    with report.collecting():
        config = read_json(folder / CONFIG_NAME)
        shape = LlamaShape.from_config(config, folder / CONFIG_NAME)
        _check_config(folder / CONFIG_NAME, config, report)
        tensors = _tensors(folder, report)
        embeddings = tensors.get(llama.EMBED_TOKENS)
        if tensors:
            _check_tensors(folder, config, shape, tensors, report)
        _check_tokenizer(folder, config, embeddings.rows if embeddings else None, report)
    return report


def _check_config(path: Path, config: Mapping[str, Any], report: Report) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or architectures[:1] not in _ARCHITECTURES:
        report.stops(
            "config.json does not name the architecture",
            file=path,
            expected='"architectures": ["LlamaForCausalLM"]',
            found=architectures,
            remedy="correct config.json",
        )
    scaling = rope_scaling(config) or {}
    if scaling and scaling["type"] not in _SCALINGS:
        report.silent(
            "the scaling of the rotary positions is left out",
            file=path,
            expected=f"one of {', '.join(_SCALINGS)}",
            found=scaling,
            remedy="llama.cpp can scale at run time: --rope-scaling, --rope-scale",
        )


def _tensors(folder: Path, report: Report) -> dict[str, LazyTensor]:
    """The tensors of the files that the converter reads, empty if one cannot be read."""
    indexed = any(True for _ in folder.glob("*.index.json"))
    files: Mapping[Path, tuple[str, ...] | None] = {}
    with report.collecting("stops" if indexed else "silent"):
        files = weight_files(folder)
    stem = "model" if any(path.suffix == ".safetensors" for path in files) else "pytorch_model"
    if strange := [path.name for path in files if not indexed and not path.name.startswith(stem)]:
        report.silent(
            "weights under this name are not read",
            file=folder / strange[0],
            expected="pytorch_model*.bin or model*.safetensors",
            remedy="rename the file",
        )
        return {}
    report.facts["reads"] = ", ".join(path.name for path in files)
    tensors: dict[str, LazyTensor] = {}
    for path, promised in files.items():
        with report.collecting():
            here = _one_file(path, report)
            tensors |= here
            _check_index(path, promised, here, report)
    return tensors if set(files) == {path for path in files if path.is_file()} else {}


def _one_file(path: Path, report: Report) -> dict[str, LazyTensor]:
    if path.suffix == ".bin":
        if not begins_as_zip(path):
            report.stops(
                "the file is in torch's format from before 1.6, which cannot be mapped",
                file=path,
                remedy="load it with torch and save it again, or use convert_checkpoint.py",
            )
        else:
            tensors_in(open_archive(path))
    return open_container(path)


def _check_index(
    path: Path, promised: tuple[str, ...] | None, here: Mapping[str, object], report: Report
) -> None:
    if promised is not None and (wrong := sorted(set(promised) ^ here.keys())):
        report.stops(
            "the index and the weight file name different tensors",
            file=path,
            tensor=wrong[0],
            found=f"{len(wrong)} are only in one of them",
            remedy="take index and weights from one place, or remove the index",
        )


def _check_tensors(
    folder: Path,
    config: Mapping[str, Any],
    shape: LlamaShape,
    tensors: Mapping[str, LazyTensor],
    report: Report,
) -> None:
    entries = {entry.hf: entry for entry in llama.entries(shape)}
    for name, tensor in tensors.items():
        if name not in entries and not llama.is_leftover(name):
            report.stops(
                "a tensor is none of a LLaMA's, or of another layer than config.json describes",
                tensor=tensor.origin,
                expected=f"{len(entries)} tensors",
                remedy="take weights and config.json from one place",
            )
    size = config.get("vocab_size")
    tied = shape.tie_word_embeddings
    for name, entry in entries.items():
        if name == llama.LM_HEAD and tied and name not in tensors:
            continue
        # the embeddings' rows are told with the tokenizer
        rows = tensors[name].rows if name == llama.EMBED_TOKENS and name in tensors else size
        wanted = tuple(rows if part is None else part for part in entry.shape)
        _check_tensor(folder, name, wanted, tensors.get(name), report)


def _check_tensor(
    folder: Path, name: str, wanted: tuple[object, ...], tensor: LazyTensor | None, report: Report
) -> None:
    if tensor is None and name == llama.LM_HEAD:
        sentence = "there is no LM head; llama.cpp takes the embeddings for it"
    else:
        sentence = "a tensor is not what the model needs; llama.cpp refuses the file that comes out"
    if tensor is None or tensor.shape != wanted:
        report.silent(
            sentence,
            file=folder,
            tensor=name,
            expected=f"{wanted}, by config.json",
            found=tensor.shape if tensor else "no such tensor",
            remedy="take weights and config.json from one place",
        )
    elif tensor.dtype not in FLOATS:
        report.silent(
            "the weights are quantised, and their integers are taken for the weights",
            tensor=tensor.origin,
            expected="float16, bfloat16 or float32",
            found=dtype_name(tensor.dtype),
            remedy="take the original model",
        )


def _check_tokenizer(
    folder: Path, config: Mapping[str, Any], rows: int | None, report: Report
) -> None:
    if (folder / MODEL_NAME).is_file():
        check_huggingface_tokens(folder, config, rows, report)
        check_special_ids(folder, config, report)
    elif (folder / "tokenizer.json").is_file():
        report.silent(
            "the tokens are taken from tokenizer.json, without the scores by which llama.cpp "
            "makes tokens",
            file=folder / MODEL_NAME,
            found="no such file",
            remedy="put the model's tokenizer.model into the folder",
        )
    else:
        report.stops(
            "there is no tokenizer",
            file=folder / MODEL_NAME,
            found="no such file",
            remedy="put the model's tokenizer.model into the folder",
        )
