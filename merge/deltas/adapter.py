"""A PEFT adapter folder: every key of its weights is claimed, or the merge stops naming it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..checksums.adapter_order import could_be_published
from ..checksums.file_digests import get_file_digest
from ..checksums.known_files import identify_adapter
from ..errors import AdapterError
from ..formats import open_container
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..storage.offload import Offload
from ..tensors.lazy import LazyTensor, get_dtype_name
from ..tensors.patched import Patch
from .adapter_config import WEIGHT_NAMES, AdapterConfig, AdapterFolder
from .adapter_files import (
    EXTRA_EMBEDDINGS,
    FSDP_NAME,
    MLX_NAME,
    TRAINABLE_PARAMS,
    AdapterFiles,
    find_files,
)
from .conflicts import require_no_collisions
from .keys import Claims, claim, normalize_key
from .patches import AddedVector, DoraRowScale, LowRank, ReplacedRows
from .saved_modules import Copies, whole_tensors

# What a Trainer's checkpoint calls the same; taken when adapter_config.json lies beside it.
_RAW_NAMES = ("model.safetensors", "pytorch_model.bin")
# Halves that must come together.
_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to a base: whole tensors ``replaced``, then patches ``added``.

    Keys are the base's tensor names. ``trained`` are the replaced ones that the training changed;
    the others are the base's own copy. ``ignored`` are keys that were claimed and left aside.
    ``copies`` are what ``require_equal_copies`` has to compare before anything is written;
    ``renamed`` says how its names were made the base's, where they were not. ``new_rows`` follow
    the base's rows of the vocabulary before anything is added.
    """

    folder: AdapterFolder
    files: AdapterFiles
    config: AdapterConfig
    added: Mapping[str, tuple[Patch, ...]]
    replaced: Mapping[str, LazyTensor]
    trained: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    copies: Copies = field(default_factory=dict)
    renamed: str = ""
    new_rows: Mapping[str, LazyTensor] = field(default_factory=dict)

    @cached_property
    def changes_nothing(self) -> bool:
        """Whether merging it would leave the base as it is: every ``lora_B`` zero."""
        patches = [patch for stage in self.added.values() for patch in stage]
        return not self.replaced and all(
            isinstance(patch, LowRank) and not (_has_values(patch.b) and _has_values(patch.a))
            for patch in patches
        )

    @property
    def low_rank(self) -> dict[str, LowRank]:
        """The product that is added to each tensor that gets one."""
        return {
            name: patch
            for name, stage in self.added.items()
            for patch in stage
            if isinstance(patch, LowRank)
        }

    @property
    def weights(self) -> Path:
        """The file with the adapter's tensors."""
        return self.files.weights

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weight file."""
        return get_file_digest(self.weights)

    @property
    def published(self) -> str | None:
        """The name under which it was published. Only what may have one is read for its digest."""
        columns = next((tensor.shape[-1] for tensor in self.replaced.values()), None)
        if self.weights.suffix != ".bin" or columns is None or not could_be_published(columns):
            return None
        return identify_adapter(self.digest)

    @property
    def name(self) -> str:
        """The folder's name, by which messages speak of the adapter."""
        return self.folder.path.name or str(self.folder.path)


def _has_values(tensor: LazyTensor) -> bool:
    return bool(tensor.read().any())


def open_adapter(
    folder: AdapterFolder,
    offload: Offload | None = None,
    weight: float = 1.0,
    ignore_file: Collection[str] = (),
) -> Adapter:
    """Read an adapter's configuration and headers; its weights stay in the file.

    ``weight`` multiplies what is added; ``ignore_file`` names weight files that may be left out.
    Raises ``AdapterError`` for kinds that are not handled, files and keys that nothing claims,
    parts that contradict each other, halves without the other half, shapes that contradict the
    configuration, and empty adapters.
    """
    config = replace(folder.adapter_config, weight=weight)
    files = find_files(folder, (WEIGHT_NAMES, _RAW_NAMES, (FSDP_NAME,), (MLX_NAME,)), ignore_file)
    path = files.weights
    tensors = _open_tensors(files, offload)
    _require_not_empty(path, tensors)
    copies = _pair_duplicates(files, tensors, offload)
    trained = _read_trainable_params(files, offload)
    for name, tensor in trained.items():
        key = next((key for key in tensors if normalize_key(key) == name), None)
        if key is None:
            tensors = {**tensors, name: tensor}
        else:
            copies[f"{name} of {TRAINABLE_PARAMS} and {key}"] = (tensor, tensors[key])
    claims = claim(path, tensors)
    _require_no_delta(path, claims)
    require_no_collisions(path, config, claims)
    config = config.with_resolved_rule(_collect_ranks(claims))
    replaced, by_training, unused, pairs = whole_tensors(path, config, claims)
    return Adapter(
        folder,
        files,
        config,
        _build_patches(path, config, claims),
        replaced,
        by_training | (trained.keys() & replaced.keys()),
        unused,
        {**pairs, **copies},
        new_rows=_read_new_rows(files.new_rows, offload),
    )


