"""Tiny real files of every kind, and what may become of reading a changed one.

Reading ends in one of two ways: the values that somebody else's software reads from the same
bytes, or an exception of ``merge/errors.py`` that is one message. Everything else is a finding.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import gguf
import numpy as np
import safetensors.torch
import torch

from merge import merge_lora
from merge.errors import MergeError
from merge.formats import open_container
from merge.storage.offload import Offload
from merge.tensors.lazy import LazyTensor
from tests.fuzz.edits import Edit, apply, apply_inside_zip, apply_to_json, random_edits
from tests.kit.files import save_tensors, write_json
from tests.kit.models import BASE_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.tokenizer_models import tokenizer_model

Tensors = Mapping[str, torch.Tensor]
Change = Callable[[Sequence[Edit], bytes], bytes]
# A file of a few kilobytes may speak of more only by repeating elements; that is not read here.
_MOST_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Subject:
    """A file, how it is changed, and the test of what reading the changed bytes does.

    ``check`` gets the changed bytes and an empty folder; it returns whether they were read.
    """

    content: bytes
    change: Change
    check: Callable[[bytes, Path], bool]


def try_input(subject: Subject, edits: Sequence[Edit], folder: Path) -> bool:
    """Whether the changed file was read; an exception that is none of ours is a finding."""
    return subject.check(subject.change(edits, subject.content), folder)


def _state() -> dict[str, torch.Tensor]:
    whole = torch.arange(60, dtype=torch.float32).view(6, 10) / 7
    return {
        "model.embed_tokens.weight": whole.half(),
        "columns": whole[:, 2:5],
        "turned": whole.t(),
        "brain": whole[1:3].bfloat16().clone(),
        "scalar": torch.tensor(2.5),
        "count": torch.arange(3),
        "名": torch.zeros(0, 4),
    }


def _theirs(content: bytes, kind: str) -> Tensors | None:
    """What torch, safetensors or gguf reads; None where they refuse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "torch":
                return _torch(content)
            if kind == "safetensors":
                return safetensors.torch.load(content)
            return _gguf(content)
    except Exception:  # noqa: BLE001 - theirs may be any
        return None


def _torch(content: bytes) -> Tensors | None:
    """torch refuses LZMA and strange names of records that it never opens: those are left out."""
    try:
        value = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (RuntimeError, ValueError):
        value = torch.load(
            io.BytesIO(_packed_again(content)), weights_only=True, map_location="cpu"
        )
    return _unwrapped(value)


