"""A LoRA in GGUF form, as llama.cpp's ``convert_lora_to_gguf.py`` writes it, under PEFT's names.

llama.cpp adds ``alpha / r * B A``, where ``r`` is the rank of the tensor's own matrices. B of q and
k has Meta's order of rows, which only the base's size of heads tells, so its rows are put in order
when that is known. Sources: ``convert_lora_to_gguf.py`` and ``llama-adapter.cpp``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..formats import gguf as container
from ..layouts import llama
from ..layouts.config import LlamaShape, is_llama
from ..layouts.rotary import to_half_split
from ..messages import tr
from ..storage.folder import Folder
from ..storage.input_file import InputFile
from ..tensors.lazy import Checkpoint, LazyTensor
from .adapter_config import AdapterConfig
from .patches import LowRank

if TYPE_CHECKING:
    from .adapter import Adapter

_ARCHITECTURE = "llama"
_LAYER = re.compile(r"blk\.(\d+)\.")
_BASE = "general.base_model.0."
_HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class GgufAdapter:
    """An adapter's file: its ``alpha``, the name of its ``base``, tensors under PEFT's names.

    B of q and k still has the order of rows of the file.
    """

    path: Path
    alpha: float
    base: str | None
    tensors: Mapping[str, LazyTensor]

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each module that has matrices."""
        parts = {name: name.partition(".lora_") for name in self.tensors}
        return {
            module: self.tensors[name].rows
            for name, (module, _, half) in parts.items()
            if half.rpartition("_")[2].startswith("A")
        }

    def config(self) -> AdapterConfig:
        """The same as what ``adapter_config.json`` says; one rank for most modules."""
        counts = Counter(self.ranks.values())
        rank = counts.most_common(1)[0][0] if counts else 1
        return AdapterConfig(
            path=self.path,
            r=rank,
            lora_alpha=self.alpha,
            use_rslora=False,
            rank_pattern={module: r for module, r in self.ranks.items() if r != rank},
            alpha_pattern={},
            ensure_weight_tying=False,
            base_model_name_or_path=self.base,
            unknown=(),
            modules_to_save=tuple(
                name.removesuffix(".weight") for name in self.tensors if ".lora_" not in name
            ),
        )


def read_gguf_adapter(folder: Folder) -> GgufAdapter:
    """Read the header of the file, or of the one in a folder; its weights stay in the file.

    Raises ``AdapterError`` for several files, for what is no LoRA of a LLaMA, and for tensors of
    other names; ``FormatError`` for a damaged file and for types that are not read.
    """
    path, *others = folder.matching("*.gguf")
    if others:
        raise AdapterError(
            tr("the folder holds several GGUF files"),
            file=folder.path,
            expected=tr("one adapter"),
            found=", ".join(file.name for file in [path, *others][:6]),
            remedy=tr("name the file itself"),
        )
    file = InputFile(path)
    file.read_head()
    found = container.read(file)
    said = found.metadata
    _require_lora(path, said)
    alpha = said.get("adapter.lora.alpha")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise AdapterError(
            tr("the adapter does not say by how much it is scaled"),
            file=path,
            expected=tr("adapter.lora.alpha: a number"),
            found=repr(alpha),
            remedy=tr("convert the adapter again with llama.cpp's convert_lora_to_gguf.py"),
        )
    tensors = {
        name: tensor
        for stored, given in found.tensors.items()
        for name, tensor in [_rename(path, stored, given)]
    }
    return GgufAdapter(path, float(alpha), _find_base(said), tensors)


def _find_base(said: Mapping[str, Any]) -> str | None:
    """The base's Hub id or path, which the converter puts behind the Hub's address, or its name."""
    url, name = said.get(f"{_BASE}repo_url"), said.get(f"{_BASE}name")
    if isinstance(url, str):
        return url.removeprefix(_HUB)
    return name if isinstance(name, str) else None