def _open_tensors(files: AdapterFiles, offload: Offload | None) -> dict[str, LazyTensor]:
    """The tensors of all files, under PEFT's names. Raises ``AdapterError`` for one in two."""
    tensors: dict[str, LazyTensor] = {}
    for path in files.parts or (files.weights,):
        for key, tensor in open_container(path, offload).items():
            if key in tensors:
                raise AdapterError(
                    "two files of the adapter hold the same tensor",
                    file=path,
                    tensor=key,
                    found=f"also in {tensors[key].origin}",
                    remedy="fetch the adapter again",
                )
            tensors[key] = tensor
    return _rename_mlx(tensors) if files.weights.name == MLX_NAME else tensors


def _rename_mlx(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """mlx-lm's ``lora_a`` (in, r) and ``lora_b`` (r, out) are PEFT's matrices, transposed."""
    renamed = {}
    for key, tensor in tensors.items():
        module, _, part = key.rpartition(".")
        is_matrix = part in ("lora_a", "lora_b") and len(tensor.shape) == 2
        name = f"{module}.lora_{part[-1].upper()}.weight" if is_matrix else key
        renamed[name] = tensor.transposed() if is_matrix else tensor
    return renamed


def _pair_duplicates(
    files: AdapterFiles, tensors: Mapping[str, LazyTensor], offload: Offload | None
) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Pairs that must be equal where the adapter lies there in both containers; PEFT takes
    safetensors.
    """
    if files.duplicate is None:
        return {}
    others = open_container(files.duplicate, offload)
    names = f"{files.weights.name} and {files.duplicate.name}"
    if tensors.keys() != others.keys():
        lonely = sorted(tensors.keys() ^ others.keys())
        raise AdapterError(
            "the folder holds the adapter twice, and the two differ",
            file=files.weights.parent,
            tensor=lonely[0],
            expected=f"the same tensors in {names}",
            found=f"{len(lonely)} in one of them alone",
            remedy="keep the file that is meant, move the other away",
        )
    return {f"{key} in {names}": (tensors[key], others[key]) for key in tensors}


def _read_new_rows(path: Path | None, offload: Offload | None) -> dict[str, LazyTensor]:
    """Rows of added tokens under the names of embeddings and LM head.

    vLLM's file has both by names of its own; Open-Assistant's is the embeddings' rows alone.
    Raises ``AdapterError`` for anything else.
    """
    if path is None:
        return {}
    if path.name == EXTRA_EMBEDDINGS:
        found = open_container(path, offload, alone=EMBED_TOKENS)
        names = dict.fromkeys(found, EMBED_TOKENS)
    else:
        found = open_container(path, offload)
        names = {"input_embeddings": EMBED_TOKENS, "output_embeddings": LM_HEAD}
    rows = {names[key]: tensor for key, tensor in found.items() if key in names}
    shapes = {tensor.shape for tensor in rows.values()}
    if not rows or len(rows) != len(found) or len(shapes) != 1 or len(*shapes) != 2:
        raise AdapterError(
            "the rows of added tokens are not what such a file holds",
            file=path,
            expected="matrices of the same rows: " + ", ".join(names),
            found=", ".join(f"{key} {tuple(t.shape)}" for key, t in found.items())[:200],
            remedy="fetch the adapter again, or save it with PEFT's save_embedding_layers=True",
        )
    return rows


def _read_trainable_params(files: AdapterFiles, offload: Offload | None) -> dict[str, LazyTensor]:
    """LongLoRA's trained tensors under the base's names, which replace the base's."""
    if files.trainable_params is None:
        return {}
    found = open_container(files.trainable_params, offload)
    _require_not_empty(files.trainable_params, found)
    return {normalize_key(key): tensor for key, tensor in found.items()}


def _collect_ranks(claims: Claims) -> dict[str, int]:
    """The rank of each module by its lora_A."""
    both = claims.parts["lora_A"] | claims.parts["lora_embedding_A"]
    return {module: a.shape[0] for module, a in both.items() if a.shape}


def _require_not_empty(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    if not tensors:
        raise AdapterError(
            "the adapter is empty: the training script saved it wrongly",
            file=path,
            expected="LoRA matrices",
            found=f"no tensor at all ({path.stat().st_size} bytes)",
            remedy="the script replaced model.state_dict and then called save_pretrained, which "
            "filtered the adapter's tensors away twice; save again from a training checkpoint",
        )
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            raise AdapterError(
                "a tensor of the adapter has no elements: the training run saved it wrongly",
                file=path,
                tensor=name,
                expected="a whole tensor",
                found=f"shape {tuple(tensor.shape)}",
                remedy="DeepSpeed ZeRO-3 keeps tensors in parts; gather them when saving "
                "(stage3_gather_16bit_weights_on_model_save) or run zero_to_fp32.py",
            )
        if not tensor.dtype.is_floating_point:
            raise AdapterError(
                "a tensor of the adapter is quantised",
                file=path,
                tensor=name,
                expected="float16, bfloat16 or float32",
                found=get_dtype_name(tensor.dtype),
                remedy="save the adapter in floating point",
            )


def _require_no_delta(path: Path, claims: Claims) -> None:
    """A whole model under an adapter's name has no part of an adapter in it."""
    delta_parts = ("lora_A", "lora_embedding_A", "trainable_tokens_delta", "modules_to_save")
    raw = path.name in _RAW_NAMES
    if raw and not any(claims.parts[part] for part in delta_parts):
        raise AdapterError(
            "the folder holds a whole model beside adapter_config.json, and no adapter",
            file=path,
            expected="lora_A and lora_B among its tensors, or " + " or ".join(WEIGHT_NAMES),
            found=f"{len(claims.parts['plain'])} whole tensors",
            remedy="give the folder into which PEFT saved the adapter",
        )


def _build_patches(
    path: Path, config: AdapterConfig, claims: Claims
) -> dict[str, tuple[Patch, ...]]:
    """What is added to each tensor: product and then magnitude, or rows."""
    _require_pairs(path, claims)
    _require_declared(path, config, claims)
    parts = claims.parts
    stages: dict[str, tuple[Patch, ...]] = {}
    for module, a in parts["lora_A"].items():
        low_rank = _build_low_rank(path, config, module, a, parts["lora_B"][module])
        stages[f"{module}.weight"] = (low_rank, *_build_row_scale(path, claims, module, low_rank))
    for module, a in parts["lora_embedding_A"].items():
        low_rank = _build_low_rank(path, config, module, a, parts["lora_embedding_B"][module])
        stage: Iterable[Patch] = (low_rank, *_build_row_scale(path, claims, module, low_rank))
        stages[f"{module}.weight"] = tuple(patch.transposed() for patch in stage)
    for module, bias in parts["lora_bias"].items():
        stages[f"{module}.bias"] = (AddedVector(bias, config.scaling(module)),)
    for module, rows in parts["trainable_tokens_delta"].items():
        stages[f"{module}.weight"] = (_build_token_rows(path, config, module, rows),)
    return stages


def _require_pairs(path: Path, claims: Claims) -> None:
    for one, other in _PAIRS:
        lonely = sorted(claims.parts[one].keys() ^ claims.parts[other].keys())
        if not lonely:
            continue
        has, lacks = (one, other) if lonely[0] in claims.parts[one] else (other, one)
        end = "" if "embedding" in lacks else ".weight"
        total = len(claims.parts[one].keys() | claims.parts[other].keys())
        raise AdapterError(
            f"the adapter has {has} of a module without its {lacks}",
            file=path,
            tensor=f"{lonely[0]}.{lacks}{end}",
            expected=f"both halves of {total} modules",
            found=f"{len(lonely)} with one half only",
            remedy="the file is incomplete: save or fetch the adapter again",
        )


def _require_declared(path: Path, config: AdapterConfig, claims: Claims) -> None:
    """Weights and configuration must agree on which kinds there are."""
    lora = claims.parts["lora_A"].keys() | claims.parts["lora_embedding_A"].keys()
    told = {
        "lora_magnitude_vector": ("use_dora", config.use_dora, lora),
        "lora_bias": ("lora_bias", config.lora_bias, claims.parts["lora_A"].keys()),
        "trainable_tokens_delta": (
            "trainable_token_indices",
            bool(config.trainable_token_indices),
            claims.parts["trainable_tokens_delta"].keys() or {""},
        ),
    }
    for part, (detected_by, is_told, modules) in told.items():
        present = claims.parts[part].keys()
        wrong = sorted(present ^ modules if is_told else present)
        if wrong:
            raise AdapterError(
                f"the adapter's weights and its configuration do not agree about {part}",
                file=path,
                tensor=f"{wrong[0]}.{part}" if wrong[0] else part,
                expected=f'as "{detected_by}" in {config.path.name} says',
                found=f"{part} of {len(present)} modules, {detected_by} "
                + ("set" if is_told else "not set"),
                remedy="weights and adapter_config.json are from different runs, or the file is "
                "incomplete: take both from one place",
            )


def _build_low_rank(
    path: Path, config: AdapterConfig, module: str, a: LazyTensor, b: LazyTensor
) -> LowRank:
    rank = config.rank(module)
    if len(a.shape) == 2 and len(b.shape) == 2:
        _require_not_sliced(path, module, a, b, rank)
    if len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        raise AdapterError(
            "the adapter's matrices and its configuration give different ranks",
            file=path,
            tensor=f"{module}.lora_A.weight",
            expected=f"lora_A ({rank}, in) and lora_B (out, {rank}), by {config.path.name}",
            found=f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}",
            remedy="the adapter_config.json is from another run: take the one saved with these "
            "weights, since the scaling comes from it",
        )
    return LowRank(a, b, config.scaling(module))


def _require_not_sliced(path: Path, module: str, a: LazyTensor, b: LazyTensor, rank: int) -> None:
    """FSDP gives each process equal slices of rows; one process's are no adapter."""
    if 0 < a.shape[0] < rank and rank % a.shape[0] == 0 and b.shape[1] == rank:
        raise AdapterError(
            "the file holds one process's part of an adapter, as FSDP slices it",
            file=path,
            tensor=f"{module}.lora_A.weight",
            expected=f"{rank} rows, as lora_B has columns",
            found=f"{a.shape[0]} rows: 1 of {rank // a.shape[0]} parts",
            remedy="save the adapter again with the full state dict (accelerate: "
            "fsdp_state_dict_type: FULL_STATE_DICT)",
        )


def _build_row_scale(
    path: Path, claims: Claims, module: str, low_rank: LowRank
) -> tuple[DoraRowScale, ...]:
    magnitude = claims.parts["lora_magnitude_vector"].get(module)
    if magnitude is None:
        return ()
    _require_shape(path, f"{module}.lora_magnitude_vector", (low_rank.b.rows,), magnitude.shape)
    return (DoraRowScale(magnitude),)


def _build_token_rows(
    path: Path, config: AdapterConfig, module: str, rows: LazyTensor
) -> ReplacedRows:
    indices = config.token_indices(module)
    expected = (len(indices), *rows.shape[1:])
    _require_shape(path, f"{module}.trainable_tokens_delta", expected, rows.shape)
    return ReplacedRows(indices, rows)


def _require_shape(
    path: Path, tensor: str, expected: tuple[int, ...], found: tuple[int, ...]
) -> None:
    if expected != found:
        raise AdapterError(
            "a tensor of the adapter has another shape than the rest of the adapter says",
            file=path,
            tensor=tensor,
            expected=expected,
            found=found,
            remedy="weights and adapter_config.json are from different runs: take both from one "
            "place",
        )