def _packed_again(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as plain:
        for info in archive.infolist():
            if info.filename.startswith(("archive/data", "archive/byteorder")):
                info.CRC = None  # type: ignore[assignment] # as torch, which looks at none
                plain.writestr(info.filename, archive.read(info))
        plain.writestr("archive/version", "3\n")
    return buffer.getvalue()


def _unwrapped(value: object) -> Tensors | None:
    for wrapper in ("model", "state_dict", "module"):
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
    return value if isinstance(value, Mapping) else None


def _gguf(content: bytes) -> Tensors:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.gguf")
        path.write_bytes(content)
        reader = gguf.GGUFReader(path)
        found = {}
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            shape = [int(n) for n in tensor.shape][::-1]
            found[tensor.name] = torch.from_numpy(np.array(values)).reshape(shape)
    return found


def _container(name: str, kind: str) -> Callable[[bytes, Path], bool]:
    def check(content: bytes, folder: Path) -> bool:
        path = folder / name
        path.write_bytes(content)
        try:
            with Offload(None, folder) as offload:
                ours = {key: _read(lazy) for key, lazy in open_container(path, offload).items()}
        except MergeError as error:
            require_short_message(error)
            return False
        theirs = _theirs(content, kind)
        if theirs is None:  # a part that we do not look at: then nothing may have changed
            theirs = _theirs(_files()[name][0], kind)
        assert theirs is not None
        require_same(ours, theirs)
        return True

    return check


def _read(lazy: LazyTensor) -> torch.Tensor | None:
    elements = prod(lazy.shape)
    return lazy.read().reshape(lazy.shape) if elements <= _MOST_ELEMENTS else None


def require_same(ours: Mapping[str, torch.Tensor | None], theirs: Tensors) -> None:
    assert set(ours) == set(theirs)
    for name, mine in ours.items():
        if mine is None:
            continue
        other = theirs[name].detach()
        if mine.dtype != other.dtype and mine.dtype == torch.bfloat16:
            mine = mine.float()  # gguf has no bfloat16 of its own
        if mine.dtype != other.dtype:
            mine, other = mine.float(), other.float()
        assert mine.shape == other.shape, name
        same = mine.eq(other)
        if mine.is_floating_point():  # to convert may change which NaN it is
            same |= mine.isnan() & other.isnan()
        assert bool(same.all()), name


def is_planned(base: Path, adapter: Path, out: Path) -> bool:
    """Whether a merge of these would be made; if not, it is refused in one message."""
    try:
        merge_lora(base, adapter, out, output_type="huggingface", dry_run=True)
    except MergeError as error:
        require_short_message(error)
        return False
    return True


def require_short_message(error: MergeError) -> None:
    """Printable lines: a sentence, its facts, of which sizes and the remedy may be lists."""
    lines = str(error).splitlines()
    spread = sum(error.facts.get(fact, "").count("\n") for fact in ("sizes", "remedy"))
    assert len(lines) == 1 + len(error.facts) + spread, lines
    assert all(line.isprintable() for line in lines), lines
    assert len(str(error)) < 40_000


@lru_cache(maxsize=1)
def _files() -> dict[str, tuple[bytes, str]]:
    """Content and kind of one small file of each container."""
    state, files = _state(), {}
    for name, zipped in (("zip.bin", True), ("legacy.bin", False)):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        files[name] = buffer.getvalue(), "torch"
    whole = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    files["w.safetensors"] = safetensors.torch.save(whole), "safetensors"
    files["w.gguf"] = _gguf_bytes(), "gguf"
    return files


def _gguf_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(64)
        writer.add_array("tokenizer.ggml.tokens", ["<unk>", "<s>", "中"])
        writer.add_array("tokenizer.ggml.scores", [0.0, 0.5, -1.0])
        values = np.arange(128, dtype=np.float32).reshape(2, 64) / 7
        writer.add_tensor("token_embd.weight", values)
        writer.add_tensor("half", values.astype(np.float16))
        q8 = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor("q8", gguf.quants.quantize(values, q8), raw_dtype=q8)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def containers() -> dict[str, Subject]:
    """Weight files, changed byte by byte, and archives changed inside too."""
    made = {
        name: Subject(content, apply, _container(name, kind))
        for name, (content, kind) in _files().items()
    }
    made["zip.bin, inside"] = Subject(
        made["zip.bin"].content, apply_inside_zip, made["zip.bin"].check
    )
    return made


def _model(folder: Path) -> tuple[Path, Path]:
    base = save_base(folder / "base", base_tensors(), pieces=BASE_ROWS)
    write_json(base / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2]})
    (base / "pytorch_model.bin").unlink()
    save_tensors(base / "model-00001-of-00001.safetensors", base_tensors())
    names = dict.fromkeys(base_tensors(), "model-00001-of-00001.safetensors")
    write_json(
        base / "model.safetensors.index.json",
        {"metadata": {"total_size": 1, "by": "a"}, "weight_map": names},
    )
    adapter = save_adapter(folder / "adapter", adapter_tensors(), pieces=BASE_ROWS)
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    more = {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {"0": {"content": "<unk>"}},
    }
    write_json(adapter / "tokenizer_config.json", tokens | more)
    write_json(adapter / "special_tokens_map.json", tokens)
    write_json(adapter / "added_tokens.json", {})
    return base, adapter


DOCUMENTS = (
    "base/config.json",
    "base/generation_config.json",
    "base/model.safetensors.index.json",
    "adapter/adapter_config.json",
    "adapter/tokenizer_config.json",
    "adapter/special_tokens_map.json",
    "adapter/added_tokens.json",
    "adapter/config.json",
)


def documents(folder: Path) -> dict[str, Subject]:
    """The small files of a merge, each changed while the others stay; planned, not written."""
    base, adapter = _model(folder)
    full = json.loads((base / "config.json").read_text(encoding="utf-8"))
    full |= {"rope_theta": 1e4, "rope_scaling": None, "head_dim": 4, "pad_token_id": 0}
    write_json(folder / "config.json", full)

    def subject(name: str) -> Subject:
        path = folder / name
        source = path if path.is_file() else folder / "config.json"
        content = source.read_bytes()

        def check(changed: bytes, _: Path) -> bool:
            before = path.read_bytes() if path.is_file() else None
            path.write_bytes(changed)
            try:
                return is_planned(base, adapter, folder / "out")
            finally:
                path.unlink() if before is None else path.write_bytes(before)

        return Subject(content, apply_to_json, check)

    made = {name: subject(name) for name in DOCUMENTS}
    model = subject("adapter/tokenizer.model")
    made["adapter/tokenizer.model"] = Subject(tokenizer_model(BASE_ROWS), apply, model.check)
    return made


def zipped_adapter(folder: Path) -> Subject:
    """An adapter folder in an archive."""
    base, adapter = _model(folder)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(adapter.iterdir()):
            archive.write(path, f"chinese/{path.name}")

    def check(changed: bytes, at: Path) -> bool:
        path = at / "adapter.zip"
        path.write_bytes(changed)
        return is_planned(base, path, folder / "out")

    return Subject(buffer.getvalue(), apply, check)


def all_subjects(folder: Path) -> dict[str, Subject]:
    """Every kind of file."""
    made = containers() | documents(folder / "documents")
    return made | {"adapter.zip": zipped_adapter(folder / "zipped")}


def edits_of(seed: int) -> list[Edit]:
    return random_edits(random.Random(seed))