def _require_lora(path: Path, said: Mapping[str, Any]) -> None:
    """Raise ``AdapterError`` unless the metadata are those of a LoRA of a LLaMA."""
    for key, expected, remedy in (
        ("general.type", "adapter", tr("give a whole model with --base_model")),
        (
            "adapter.type",
            "lora",
            tr("only a LoRA can be merged; llama.cpp applies other kinds itself"),
        ),
        (
            "general.architecture",
            _ARCHITECTURE,
            tr("give the adapter as PEFT saved it, with --output_type huggingface"),
        ),
    ):
        if said.get(key) != expected:
            raise AdapterError(
                tr("this GGUF file holds no LoRA of a LLaMA"),
                file=path,
                expected=f'{key} "{expected}"',
                found=repr(said.get(key)),
                remedy=remedy,
            )
    if "adapter.alora.invocation_tokens" in said:
        raise AdapterError(
            tr(
                "this adapter cannot be merged (activated LoRA): it acts only behind certain tokens"
            ),
            file=path,
            found=tr(
                "adapter.alora.invocation_tokens {adapter_alora_invocation_tokens}",
                adapter_alora_invocation_tokens=said["adapter.alora.invocation_tokens"],
            ),
            remedy=tr("use it unmerged, with llama.cpp"),
        )


def _rename(path: Path, stored: str, tensor: LazyTensor) -> tuple[str, LazyTensor]:
    """A tensor as PEFT has it: the matrices of embeddings have another name, and A is transposed.

    >>> _rename(Path(), "blk.3.attn_norm.weight", None)[0]
    'model.layers.3.input_layernorm.weight'
    """
    name, _, half = stored.partition(".lora_")
    layer = _LAYER.match(name)
    number = layer[1] if layer else ""
    row = next((row for row in llama.TABLE if row.gguf.format(number) == name), None)
    is_whole = half == "" and "norm" in name
    if row is None or not (is_whole or half in ("a", "b")):
        raise AdapterError(
            tr("the adapter holds a tensor that is no part of a LoRA of a LLaMA"),
            file=path,
            tensor=stored,
            expected=tr("such as blk.0.attn_q.weight.lora_a"),
            remedy=tr("give the adapter as PEFT saved it, with --output_type huggingface"),
        )
    base = row.hf.format(number)
    if is_whole:
        return base, tensor
    module = base.removesuffix(".weight")
    if base != llama.EMBED_TOKENS:
        return f"{module}.lora_{half.upper()}.weight", tensor
    return f"{module}.lora_embedding_{half.upper()}", tensor.transposed() if half == "a" else tensor


def fit_to_base(adapter: Adapter, base: Checkpoint, allow_quantized: bool) -> Adapter:
    """The adapter with B of q and k in Hugging Face's order, where it came in GGUF form.

    Raises ``AdapterError`` for a base that is no LLaMA, and for matrices in q8_0 unless
    ``allow_quantized``.
    """
    found = adapter.folder.gguf
    if found is None:
        return adapter
    quantized = [t for t in found.tensors.values() if container.get_type_name(t) == "q8_0"]
    if quantized and not allow_quantized:
        raise AdapterError(
            tr("the adapter is quantized, and what was rounded away in it would be missing"),
            file=found.path,
            tensor=quantized[0].origin,
            expected=tr("f32, f16 or bf16"),
            found=tr("{n_quantized} tensors in q8_0", n_quantized=len(quantized)),
            remedy=tr(
                "give the adapter from which this one was made; if there is none, "
                "--allow_quantized_input merges it nevertheless"
            ),
        )
    if not is_llama(base.config):
        raise AdapterError(
            tr("an adapter in GGUF form can be merged into a LLaMA alone"),
            file=found.path,
            expected=tr('a base of "model_type": "llama"'),
            found=repr(base.config.get("model_type")),
            remedy=tr("give the adapter as PEFT saved it"),
        )
    head_dim = LlamaShape.from_config(base.config, found.path).head_dim
    rotary = tuple(row.hf.partition("{}")[2] for row in llama.TABLE if row.rotary is not None)
    added = {
        name: tuple(
            replace(patch, b=to_half_split(patch.b, head_dim))
            if isinstance(patch, LowRank) and name.endswith(rotary)
            else patch
            for patch in stage
        )
        for name, stage in adapter.added.items()
    }
    return replace(adapter, added=added)
