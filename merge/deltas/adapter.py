"""A PEFT adapter folder, opened: its configuration, its files, and what they do to which tensor."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..checksums.adapter_order import could_be_published
from ..checksums.file_digests import get_file_digest
from ..checksums.known_files import identify_adapter
from ..errors import AdapterError, Topic
from ..formats import open_container
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..messages import join, tr
from ..peft_layers.tuner import split_tensors
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
from .build_patches import build_patches, collect_ranks
from .conflicts import require_no_collisions
from .keys import AdapterKeys, normalize_key, sort_keys
from .patches import LowRank
from .saved_modules import Copies, collect_saved_modules

# What a Trainer's checkpoint calls the same; taken when adapter_config.json lies beside it.
_RAW_NAMES = ("model.safetensors", "pytorch_model.bin")
_PARTS_OF_LORA = (
    *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    "lora_bias",
)


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to a base: whole tensors ``replaced``, then patches ``added``.

    Keys are the base's tensor names. ``trained`` are the replaced ones that the training changed;
    the others are the base's own copy. ``ignored`` are known keys that are not used.
    ``copies`` are what ``require_equal_copies`` has to compare before anything is written;
    ``renamed`` says how its names were made the base's, where they were not. ``new_rows`` follow
    the base's rows of the vocabulary before anything is added. ``by_peft`` are the tensors that
    PEFT merges, by its names, where it does.
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
    by_peft: Mapping[str, LazyTensor] = field(default_factory=dict)

    @cached_property
    def changes_nothing(self) -> bool:
        """Whether merging it would leave the base as it is: every ``lora_B`` zero."""
        patches = [patch for stage in self.added.values() for patch in stage]
        return (
            not self.replaced
            and not self.by_peft
            and not self.new_rows
            and all(
                isinstance(patch, LowRank) and not (_has_values(patch.b) and _has_values(patch.a))
                for patch in patches
            )
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
    def digests(self) -> dict[Path, str]:
        """SHA-256 of every file that is read, the configuration's first where it is one apart."""
        config = self.config.path
        first = {} if config == self.weights else {config: self.folder.digest(config.name)}
        further = {path: get_file_digest(path) for path in self.files.further}
        return {**first, self.weights: self.digest, **further}

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
    Raises ``AdapterError`` for kinds that are not handled, unknown files and keys,
    parts that contradict each other, halves without the other half, shapes that contradict the
    configuration, and empty adapters.
    """
    config = replace(folder.adapter_config, weight=weight)
    names: tuple[tuple[str, ...], ...] = (WEIGHT_NAMES, _RAW_NAMES, (FSDP_NAME,), (MLX_NAME,))
    names = names if folder.gguf is None else ((folder.gguf.path.name,),)
    files = find_files(folder, names, ignore_file)
    path = files.weights
    tensors = folder.gguf.tensors if folder.gguf is not None else _open_tensors(files, offload)
    copies = _pair_duplicates(files, tensors, offload)
    by_peft: dict[str, LazyTensor] = {}
    if config.method is not None:
        by_peft, tensors = split_tensors(config.peft_type, tensors)
    _require_not_empty(path, {**by_peft, **tensors}, by_peft)
    trained = _read_trainable_params(files, offload)
    for name, tensor in trained.items():
        key = next((key for key in tensors if normalize_key(key) == name), None)
        if key is None:
            tensors = {**tensors, name: tensor}
        else:
            copies[f"{name} of {TRAINABLE_PARAMS} and {key}"] = (tensor, tensors[key])
    keys = sort_keys(path, tensors)
    _require_no_delta(path, keys)
    _require_no_lora(path, config, keys)
    require_no_collisions(path, config, keys)
    config = config.with_resolved_rule(collect_ranks(keys))
    replaced, by_training, unused, pairs = collect_saved_modules(path, config, keys)
    return Adapter(
        folder,
        files,
        config,
        build_patches(path, config, keys),
        replaced,
        by_training | (trained.keys() & replaced.keys()),
        unused,
        {**pairs, **copies},
        new_rows=_read_new_rows(files.new_rows, offload),
        by_peft=by_peft,
    )


def _open_tensors(files: AdapterFiles, offload: Offload | None) -> dict[str, LazyTensor]:
    """The tensors of all files, under PEFT's names. Raises ``AdapterError`` for one in two."""
    tensors: dict[str, LazyTensor] = {}
    for path in files.parts or (files.weights,):
        for key, tensor in open_container(path, offload).items():
            if key in tensors:
                raise AdapterError(
                    tr("two files of the adapter hold the same tensor"),
                    file=path,
                    tensor=key,
                    found=tr("also in {origin}", origin=tensors[key].origin),
                    remedy=tr("fetch the adapter again"),
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
    names = tr("{name} and {name_2}", name=files.weights.name, name_2=files.duplicate.name)
    if tensors.keys() != others.keys():
        lonely = sorted(tensors.keys() ^ others.keys())
        raise AdapterError(
            tr("the folder holds the adapter twice, and the two differ"),
            file=files.weights.parent,
            tensor=lonely[0],
            expected=tr("the same tensors in {names}", names=names),
            found=tr("{n_lonely} in one of them alone", n_lonely=len(lonely)),
            remedy=tr("keep the file that is meant, move the other away"),
        )
    return {
        tr("{key} in {names}", key=key, names=names): (tensors[key], others[key]) for key in tensors
    }


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
            tr("the rows of added tokens are not what such a file holds"),
            file=path,
            expected=tr("matrices of the same rows: ") + ", ".join(names),
            found=", ".join(f"{key} {tuple(t.shape)}" for key, t in found.items())[:200],
            remedy=tr("fetch the adapter again, or save it with PEFT's save_embedding_layers=True"),
        )
    return rows


