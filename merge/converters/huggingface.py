"""What ``convert_hf_to_gguf.py`` would make of a folder as transformers saves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..formats import open_container
from ..layouts import llama
from ..layouts.config import (
    CONFIG_NAME,
    LLAMA_ARCHITECTURES,
    LlamaShape,
    require_values,
    rope_scaling,
)
from ..layouts.huggingface import GENERATION_CONFIG_NAME, weight_files
from ..layouts.quantised import FLOATS
from ..tensors.lazy import LazyTensor, dtype_name
from ..tokenizers.spm import MODEL_NAME
from ..untrusted.strict_json import read_json
from ..untrusted.value_kinds import (
    CHAT_TEMPLATE,
    GENERATION,
    LENGTH,
    NO_NEGATIVE,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    Kind,
    Kinds,
    optional,
    require,
)
from .archive import begins_as_zip, open_archive, tensors_in
from .findings import Report
from .vocabulary import CONFIG as TOKENIZER_CONFIG
from .vocabulary import check_huggingface_tokens, check_special_ids

CONVERTER = "convert_hf_to_gguf.py"
# Names under which that script knows a LLaMA with its own names of tensors.
_ARCHITECTURES = (*LLAMA_ARCHITECTURES, "MistralForCausalLM", "MixtralForCausalLM")
# What it can store as float32: true goes in as 1.
_FLOAT = Kind("a number", lambda value: isinstance(value, bool) or NUMBER.holds(value))
# What that script reads of each kind of scaling that it knows.
_SCALINGS: dict[str, Kinds] = {
    "linear": {"factor": optional(_FLOAT)},
    "yarn": {
        **dict.fromkeys(
            (
                *("factor", "extrapolation_factor", "attention_factor", "attn_factor"),
                *("beta_fast", "beta_slow"),
            ),
            optional(_FLOAT),
        ),
        "original_max_position_embeddings": LENGTH,
    },
    "llama3": {
        **dict.fromkeys(("factor", "original_max_position_embeddings"), _FLOAT),
        **dict.fromkeys(("low_freq_factor", "high_freq_factor"), POSITIVE),
    },
    "longrope": {},
    "su": {},
}
# What it puts into the file as it is; what is of another kind ends it.
_STORED: Kinds = {
    "max_position_embeddings": optional(LENGTH),
    "rms_norm_eps": optional(_FLOAT),
    "rope_theta": optional(_FLOAT),
    "vocab_size": LENGTH,
    **{
        f"{kind}_token_id": NO_NEGATIVE
        for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    },
}
# Quantised weights that it makes whole.
_DEQUANTISED = ("bitnet", "fp8", "gptq", "compressed-tensors", "modelopt")


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
    if (folder / GENERATION_CONFIG_NAME).is_file():
        _check_sampling(folder / GENERATION_CONFIG_NAME, report)
    return report


def _check_config(path: Path, config: Mapping[str, Any], report: Report) -> None:
    require(config, dict.fromkeys(("rope_scaling", "rope_parameters"), optional(OBJECT)), path)
    named = config.get("architectures")
    if not isinstance(named, list) or not named or named[0] not in _ARCHITECTURES:
        report.stops(
            "config.json does not name the architecture",
            file=path,
            expected='"architectures": ["LlamaForCausalLM"]',
            found=named,
            remedy="correct config.json",
        )
    scaling = rope_scaling(config) or {}
    _check_values(path, config, scaling, report)
    _check_quantisation(path, config, report)
    kind = str(scaling.get("type"))
    lacks_factor = kind in ("linear", "yarn") and scaling.get("factor") is None
    if scaling and (kind not in _SCALINGS or lacks_factor):
        report.silent(
            "the scaling of the rotary positions is left out",
            file=path,
            expected=f"one of {', '.join(_SCALINGS)}, with its factor",
            found=scaling,
            remedy="llama.cpp can scale at run time: --rope-scaling, --rope-scale",
        )


def _check_values(
    path: Path, config: Mapping[str, Any], scaling: Mapping[str, Any], report: Report
) -> None:
    """What the file cannot hold ends the converter; what no model can use goes into the file."""
    before = len(report.findings)
    with report.collecting():
        require(config, _STORED, path)
    with report.collecting():
        require(scaling, {"type": TEXT}, path, "rope_scaling")
        require(scaling, _SCALINGS.get(scaling.get("type", ""), {}), path, "rope_scaling")
    if len(report.findings) == before:
        with report.collecting("silent"):
            require_values(config, path)


def _check_sampling(path: Path, report: Report) -> None:
    generation: Mapping[str, Any] = {}
    with report.collecting("silent"):  # what is no JSON is left out
        generation = read_json(path)
    with report.collecting():
        require(generation, GENERATION, path)


def _check_quantisation(path: Path, config: Mapping[str, Any], report: Report) -> None:
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else said
    if said and method is not None and method not in _DEQUANTISED:
        report.stops(
            "the converter does not know the quantisation that config.json speaks of",
            file=path,
            expected=f'"quant_method": {", ".join(_DEQUANTISED)}, or no "quantization_config"',
            found=said,
            remedy="take the original model; where the weights are whole, convert_checkpoint.py "
            "writes a config.json without it",
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
    biases = _biases(config, entries)
    for name, tensor in tensors.items():
        weight = entries.get(f"{name.removesuffix('.bias')}.weight")
        if name.endswith(".bias") and weight is not None and name not in biases:
            report.silent(
                "a bias that config.json does not speak of goes into the file; transformers "
                "leaves it out",
                tensor=tensor.origin,
                expected='"attention_bias": true, or "mlp_bias": true',
                remedy="take weights and config.json from one place",
            )
        elif name not in entries and name not in biases and not llama.is_rotary_buffer(name):
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
    for name, bias_shape in biases.items():
        _check_tensor(folder, name, bias_shape, tensors.get(name), report)


def _biases(
    config: Mapping[str, Any], entries: Mapping[str, llama.Entry]
) -> dict[str, tuple[int | None, ...]]:
    """The shapes of the biases that ``config.json`` speaks of, by name."""
    parts = {".self_attn.": "attention_bias", ".mlp.": "mlp_bias"}
    spoken_of = tuple(part for part, key in parts.items() if config.get(key))
    return {
        f"{name.removesuffix('weight')}bias": entry.shape[:1]
        for name, entry in entries.items()
        if any(part in name for part in spoken_of)
    }


def _check_tensor(
    folder: Path, name: str, wanted: tuple[object, ...], tensor: LazyTensor | None, report: Report
) -> None:
    if tensor is None and name == llama.LM_HEAD:
        sentence = "there is no LM head; llama.cpp takes the embeddings for it"
    elif tensor is None and name.endswith(".bias"):
        sentence = "a bias that config.json speaks of is not there; llama.cpp does without"
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
    path = folder / TOKENIZER_CONFIG
    said = read_json(path) if path.is_file() else {}
    with report.collecting():
        require(said, CHAT_TEMPLATE, path)
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
