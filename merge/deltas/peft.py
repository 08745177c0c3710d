"""A PEFT adapter folder: every key of its weights is claimed, or the merge stops naming it.

Key layouts that are read (``X`` is a module's name in the base model):

    base_model.model.X.lora_A.weight, .lora_B.weight       what PEFT 0.2 and all later ones save
    base_model.model.X.weight                              a whole tensor (modules_to_save)
    base_model.model.X.lora_A.default.weight               a raw training dict, with adapter name
    base_model.model.X.modules_to_save[.default].weight    the trained copy of a whole module
    base_model.model.X.original_module.weight              the untrained one: never used
    base_model.model.X.base_layer.weight                   the base's own copy beside a LoRA
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from ..errors import AdapterError
from ..formats import open_container
from ..lazy import LazyTensor, block_rows, dtype_name
from ..staging import Offload
from .adapter_config import AdapterConfig, read_adapter_config
from .patches import LowRank

WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."

_KEY = re.compile(
    r"(?P<module>.+?)\."
    r"(?:(?P<part>lora_A|lora_B|modules_to_save|original_module|base_layer)"
    r"(?:\.(?P<adapter>[^.]+))?\.)?weight"
)
# Kinds of tensors that belong to adapters not handled here, by a part of their names.
_FOREIGN = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA on embeddings",
    "trainable_tokens_": "trainable tokens",
    "lora_E": "AdaLoRA",
    "ranknum": "AdaLoRA",
    "ia3_l": "IA3",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "vera_lambda": "VeRA",
    "prompt_embeddings": "prompt tuning",
    ".bias": "a bias",
}


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to a base: ``added`` to matrices, ``replaced`` whole tensors.

    Keys of ``added`` and ``replaced`` are the base's tensor names.
    """

    folder: Path
    weights: Path
    config: AdapterConfig
    added: Mapping[str, LowRank]
    replaced: Mapping[str, LazyTensor]
    ignored: tuple[str, ...] = ()

    @cached_property
    def changes_nothing(self) -> bool:
        """Whether merging it would leave the base as it is: every ``lora_B`` zero."""
        return not self.replaced and not any(
            bool(patch.b.read().any()) for patch in self.added.values()
        )

    @property
    def name(self) -> str:
        """The folder's name, by which messages speak of the adapter."""
        return self.folder.name or str(self.folder)


@dataclass
class _Claims:
    """Tensors of an adapter by what they are, each under its module's name."""

    parts: dict[str, dict[str, LazyTensor]] = field(
        default_factory=lambda: {
            part: {}
            for part in (
                "lora_A",
                "lora_B",
                "modules_to_save",
                "original_module",
                "base_layer",
                "plain",
            )
        }
    )
    adapters: set[str] = field(default_factory=set)


def find_weights(folder: Path) -> Path:
    """Return the adapter's weight file. Raises ``AdapterError`` when there is none or two."""
    present = [folder / name for name in WEIGHT_NAMES if (folder / name).is_file()]
    if len(present) == 1:
        return present[0]
    if present:
        raise AdapterError(
            "the folder holds the adapter twice, and the two may differ",
            file=folder,
            found=" and ".join(path.name for path in present),
            remedy="keep the file that is meant, move the other away",
        )
    raise AdapterError(
        "the folder holds no adapter weights",
        file=folder,
        expected=" or ".join(WEIGHT_NAMES),
        found=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder",
        remedy="give the folder into which PEFT saved the adapter",
    )


def open_adapter(folder: Path, offload: Offload | None = None) -> Adapter:
    """Read an adapter's configuration and headers; its weights stay in the file.

    Raises ``AdapterError`` for kinds that are not handled, keys that nothing claims, halves without
    the other half, shapes that contradict the configuration, and empty adapters.
    """
    config = read_adapter_config(folder)
    path = find_weights(folder)
    tensors = open_container(path, offload)
    _require_not_empty(path, tensors)
    claims = _claim(path, tensors)
    replaced, ignored = _whole_tensors(path, claims)
    return Adapter(folder, path, config, _low_rank(path, config, claims), replaced, ignored)


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
                found=dtype_name(tensor.dtype),
                remedy="save the adapter in floating point",
            )


