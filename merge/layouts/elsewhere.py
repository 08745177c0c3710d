"""Weights that are there, but not as transformers or Meta names them: what they are, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..messages import tr


@dataclass(frozen=True)
class ForeignFormat:
    """Files of another tool: a pattern in the folder, what they are, and its owner's way out."""

    pattern: str
    what: str
    remedy: str


_FOREIGN_FORMATS = (
    ForeignFormat(
        "*.enc",
        tr(
            "weights that BELLE and others published XORed with LLaMA-7B's "
            "consolidated.00.pth (for every size), with the SHA-256 of the plain "
            "file in the name"
        ),
        tr("decrypt them first, with the script and the key file that their model card names"),
    ),
    ForeignFormat(
        "zero_to_fp32.py",
        tr("a DeepSpeed ZeRO checkpoint in parts (global_step...)"),
        tr("join the parts with `python zero_to_fp32.py . pytorch_model.bin` in that folder"),
    ),
    ForeignFormat(
        "global_step*",
        tr("a DeepSpeed ZeRO checkpoint in parts"),
        tr("join the parts with DeepSpeed's zero_to_fp32.py"),
    ),
    ForeignFormat(
        "**/*.distcp",
        tr("a distributed checkpoint in parts"),
        tr(
            "join them with `python -m torch.distributed.checkpoint.format_utils "
            "dcp_to_torch`, or with `accelerate merge-weights`"
        ),
    ),
    ForeignFormat(
        "model_world_size_*_rank_*.pt",
        tr("a verl checkpoint, one file a process"),
        tr("join the parts with verl's model_merger (`python -m verl.model_merger merge`)"),
    ),
    ForeignFormat(
        "hf_model_*.pt",
        tr("torchtune's checkpoint, which holds Hugging Face's names"),
        tr("rename the files to pytorch_model-00001-of-0000N.bin and so on"),
    ),
    ForeignFormat(
        "lit_model.pth",
        tr("LitGPT's checkpoint, with names of its own"),
        tr(
            "convert it with `litgpt convert_from_litgpt`, and rename model.pth "
            "to pytorch_model.bin"
        ),
    ),
    ForeignFormat(
        "model.pth",
        tr(
            "a state dict of LitGPT's convert_from_litgpt or torchtune, most "
            "likely with Hugging Face's names"
        ),
        tr("rename it to pytorch_model.bin"),
    ),
    ForeignFormat(
        "*.bin.part*",
        tr("a download that was not finished"),
        tr("finish the download"),
    ),
)


# How names of tensors begin in TencentPretrain's models.
_TENCENT = ("embedding.word.", "encoder.transformer.", "target.lm.")


def suggest_for_names(names: Iterable[str]) -> str | None:
    """What to do about the names of another tool's tensors, None for names of no such tool."""
    if any(name.startswith(_TENCENT) for name in names):
        return tr(
            "these are TencentPretrain's names: convert the model with its own "
            "convert_llama_from_tencentpretrain_to_huggingface.py"
        )
    return None


def find_unsupported_format(folder: Path) -> ForeignFormat | None:
    """The first kind of which the folder holds a file."""
    return next((kind for kind in _FOREIGN_FORMATS if any(folder.glob(kind.pattern))), None)
