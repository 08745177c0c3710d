"""Weights that are whole, and those of quantized models, which are refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..errors import LayoutError, Topic
from ..messages import tr
from ..tensors.lazy import LazyTensor, get_dtype_name

# The helper tensors of GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors.
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_(state|map)|nested_\w+"
    r"|weight_(format|scale\w*|packed|shape|zero_point)|(input|output|k|v)_scale)\b"
)
# What a weight may be in; every other dtype is a quantization.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_quantized(name: str) -> bool:
    """Whether a tensor's name is that of a helper of quantized weights."""
    return _QUANTIZED.search(name) is not None


def require_unquantized(folder: Path, name: str, tensor: LazyTensor) -> None:
    """Raise ``LayoutError`` for a helper of quantized weights, and for a dtype that is no float."""
    if not is_quantized(name) and tensor.dtype in FLOATS:
        return
    raise LayoutError(
        tr("the base model is quantized; a LoRA can be merged only into full weights"),
        file=folder,
        tensor=tensor.origin,
        expected=tr("one float16, bfloat16 or float32 tensor for each weight"),
        found=name.rsplit(".", 1)[-1] if is_quantized(name) else get_dtype_name(tensor.dtype),
        remedy=tr("take the original float16 or bfloat16 model as the base"),
        topic=Topic.FILES,
    )
