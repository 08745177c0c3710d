"""What wrappers around a model put into the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import LayoutError
from ..messages import tr
from ..tensors.lazy import LazyTensor

# torch.compile, FSDP, gradient checkpointing, DistributedDataParallel, and TRL's value heads.
_WRAPPERS = re.compile(
    r"(?<![^.])"
    r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module|pretrained_model)\."
)


def without_wrappers(name: str) -> str:
    """A tensor's name without the words of wrappers.

    >>> without_wrappers("module._orig_mod.model.norm.weight")
    'model.norm.weight'
    """
    return _WRAPPERS.sub("", name)


def strip_wrappers(folder: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of a model by their names without wrappers' words.

    Raises ``LayoutError`` where two tensors then have one name.
    """
    named: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        plain = without_wrappers(name)
        if plain in named:
            raise LayoutError(
                tr(
                    "the folder holds the same tensor twice, once with a wrapper's word in its name"
                ),
                file=folder,
                tensor=name,
                found=tr("also in {origin}", origin=named[plain].origin),
                remedy=tr("keep the files of one of the two"),
            )
        named[plain] = tensor
    return named
