"""What a merge has to give: base and adapters, read anew, added in float64, rounded once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.weights import Weights, read_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PEFT_PREFIX = "base_model.model."
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
LORA_ENDS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
NOT_COVERED = ("rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out")


@dataclass(frozen=True)
class Adapter:
    """A LoRA or DoRA with the same rank for every layer, as ``make_adapter`` writes it."""

    weights: Weights
    scaling: float

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Open an adapter folder; scaling is ``lora_alpha / r``.

        Raises ``ValueError`` for what this reference has no formula for.
        """
        config = read_json(folder / "adapter_config.json")
        if strange := [key for key in NOT_COVERED if config.get(key)]:
            raise ValueError(f"{folder}: no reference for an adapter with {strange[0]}")
        weights = read_folder(folder)
        if foreign := [name for name in weights if not name.startswith(PEFT_PREFIX)]:
            raise ValueError(f"{folder}: {foreign[0]} is not in PEFT's layout")
        bare = {name.removeprefix(PEFT_PREFIX): get for name, get in weights.items()}
        return cls(bare, config["lora_alpha"] / config["r"])

    def replacement(self, name: str) -> Tensor | None:
        """The whole tensor that takes the place of ``name``, if the adapter brings one."""
        return self.weights[name]() if name in self.weights else None

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(A: rank x in, B: out x rank) that are added to ``name``, if any."""
        stem = name.removesuffix(".weight")
        a, b = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        return (self.weights[a](), self.weights[b]()) if a in self.weights else None

    def magnitude(self, name: str) -> Tensor | None:
        """Length that DoRA gives to each row of ``name``, if it is one."""
        key = f"{name.removesuffix('.weight')}.lora_magnitude_vector"
        return self.weights[key]() if key in self.weights else None


@dataclass(frozen=True)
class Reference:
    """Base and adapters, in the order of merging."""

    base: Weights
    config: dict[str, Any]
    adapters: tuple[Adapter, ...]

    @classmethod
    def read(cls, base: Path, adapters: list[Path]) -> Reference:
        """Open the folders; nothing but names is read yet."""
        reference = cls(
            read_folder(base),
            read_json(base / "config.json"),
            tuple(Adapter.read(path) for path in adapters),
        )
        for path, adapter in zip(adapters, reference.adapters, strict=True):
            for name in adapter.weights:
                if not name.endswith(LORA_ENDS) and name not in reference.names:
                    raise ValueError(f"{path}: no reference for {name}")
        return reference

    @cached_property
    def names(self) -> list[str]:
        """Names of the merged model's tensors; the rotary tables of old conversions are none.

        An LM head that only an adapter has unties a tied base.
        """
        heads = [LM_HEAD for adapter in self.adapters if LM_HEAD in adapter.weights]
        names = dict.fromkeys([*self.base, *heads])
        return [name for name in names if not name.endswith("rotary_emb.inv_freq")]

    @property
    def vocab_size(self) -> int:
        """Rows of the merged embedding."""
        return self.merged(EMBEDDING).shape[0]

    def merged(self, name: str) -> Merged:
        """What ``name`` is made of: the last whole tensor, and what is added to it afterwards."""
        start = self.base[name if name in self.base else EMBEDDING]()
        deltas: list[Delta] = []
        for adapter in self.adapters:
            if (whole := adapter.replacement(name)) is not None:
                start, deltas = whole, []
            if (factors := adapter.factors(name)) is not None:
                deltas.append(Delta(*factors, adapter.scaling, adapter.magnitude(name)))
        return Merged(start, tuple(deltas))


@dataclass(frozen=True)
class Delta:
    """``W + scaling * B @ A``; DoRA then gives each row of that sum its magnitude as length."""

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    def added(self, block: Tensor, start: int, stop: int) -> Tensor:
        """``block``, float64 rows of W, with this added."""
        summed = block.addmm(self.b[start:stop].double(), self.a.double(), alpha=self.scaling)
        if self.magnitude is None:
            return summed
        lengths = summed.square().sum(dim=1, keepdim=True).sqrt()
        return summed * (self.magnitude[start:stop, None].double() / lengths)


@dataclass(frozen=True)
class Merged:
    """A tensor, and what is added to it in turn."""

    start: Tensor
    deltas: tuple[Delta, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(self.start.shape)

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows of the result: every product and sum in float64, then one rounding to ``dtype``."""
        block = self.start[start:stop]
        if not self.deltas and block.dtype == dtype:
            return block
        block = block.double()
        for delta in self.deltas:
            block = delta.added(block, start, stop)
        return round_once(block, dtype)


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to a 16-bit type, to nearest even.

    torch goes through float32, which rounds a second time. Rounding to odd on the way there keeps
    the second one exact (Boldo and Melquiond, 2008).
    """
    import torch

    nearest = values.float()
    if dtype == torch.float32:
        return nearest
    bits = nearest.view(torch.int32)
    widened = nearest.double()
    toward_zero = bits - (widened.abs() > values.abs()).int()
    odd = torch.where(widened == values, bits, toward_zero | 1)
    return odd.view(torch.float32).to(dtype)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a UTF-8 file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
