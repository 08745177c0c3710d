"""Changes of a file's bytes: small, in numbers that break readers, or of what lies inside."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

KINDS = ("flip", "set", "number", "cut", "insert", "remove", "double", "swap", "pack", "nothing")
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 32) - 1, 1 << 62)
NUMBERS = (*_NUMBERS, 1 << 63, (1 << 64) - 1, (1 << 64) - 2)
JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 10**400, -0.5, 1e308, float("inf")),
    *("", "\n", "0", "../x", "/etc/passwd", "\x1b[2J", "\ud800", "x" * 10_000, "(a+)+$", "("),
    *([], {}, [None], [[[]]], {"": None}, {"type": 3}, [1, 2], ["q_proj"], {"q_proj": -1}),
    *(float("nan"), 1e-320, 40, 41, 16, "float16", "linear", [0, 0], {"rope_type": []}),
    *(10**30, 1e30, 1 << 53, -(1 << 63), "1e999", [10**400], {"factor": 10**400}, ["float32"]),
)
# What a file of a folder may be called instead; some make it a folder of another layout.
NAMES = (
    *("config.json", "params.json", "tokenizer.model", "pytorch_model.bin", "model.safetensors"),
    *("consolidated.00.pth", "consolidated.07.pth", "consolidated.000.pth", "model.gguf"),
    *("pytorch_model-00001-of-00002.bin", "model.safetensors.index.json", "a\x1b[2Jb\n.bin"),
)


class Edit(NamedTuple):
    """One change: where (a part of 2^32 of the length) and with which value below 2^64."""

    kind: str
    place: int
    value: int


def random_edits(source: random.Random) -> list[Edit]:
    count = source.choice((1, 1, 1, 2, 3, 6))
    return [
        Edit(source.choice(KINDS), source.getrandbits(32), source.getrandbits(64))
        for _ in range(count)
    ]


def apply(edits: Sequence[Edit], content: bytes) -> bytes:
    """``content`` with every edit made, one after the other."""
    changed = bytearray(content)
    for edit in edits:
        _apply(edit, changed)
    return bytes(changed)


def _apply(edit: Edit, content: bytearray) -> None:
    place = edit.place * (len(content) + 1) >> 32
    length = 1 + edit.value % 16
    few = edit.value.to_bytes(8, "little")[: 1 + edit.value % 8]
    if edit.kind == "flip" and place < len(content):
        content[place] ^= 1 << edit.value % 8
    elif edit.kind == "set" and place < len(content):
        content[place] = edit.value % 256
    elif edit.kind == "number":
        width = "<BHIQ"[1 + edit.value % 4]
        size = struct.calcsize(width)
        number = NUMBERS[(edit.value >> 8) % len(NUMBERS)] & ((1 << 8 * size) - 1)
        content[place : place + size] = number.to_bytes(size, "little")
    elif edit.kind == "cut":
        del content[place:]
    elif edit.kind == "insert":
        content[place:place] = few
    elif edit.kind == "remove":
        del content[place : place + length]
    elif edit.kind == "double":
        content[place:place] = content[place : place + 8 * length]
    elif edit.kind == "swap":
        other = (edit.value % (1 << 32)) * (len(content) + 1) >> 32
        first, second = sorted((place, other))
        part = content[second : second + length]
        content[first : first + length] = part


def apply_inside_zip(edits: Sequence[Edit], content: bytes) -> bytes:
    """Change one record of an archive, or its name, and pack it again with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = edits[0].value % 4  # mostly the pickle, which is the first
    number = 0 if chosen else edits[0].place % len(records)
    name, data = records[number]
    records[number] = (name, apply(edits, data))
    methods = (zipfile.ZIP_STORED,) * 6 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", methods[edits[-1].value % len(methods)]) as archive:
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data, archive.compression)
    return buffer.getvalue()


def apply_to_json(edits: Sequence[Edit], content: bytes) -> bytes:
    """Put a value of another kind in a place of a JSON document, or change its bytes."""
    value = json.loads(content)
    for edit in edits:
        if edit.kind in ("flip", "set", "cut", "insert", "swap"):
            return apply(edits, json.dumps(value).encode())
        _replace(value, edit)
    return json.dumps(value).encode()


def apply_to_values(edits: Sequence[Edit], content: bytes) -> bytes:
    """Put values of other kinds in places of a JSON document, which stays one."""
    value = json.loads(content)
    for edit in edits:
        _replace(value, edit)
    return json.dumps(value).encode()


def apply_in_folder(edits: Sequence[Edit], content: bytes) -> bytes:
    """Change one file of a packed folder by the rules of its kind, rename it, or leave it out."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    name = list(files)[edits[0].place % len(files)]
    data, what = files[name], edits[-1].value % 16
    if what == 0:
        del files[name]
    elif what == 1:
        files[NAMES[(edits[0].value >> 8) % len(NAMES)]] = files.pop(name)
    elif name.endswith(".json"):
        files[name] = apply_to_json(edits, data)
    elif name.endswith((".pth", ".bin")) and what % 2:
        files[name] = apply_inside_zip(edits, data)
    else:
        files[name] = apply(edits, data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def _replace(value: Any, edit: Edit) -> None:
    place = edit.place
    while isinstance(value, (dict, list)) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        place, index = divmod(place, len(keys))
        child = value[keys[index]]
        if not isinstance(child, (dict, list)) or not child or edit.value % 3 == 0:
            if edit.kind == "remove":
                del value[keys[index]]
            else:
                value[keys[index]] = deepcopy(JSON_VALUES[(edit.value >> 8) % len(JSON_VALUES)])
            return
        value = child