def _read_trainable_params(files: AdapterFiles, offload: Offload | None) -> dict[str, LazyTensor]:
    """LongLoRA's trained tensors under the base's names, which replace the base's."""
    if files.trainable_params is None:
        return {}
    found = open_container(files.trainable_params, offload)
    _require_not_empty(files.trainable_params, found)
    return {normalize_key(key): tensor for key, tensor in found.items()}


def _require_not_empty(
    path: Path, tensors: Mapping[str, LazyTensor], by_peft: Container[str] = ()
) -> None:
    if not tensors:
        raise AdapterError(
            tr("the adapter is empty: the training script saved it wrongly"),
            file=path,
            expected=tr("LoRA matrices"),
            found=tr("no tensor at all ({st_size} bytes)", st_size=path.stat().st_size),
            remedy=tr(
                "the script replaced model.state_dict and then called "
                "save_pretrained, which filtered the adapter's tensors away twice; "
                "save again from a training checkpoint"
            ),
            topic=Topic.NO_CHANGE,
        )
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            raise AdapterError(
                tr("a tensor of the adapter has no elements: the training run saved it wrongly"),
                file=path,
                tensor=name,
                expected=tr("a whole tensor"),
                found=tr("shape {tuple}", tuple=tuple(tensor.shape)),
                remedy=tr(
                    "DeepSpeed ZeRO-3 keeps tensors in parts; gather them when saving "
                    "(stage3_gather_16bit_weights_on_model_save) or run zero_to_fp32.py"
                ),
                topic=Topic.NO_CHANGE,
            )
        if not tensor.dtype.is_floating_point and name not in by_peft:
            raise AdapterError(
                tr("a tensor of the adapter is quantized"),
                file=path,
                tensor=name,
                expected=tr("float16, bfloat16 or float32"),
                found=get_dtype_name(tensor.dtype),
                remedy=tr("save the adapter in floating point"),
            )


def _require_no_lora(path: Path, config: AdapterConfig, keys: AdapterKeys) -> None:
    """Raise ``AdapterError`` for LoRA's matrices in an adapter of a method that has none."""
    found = [module for part in _PARTS_OF_LORA for module in keys.parts[part]]
    if config.method is not None and found:
        raise AdapterError(
            tr(
                "the adapter's configuration says {peft_type}, but its tensors are a LoRA's",
                peft_type=config.peft_type,
            ),
            file=path,
            tensor=found[0],
            expected=tr(
                "tensors of {peft_type}, beside whole modules and trained tokens",
                peft_type=config.peft_type,
            ),
            found=tr("LoRA matrices of {n_found} modules", n_found=len(found)),
            remedy=tr(
                "weights and adapter_config.json are from different runs: take both from one place"
            ),
        )


def _require_no_delta(path: Path, keys: AdapterKeys) -> None:
    """A whole model under an adapter's name has no part of an adapter in it."""
    delta_parts = ("lora_A", "lora_embedding_A", "trainable_tokens_delta", "modules_to_save")
    raw = path.name in _RAW_NAMES
    if raw and not any(keys.parts[part] for part in delta_parts):
        raise AdapterError(
            tr("the folder holds a whole model beside adapter_config.json, and no adapter"),
            file=path,
            expected=tr("lora_A and lora_B among its tensors, or ")
            + join(tr(" or "), WEIGHT_NAMES),
            found=tr("{n_plain} whole tensors", n_plain=len(keys.parts["plain"])),
            remedy=tr("give the folder into which PEFT saved the adapter"),
        )
