"""A model of transformers without its weights, on which PEFT builds an adapter's layers.

Every parameter is a tensor of the right shape whose elements are all one element in memory, on the
CPU: a skeleton of 7B takes no memory, and PEFT makes an adapter's own tensors as on a real model
(on the meta device their random starts would be lost). What would read such a weight is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import AdapterError
from ..messages import tr

# What libraries raise for values that they do not expect.
LIBRARY_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),  # NotImplementedError is a RuntimeError
)
_ELEMENT = torch.zeros(1)
# Operations that ask a tensor for nothing but its shape and dtype.
_ASK_SHAPE = frozenset(
    [
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "detach"),
    ]
)


class ReadsWeightError(BaseException):
    """A weight of the skeleton was to be read. No ``Exception``: PEFT catches some of those."""


class _NoticeReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func.is_view or func.overloadpacket.__name__ in _ASK_SHAPE
        if not asks and any(map(is_placeholder, tree_leaves((args, kwargs)))):
            raise ReadsWeightError(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def raise_on_reads() -> Iterator[None]:
    """In the block, ``ReadsWeightError`` is raised by what would read a weight of a skeleton."""
    with _NoticeReads():  # type: ignore[no-untyped-call]
        yield


def is_placeholder(value: object) -> bool:
    """Whether a tensor stands for a weight that is not there."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.untyped_storage().data_ptr() == _ELEMENT.untyped_storage().data_ptr()
    )


def make_placeholder(shape: torch.Size | tuple[int, ...]) -> torch.nn.Parameter:
    """A float32 parameter of ``shape`` that takes no memory."""
    return torch.nn.Parameter(_ELEMENT[0].expand(shape), requires_grad=False)


def build_skeleton(config: Mapping[str, Any], rows: int) -> torch.nn.Module:
    """transformers' model of a ``config.json``, with ``rows`` embeddings and no weights.

    No code of the model's own is run. Raises ``AdapterError`` for a model that transformers does
    not know, or whose configuration it refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, __version__

    kind = config.get("model_type")
    left_out = ("auto_map", "quantization_config", "dtype", "torch_dtype")
    fields = {name: value for name, value in config.items() if name not in left_out}
    try:
        described = CONFIG_MAPPING[kind].from_dict({**fields, "vocab_size": rows})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    except (*LIBRARY_ERRORS, StrictDataclassError) as error:
        raise AdapterError(
            tr(
                "transformers cannot build the base model, so PEFT cannot merge this "
                "adapter into it"
            ),
            expected=tr("a decoder that transformers {version} knows", version=__version__),
            found=f'"model_type": {kind!r}; {type(error).__name__}: {error}'[:300],
            remedy=tr(
                "upgrade transformers; models whose code lies beside their weights are not run here"
            ),
        ) from None
    _take_weights_away(model)
    return model.eval()  # type: ignore[no-any-return]


def _take_weights_away(model: torch.nn.Module) -> None:
    """Put placeholders in the place of parameters and buffers; shared ones stay shared."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            made.setdefault(id(parameter), make_placeholder(parameter.shape))
            setattr(module, name, made[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, make_placeholder(buffer.shape).data)
