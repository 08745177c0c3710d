"""The metadata of a GGUF file against the inputs: what llama.cpp will take the model to be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import VerificationError
from ..layouts.gguf.reading import ROTARY_FACTORS, gguf_files, together
from ..layouts.model_folder import ModelFolder
from ..tokenizers.huggingface import MODEL_NAME
from .demands import ID, Demand, Described, demanded
from .rotary_factors import check_rotary_factors, is_known
from .tokens import PUT_BACK, SCORES, TOKENS, TYPES, check_tokens, lists_beside, token_list
from .verify import Findings

# Looked at when the file is opened, or of the container alone.
_CONTAINER = ("general.architecture", "general.alignment", "split.")


def check_metadata(folder: Path, rows: int, described: Described) -> Findings:
    """Hold the metadata and rotary factors of the GGUF model in ``folder`` against its inputs.

    ``rows`` are those of its embeddings. Keys that no input says anything of are told as not
    checked. Raises ``LayoutError`` and ``FormatError`` for files that cannot be opened.
    """
    files = gguf_files(ModelFolder(folder))
    metadata, tensors = together(files, "auto")
    demands = demanded(rows, described)
    found = Findings()
    found.faults += _disobeyed(metadata, demands, files[0])
    found.faults += _ids(metadata, demands, rows, files[0])
    found.faults += check_rotary_factors(tensors.get(ROTARY_FACTORS), described, files[0])
    if not is_known(described.config):
        found.unchecked.append(f"rotary scaling, of a kind not known here: {described.config_file}")
    seen = {*demands, *_tokens(metadata, rows, described, files[0], found)}
    sources = [described.config_file.name, *([MODEL_NAME] if described.tokenizer else [])]
    count = len(seen & metadata.keys())
    found.checked.append(f"metadata   {count} keys against {' and '.join(sources)}")
    rest = [key for key in metadata if key not in seen and not key.startswith(_CONTAINER)]
    if rest:
        found.unchecked.append(f"metadata that no input says: {', '.join(rest)}")
    return found


def _disobeyed(
    metadata: Mapping[str, Any], demands: Mapping[str, Demand], path: Path
) -> Iterator[VerificationError]:
    for key, demand in demands.items():
        found = metadata.get(key, demand.missing)
        if not any(_equal(found, value) for value in demand.permitted):
            default = f", which llama.cpp takes for {_shown(demand.missing)}"
            there = f"no {key}" + (default if demand.missing is not None else "")
            wanted = demand.permitted[0]
            yield VerificationError(
                "the metadata of the GGUF file are not those of the model that went in",
                file=path,
                expected=(f"no {key}" if wanted is None else f"{key} {_shown(wanted)}")
                + f", by {demand.source}",
                found=f"{key} {_shown(metadata[key])}" if key in metadata else there,
                remedy=PUT_BACK,
            )


def _equal(found: object, wanted: object) -> bool:
    """The same type and value; numbers with a point as far as float32 keeps them.

    llama.cpp refuses a number of another type, and ``True`` is no 1.
    """
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return type(found) is type(wanted) and found == wanted


def _shown(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else f"{value!r:.80}"


def _ids(
    metadata: Mapping[str, Any], demands: Mapping[str, Demand], rows: int, path: Path
) -> Iterator[VerificationError]:
    """Ids of special tokens that no input says must be tokens at least."""
    for key, value in metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith(ID) and key not in demands
        if is_id and not (type(value) is int and 0 <= value < rows):
            yield VerificationError(
                "the GGUF file names a special token that is no token",
                file=path,
                expected=f"{key} from 0 to {rows - 1}",
                found=f"{key} {_shown(value)}",
                remedy=PUT_BACK,
            )


def _tokens(
    metadata: Mapping[str, Any], rows: int, described: Described, path: Path, found: Findings
) -> tuple[str, ...]:
    """Check the lists of tokens; return the keys that were checked, whole or in part.

    A list of tokens that is none, or of another length, is told by ``check_vocabulary``.
    """
    try:
        count = len(token_list(metadata, path))
    except VerificationError:
        return (TOKENS,)
    misfits = list(lists_beside(metadata, rows, path))
    found.faults += misfits
    if described.tokenizer is None:
        found.unchecked.append(f"tokens, their scores, types and special ids: no {MODEL_NAME}")
        return ()
    if misfits or count != rows:
        return TOKENS, SCORES, TYPES
    faults, strangers = check_tokens(metadata, described.tokenizer, path)
    found.faults += faults
    if strangers:
        found.unchecked.append(
            f"{len(strangers)} tokens from {strangers[0]} on: not in {described.tokenizer.path}"
        )
    return TOKENS, SCORES, TYPES
