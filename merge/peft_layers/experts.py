"""Experts that transformers fuses into one parameter, and that a base's files hold each by itself.

From release 5 on transformers stacks them when it loads a model, by a table of its own
(``transformers/conversion_mapping.py``). An adapter on the stack is a LoRA on each expert, and so
it is added to the tensors of the files without making the stack.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from ..tensors.lazy import HeldTensor, LazyTensor
from .skeleton import LIBRARY_ERRORS
from .tuner import PeftTuner

_EXPERT = re.compile(r"\.experts\.(\d{1,6})\.")


@dataclass(frozen=True)
class ExpertFactors:
    """What is added to one expert's matrix: ``scaling * B A`` with A (r, in) and B (out, r)."""

    a: LazyTensor
    b: LazyTensor
    scaling: float


@dataclass(frozen=True)
class _Part:
    """A tensor of the files that is the rows from ``first`` on of one expert in a stack."""

    name: str
    expert: int
    first: int
    rows: int


def find_expert_factors(
    tuner: PeftTuner, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> dict[str, dict[str, ExpertFactors]]:
    """What the adapter adds to each tensor of a stack that the base's files do not hold, by the
    name of the stack. ``config`` and ``tensors`` are the base's.

    A stack is left out whose tensors transformers does not list or are not all there, and one on
    which PEFT has no plain LoRA.
    """
    changed = [(m, p) for m, parameters in tuner.modules.items() for p in parameters]
    absent = [(m, p) for m, p in changed if f"{m}.{p}" not in tensors]
    parts = _find_parts(config, tensors) if absent else {}
    found: dict[str, dict[str, ExpertFactors]] = {}
    for module, parameter in absent:
        factors = tuner.find_factors(module, parameter)
        stack = f"{module}.{parameter}"
        if factors is not None and stack in parts and _fill(parts[stack], factors[0]):
            found[stack] = {part.name: _take_part(stack, part, *factors) for part in parts[stack]}
    return found


def _fill(parts: Sequence[_Part], b: torch.Tensor) -> bool:
    """Whether the tensors are all rows of all experts of B (experts, out, r), none twice."""
    rows = Counter[int]()
    for part in parts:
        rows[part.expert] += part.rows
    return rows == dict.fromkeys(range(len(b)), b.shape[1])


def _take_part(
    stack: str, part: _Part, b: torch.Tensor, a: torch.Tensor, scaling: float
) -> ExpertFactors:
    own = b[part.expert, part.first : part.first + part.rows]
    return ExpertFactors(
        HeldTensor.of(a[part.expert], f"lora_A of {stack}"),
        HeldTensor.of(own, f"lora_B of {stack}"),
        scaling,
    )


def _find_parts(
    config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> dict[str, list[_Part]]:
    """The tensors of each stack, by the name of the stack in transformers; whole experts only."""
    stacks: dict[str, dict[int, dict[int, str]]] = {}
    widths: dict[str, int] = {}
    for stack, name, place, width in _list_stacked(config, tensors):
        match = _EXPERT.search(name)
        if match is not None:
            stacks.setdefault(stack, {}).setdefault(int(match[1]), {})[place] = name
            widths[stack] = width
    return {
        stack: [part for number in experts for part in _place(number, experts[number], tensors)]
        for stack, experts in stacks.items()
        if all(len(places) == widths[stack] for places in experts.values())
    }


def _place(
    expert: int, names: Mapping[int, str], tensors: Mapping[str, LazyTensor]
) -> Iterator[_Part]:
    """One expert's tensors one below the other."""
    ordered = [names[place] for place in sorted(names)]
    firsts = accumulate((tensors[name].rows for name in ordered), initial=0)
    for name, first in zip(ordered, firsts, strict=False):
        yield _Part(name, expert, first, tensors[name].rows)


def _list_stacked(
    config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]
) -> Iterator[tuple[str, str, int, int]]:
    """Stack, tensor, the tensor's place in its expert, and how many an expert has.

    Nothing for transformers that has no table, or another form of it.
    """
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
        from transformers.core_model_loading import (
            Concatenate,
            MergeModulelist,
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        table = get_checkpoint_conversion_mapping(config.get("model_type")) or []
        renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
        stacking = {
            pattern: converter
            for converter in table
            if isinstance(converter, WeightConverter)
            and [(type(op), op.dim) for op in converter.operations]
            in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])
            for pattern in converter.source_patterns
        }
        converters = list({id(c): c for c in stacking.values()}.values())
        for name in tensors:
            stack, pattern = rename_source_key(name, renamings, converters)
            if pattern in stacking:
                patterns = stacking[pattern].source_patterns
                yield stack, name, patterns.index(pattern), len(patterns)
    except LIBRARY_ERRORS:
        return
