"""llama.cpp's own quantizer, by rows: ``ggml_quantize_chunk`` of the library in llama-cpp-python.

``llama_model_quantize`` calls the same function for every few rows, so the blocks are the same
bytes; called here, no file of whole numbers has to lie on the disk first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch

from ..errors import NumberError, UsageError
from ..interruption import raise_if_interrupted
from ..messages import join, tr
from ..outtypes import LLAMA_CPP_REMEDY

# A block's number of elements and of bytes, by the name of its type; source: ``ggml-common.h``.
BLOCKS: Mapping[str, tuple[int, int]] = {
    **{"Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34)},
    **{"Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176)},
    **{"Q6_K": (256, 210), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66)},
    **{"IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110)},
    **{"IQ4_NL": (32, 18), "IQ4_XS": (256, 136)},
}
TYPE_NUMBERS: Mapping[str, int] = {
    **{"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12},
    **{"Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19},
    **{"IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29},
}
_LIBRARIES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
# Elements between two looks at Ctrl-C: the slowest types take half a second for so many.
_STEP = 1 << 14


def count_row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of ``columns`` elements, a multiple of the type's block."""
    elements, nbytes = BLOCKS[kind]
    return columns // elements * nbytes


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The library with ggml's quantizers.

    It is loaded by its file, since importing ``llama_cpp`` loads every backend. Raises
    ``UsageError`` where llama-cpp-python is missing or lacks it, and where it cannot be loaded.
    """
    spec = find_spec("llama_cpp")
    home = Path(spec.origin).parent / "lib" if spec is not None and spec.origin else Path()
    files = [home / name for name in _LIBRARIES if (home / name).is_file()]
    try:
        library = ctypes.CDLL(str(files[0])) if files else None
    except OSError as error:
        raise _make_library_error(home, str(error)) from None
    if library is None:
        raise _make_library_error(home, tr("none of them"))
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *[long] * 3, pointer]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    return library


def _make_library_error(folder: Path, found: str) -> UsageError:
    return UsageError(
        tr("the library of llama.cpp with its quantizers cannot be loaded"),
        file=folder,
        expected=join(tr(" or "), _LIBRARIES[:3]),
        found=found,
        remedy=LLAMA_CPP_REMEDY,
    )


def quantize_rows(
    kind: str, rows: torch.Tensor, out: torch.Tensor, importance: torch.Tensor | None, origin: str
) -> None:
    """Quantize finite float32 ``rows`` (n, columns) into ``out``, uint8 (n, bytes of a row).

    ``importance`` has a factor for each column (float32, at least 0). All are contiguous. Raises
    ``NumberError`` for values so large that a block's scale, a float16, becomes infinite.
    """
    assert all(t.is_contiguous() for t in (rows, out)), "the library is given addresses alone"
    assert rows.dtype == torch.float32, "the library reads float32"
    library, number = load_library(), TYPE_NUMBERS[kind]
    count, columns = rows.shape
    step = max(1, _STEP // columns)
    factors = None if importance is None else importance.data_ptr()
    for first in range(0, count, step):
        raise_if_interrupted()
        part, blocks = rows[first : first + step], out[first : first + step]
        library.ggml_quantize_chunk(
            number, part.data_ptr(), blocks.data_ptr(), 0, len(part), columns, factors
        )
        if not library.ggml_validate_row_data(number, blocks.data_ptr(), blocks.nbytes):
            low, high = (float(bound) for bound in torch.aminmax(part))
            raise NumberError(
                tr("a value cannot be quantized"),
                tensor=origin,
                expected=tr(
                    "values whose scales a float16 can hold, for {kind}", kind=kind.lower()
                ),
                found=tr("values from {low:g} to {high:g}", low=low, high=high),
                remedy=tr("write --outtype bf16 or f32"),
            )
