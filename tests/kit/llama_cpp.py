"""llama.cpp's own software for tests: its converters as scripts, and what they wrote."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from merge.errors import UsageError
from merge.formats import InputFile
from merge.formats import gguf as container
from merge.formats.ggml import load_library

CONVERTERS = "CHINESE_LLAMA_MERGE_LLAMA_CPP"
LEGACY, HUGGINGFACE, LORA = "convert_legacy_llama", "convert_hf_to_gguf", "convert_lora_to_gguf"
# What is written here beyond the converter's keys; docs/llama_cpp.md says why.
_BEYOND = ("general.base_model.", "tokenizer.ggml.unknown_token_id")
_DRIVER = Path(__file__).with_name("llama_cpp_converters.py")
# Not in this folder: there, this module would hide the package llama_cpp.
_QUANTIZER = Path(__file__).parents[1] / "oracles" / "llama_cpp_quantizer.py"


class Conversion(NamedTuple):
    """What a converter made of a folder: why it stopped, or None, and what it warned of."""

    outfile: Path
    error: str | None
    warnings: list[str]


def converters() -> Path:
    """The folder of llama.cpp's converters, or skip."""
    folder = Path(os.environ.get(CONVERTERS, ".oracles/llama.cpp"))
    if not (folder / "convert_hf_to_gguf.py").is_file():
        pytest.skip("llama.cpp's converters are not there: make llama_cpp fetches them")
    return folder.resolve()


def convert(jobs: Sequence[Sequence[object]]) -> list[Conversion]:
    """Run ``(converter, folder, "--outfile", path, *options)`` one after the other.

    All in one process, whose imports take much longer than a tiny model does.
    """
    if any(not list(converters().rglob(f"{job[0]}.py")) for job in jobs):
        pytest.skip("a converter of llama.cpp is not there: make llama_cpp fetches it")
    done = subprocess.run(
        [sys.executable, str(_DRIVER), str(converters())],
        input=json.dumps([[str(word) for word in job] for job in jobs]),
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return [
        Conversion(Path(str(job[3])), result["error"], result["warnings"])
        for job, result in zip(jobs, results, strict=True)
    ]


def gguf_contents(path: Path) -> dict[str, Any]:
    """What makes a model in a GGUF file: metadata that is not a name, texts of tokens, tensors."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    left_out = ("GGUF.", "general.", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
    contents = {name: value for name, value in fields.items() if not name.startswith(left_out)}
    for tensor in reader.tensors:
        digest = hashlib.sha256(tensor.data.tobytes()).hexdigest()
        contents[f"tensor {tensor.name}"] = (tensor.tensor_type.name, tuple(tensor.shape), digest)
    return contents


def skip_without_quantizer() -> None:
    """Skip a test where llama.cpp's library is not installed."""
    try:
        load_library()
    except UsageError:
        pytest.skip("llama.cpp is not installed: make llama_cpp compiles it")


def quantize(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run llama.cpp's quantizer, or skip; see ``llama_cpp_quantizer.py``."""
    if find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not installed: make llama_cpp compiles it")
    done = subprocess.run(
        [sys.executable, str(_QUANTIZER)],
        input=json.dumps(list(jobs), default=str),
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert not [answer["log"] for answer in answers if answer["code"]]
    return answers


def require_equal_files(ours: Path, theirs: Path) -> None:
    """Every key of the converter's file with its type and value, in its order; every tensor."""
    from gguf import GGUFReader

    one, other = GGUFReader(ours), GGUFReader(theirs)
    mine = {key: (value.types, value.contents()) for key, value in one.fields.items()}
    wanted = {key: (value.types, value.contents()) for key, value in other.fields.items()}
    count = "GGUF.kv_count"
    assert {k: mine.get(k) for k in wanted if k != count} == {
        k: v for k, v in wanted.items() if k != count
    }
    assert [key for key in mine if key in wanted] == list(wanted)
    assert [key for key in mine if key not in wanted and not key.startswith(_BEYOND)] == []
    assert [_told(tensor) for tensor in one.tensors] == [_told(tensor) for tensor in other.tensors]
    for tensor, expected in zip(one.tensors, other.tensors, strict=True):
        assert tensor.data.tobytes() == expected.data.tobytes(), tensor.name


def require_equal_contents(ours: Path, theirs: Path) -> None:
    """The same, read by the reader here: the package's takes minutes over 128,256 tokens."""
    mine, wanted = (container.read(InputFile(path)) for path in (ours, theirs))
    found = {key: value for key, value in mine.metadata.items() if not key.startswith(_BEYOND)}
    assert found == wanted.metadata
    assert list(found) == list(wanted.metadata)
    assert {k: type(v) for k, v in found.items()} == {
        k: type(v) for k, v in wanted.metadata.items()
    }
    assert list(mine.tensors) == list(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        assert container.get_type_name(mine.tensors[name]) == container.get_type_name(tensor), name
        assert torch.equal(mine.tensors[name].read(), tensor.read()), name


def _told(tensor: Any) -> tuple[str, int, list[int]]:
    return tensor.name, int(tensor.tensor_type), tensor.shape.tolist()
