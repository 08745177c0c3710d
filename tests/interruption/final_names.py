"""What readers would make of a folder that a stopped run has left."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

# What transformers, Meta's code, llama.cpp and its converters open first.
DOORS = (
    *("config.json", "params.json", "*.index.json", "merge_manifest.json"),
    *("consolidated.00.pth", "*-00001-of-*"),
)
WEIGHTS = ("*.pth", "*.bin", "*.safetensors", "*.gguf")


def require_nothing_half(found: Mapping[str, object], *results: Mapping[str, object]) -> None:
    """Under final names are files of one result alone, and a door only where all weights are.

    All are contents by name. Raises ``RuntimeError``.
    """
    shown = {name: content for name, content in found.items() if not name.startswith(".")}
    for result in results:
        if shown.items() <= result.items():
            doors = _like(DOORS, shown)
            missing = _like(WEIGHTS, result) - shown.keys()
            if doors and missing:
                raise RuntimeError(f"{sorted(doors)} without {sorted(missing)}")
            return
    raise RuntimeError(f"files that are not whole, or of two results: {sorted(shown)}")


def _like(patterns: tuple[str, ...], names: Mapping[str, object]) -> set[str]:
    return {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