def _claim(path: Path, tensors: Mapping[str, LazyTensor]) -> _Claims:
    claims = _Claims()
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key.removeprefix(_PREFIX))
        foreign = next((kind for mark, kind in _FOREIGN.items() if mark in key), None)
        if match is None or foreign:
            raise AdapterError(
                f"the adapter holds {foreign}, which cannot be merged here"
                if foreign
                else "the adapter holds a tensor of a kind that is not known here",
                file=path,
                tensor=key,
                expected="lora_A and lora_B of linear layers, or whole tensors of the base",
                remedy="merge it with PEFT's own merge_and_unload on a machine with enough memory",
            )
        part, module = match["part"] or "plain", match["module"]
        if match["adapter"]:
            claims.adapters.add(match["adapter"])
        if module in claims.parts[part]:
            raise AdapterError(
                "the adapter holds the same tensor twice",
                file=path,
                tensor=key,
                remedy="keep one of the two adapters in the file",
            )
        claims.parts[part][module] = tensor
    if len(claims.adapters) > 1:
        raise AdapterError(
            "the file holds several adapters",
            file=path,
            found=", ".join(sorted(claims.adapters)),
            remedy="save the one that is meant alone, with PEFT's save_pretrained",
        )
    return claims


def _low_rank(path: Path, config: AdapterConfig, claims: _Claims) -> dict[str, LowRank]:
    a_parts, b_parts = claims.parts["lora_A"], claims.parts["lora_B"]
    if lonely := sorted(a_parts.keys() ^ b_parts.keys()):
        has, lacks = ("lora_A", "lora_B") if lonely[0] in a_parts else ("lora_B", "lora_A")
        raise AdapterError(
            f"the adapter has {has} of a module without its {lacks}",
            file=path,
            tensor=f"{lonely[0]}.{lacks}.weight",
            expected=f"both halves of {len(a_parts.keys() | b_parts.keys())} modules",
            found=f"{len(lonely)} with one half only",
            remedy="the file is incomplete: save or fetch the adapter again",
        )
    return {
        f"{module}.weight": _checked_pair(path, config, module, a, b_parts[module])
        for module, a in a_parts.items()
    }


def _checked_pair(
    path: Path, config: AdapterConfig, module: str, a: LazyTensor, b: LazyTensor
) -> LowRank:
    rank = config.rank(module)
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


def _whole_tensors(path: Path, claims: _Claims) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Whole tensors by name, and the keys that are left aside.

    The trained copy is ``modules_to_save``; PEFT 0.21 also saves it under the plain name, and the
    untrained one as ``original_module``.
    """
    plain, trained = claims.parts["plain"], claims.parts["modules_to_save"]
    replaced = {**claims.parts["base_layer"], **plain, **trained}
    for module in plain.keys() & trained.keys():
        if not same_content(plain[module], trained[module]):
            raise AdapterError(
                "the adapter holds two different versions of one trained tensor",
                file=path,
                tensor=f"{module}.weight and {module}.modules_to_save.weight",
                expected="equal tensors, as PEFT writes them",
                remedy="save the adapter again, or remove the one that is not meant",
            )
    originals = claims.parts["original_module"]
    if lonely := sorted(originals.keys() - replaced.keys()):
        raise AdapterError(
            "the adapter holds the untrained copy of a module without the trained one",
            file=path,
            tensor=f"{lonely[0]}.original_module.weight",
            expected=f"{lonely[0]}.modules_to_save.weight beside it",
            remedy="the file is incomplete: save or fetch the adapter again",
        )
    ignored = tuple(f"{module}.original_module.weight" for module in originals)
    return {f"{module}.weight": tensor for module, tensor in replaced.items()}, ignored


def same_content(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors are equal element by element, read in blocks."""
    if one.shape != other.shape:
        return False
    step = block_rows(one.shape)
    ranges = ((start, min(start + step, one.rows)) for start in range(0, one.rows, step))
    return all(torch.equal(one.read(*r).float(), other.read(*r).float()) for r in ranges)
