"""Small files that appear whole. No torch here: the tokenizer commands do without it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..interruption import raise_if_interrupted


def write_atomically(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into ``folder``, each beside its final name first, replacing what was there.

    A name may have a folder in front. Nothing is moved into place before everything has been
    written, and nothing unfinished stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: folder / name for name in contents}
    partials = {name: place.with_name(f".{place.name}.partial") for name, place in places.items()}
    try:
        for name, content in contents.items():
            partials[name].parent.mkdir(exist_ok=True)
            _write_durably(partials[name], content)
        raise_if_interrupted()
        for name, partial in partials.items():
            partial.replace(folder / name)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
