"""Which tensors a GGUF file of a model holds, and of which of Hugging Face's tensors they are made.

Mixtral's experts are stacked: one tensor for all experts of a layer, where Hugging Face has one for
each. Source: llama.cpp's ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import LayoutError
from ...messages import tr
from .. import llama
from ..config import LlamaShape
from ..mixtral import MixtralShape

# Hugging Face's names for the three matrices of an expert, and llama.cpp's, in the order of a file.
_EXPERT_MATRICES = {"w1": "gate", "w2": "down", "w3": "up"}
_MLP = ".mlp."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: its name there, and Hugging Face's names of its ``parts``.

    ``shape`` is that of a part, with the rows of the vocabulary left open as None. Parts of one
    that ``is_stacked`` lie one after the other along a first axis of their own. q and k are
    ``rotary``: their rows are in Meta's order.
    """

    name: str
    parts: tuple[str, ...]
    shape: tuple[int | None, ...]
    rotary: bool = False
    is_stacked: bool = False

    def complete_shape(self, vocab: int) -> tuple[int, ...]:
        """The shape in the file, with the rows of the vocabulary filled in."""
        sizes = tuple(vocab if size is None else size for size in self.shape)
        return (len(self.parts), *sizes) if self.is_stacked else sizes


def list_stored_tensors(shape: LlamaShape) -> Iterator[StoredTensor]:
    """Every tensor of a model, in the order of the network."""
    for entry in llama.entries(shape):
        if not isinstance(shape, MixtralShape) or _MLP not in entry.hf:
            rotary = entry.row.rotary is not None
            yield StoredTensor(entry.gguf, (entry.hf,), entry.shape, rotary)
        elif entry.hf.endswith("gate_proj.weight"):  # the first of the three that experts replace
            yield from _list_experts(entry.hf.partition(_MLP)[0], entry.gguf, shape)


def _list_experts(layer: str, gate: str, shape: MixtralShape) -> Iterator[StoredTensor]:
    """The router and the experts of a layer; ``gate`` is the file's name of a LLaMA's gate."""
    block, stem = f"{layer}.block_sparse_moe", gate.removesuffix("gate.weight")
    experts, inner, outer = shape.num_local_experts, shape.intermediate_size, shape.hidden_size
    yield StoredTensor(f"{stem}gate_inp.weight", (f"{block}.gate.weight",), (experts, outer))
    for matrix, name in _EXPERT_MATRICES.items():
        parts = tuple(f"{block}.experts.{number}.{matrix}.weight" for number in range(experts))
        sizes = (outer, inner) if name == "down" else (inner, outer)
        yield StoredTensor(f"{stem}{name}_exps.weight", parts, sizes, is_stacked=True)


def require_names(
    found: Collection[str], wanted: Collection[str], source: Path, said_by: str, remedy: str
) -> None:
    """Raise ``LayoutError`` unless a model has the ``wanted`` tensors and no other.

    ``source`` is the file that describes the model, ``said_by`` the part of it that does.
    """
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    for sentence, names in (
        (tr("the model lacks a tensor that {said_by} describes", said_by=said_by), missing),
        (tr("the model holds a tensor that {said_by} does not describe", said_by=said_by), extra),
    ):
        if names:
            raise LayoutError(
                sentence,
                file=source,
                tensor=names[0],
                expected=tr("{n_wanted} tensors", n_wanted=len(wanted)),
                found=tr(
                    "{n_found} tensors; {n_names} such", n_found=len(found), n_names=len(names)
                ),
                remedy=remedy,
            )
