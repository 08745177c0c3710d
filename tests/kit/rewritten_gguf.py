"""GGUF files with other metadata or tensors, written by the package ``gguf``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

_KINDS = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}


def rewrite_gguf(
    source: Path,
    target: Path,
    values: Mapping[str, object] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    add: str = "",
) -> Path:
    """Copy a file with other ``values`` of metadata (None leaves one out), in the types that
    llama.cpp's converters store their like in, and other ``names`` of tensors (empty: left out).
    ``add`` names a copy of the first tensor.
    """
    reader = gguf.GGUFReader(source)
    kept = {
        key: (field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    kept |= {key: _give_type(value) for key, value in (values or {}).items()}
    writer = gguf.GGUFWriter(target, kept.pop("general.architecture")[0])
    for key, (value, kind, entry) in kept.items():
        if value is not None:
            writer.add_key_value(key, value, kind, entry)
    for tensor in reader.tensors:
        if name := (names or {}).get(tensor.name, tensor.name):
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    if add:
        writer.add_tensor(add, reader.tensors[0].data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _give_type(value: object) -> tuple[object, Any, Any]:
    if value is None:
        return None, None, None
    entry = _find_type(value[0]) if isinstance(value, list) else None
    return value, _find_type(value), entry


def _find_type(value: object) -> Any:
    return gguf.GGUFValueType[_KINDS[type(value)]]
