"""What a merge must give, in float64, and how far from it the guarantee of one rounding allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.kit.files import Tensors, load_weights


@dataclass(frozen=True)
class Float64Merge:
    """``sums`` are exact, but for float64; a sum in float32 may miss each by ``float32_errors``."""

    sums: Tensors
    float32_errors: Tensors

    def rounded(self) -> Tensors:
        """The nearest float16 of each sum."""
        return {name: round_to_float16(tensor) for name, tensor in self.sums.items()}


def merge_in_float64(base: Path, adapters: Sequence[Path]) -> Float64Merge:
    """``W + sum of (alpha / r) B A``, and whole tensors replaced.

    Adding a product of rank r takes at most r + 3 roundings of each element, and n roundings move a
    sum by at most n * 2**-24 times the sum of the magnitudes of what is added, in any order
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). So the error is relative to the
    summands: where they cancel it may be many units in the last place of what is left.
    """
    sums = {name: tensor.double() for name, tensor in load_weights(base).items()}
    errors = {name: torch.zeros_like(tensor) for name, tensor in sums.items()}
    for adapter in adapters:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        scaling = config["lora_alpha"] / config["r"]
        weights = {
            name.removeprefix("base_model.model."): tensor.double()
            for name, tensor in load_weights(adapter).items()
        }
        for name, tensor in weights.items():
            if "lora_" not in name:
                sums[name], errors[name] = tensor, torch.zeros_like(tensor)
        for name, a in weights.items():
            if ".lora_A." in name:
                module = name.removesuffix(".lora_A.weight")
                b, weight = weights[f"{module}.lora_B.weight"], f"{module}.weight"
                summands = sums[weight].abs() + abs(scaling) * b.abs() @ a.abs()
                errors[weight] += (len(a) + 3) * 2.0**-24 * summands
                sums[weight] += scaling * b @ a
    return Float64Merge(sums, errors)


def round_to_float16(values: torch.Tensor) -> torch.Tensor:
    """Rounded once, by numpy: torch goes from float64 to float16 by way of float32."""
    return torch.from_numpy(values.numpy().astype("float16"))


def require_one_rounding(found: Tensors, sums: Tensors, float32_errors: Tensors) -> None:
    """Require float32 sums rounded once, of which at least 99.9 % are the nearest to ``sums``."""
    assert found.keys() == sums.keys()
    nearest = total = 0
    for name, tensor in found.items():
        exact, error = sums[name], float32_errors[name]
        assert tensor.shape == exact.shape, name
        assert tensor.dtype == torch.float16, name
        assert is_rounded_once(tensor, exact, error), name
        nearest += int((tensor == round_to_float16(exact)).sum())
        total += tensor.numel()
    assert nearest / total >= 0.999


def is_rounded_once(found: torch.Tensor, exact: torch.Tensor, float32_errors: torch.Tensor) -> bool:
    """Whether each float16 is within half a unit in the last place of a sum that float32 may give.

    The sum is within its error of ``exact`` (float64); a unit is that of the sum's own magnitude.
    """
    off = (found.double() - exact).abs()
    return bool((off <= float32_errors + half_unit(exact.abs() + float32_errors)).all())


def half_unit(magnitudes: torch.Tensor) -> torch.Tensor:
    """Half a unit in the last place of float16: what rounding to nearest moves at most.

    >>> (half_unit(torch.tensor([1.0, 1.9, 2.0])) * 2**11).tolist()
    [1.0, 1.0, 2.0]
    """
    _, exponents = torch.frexp(magnitudes.clamp(min=2.0**-14))  # smaller ones have its unit
    return torch.ldexp(torch.ones_like(magnitudes), exponents - 12)


def ulps(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many float16 values lie between two float16 tensors, element by element."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(found) - ordered(expected)).abs()
