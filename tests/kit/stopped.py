"""A tiny merge that can be stopped anywhere, and what it should have become."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from merge import merge_lora
from merge.jobs.job_report import Report


@dataclass
class Merging:
    """Inputs, and the calls that merge them into ``out``."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def adapter(self) -> Path:
        return self.folder / "llama"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def merge(self, **options: Any) -> Report:
        """Merge, with this case's options and others."""
        everything = {"output_dir": self.out} | self.options | options
        return merge_lora(self.base, self.adapter, **everything)

    def stop(self, at: int) -> str:
        """Merge, and be interrupted when ``at`` bytes are written; return what is then told."""

        def progress(written: int, _: int) -> None:
            if written >= at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            self.merge(on_progress=progress)
        return str(caught.value)

    def whole(self) -> dict[str, bytes]:
        """The files that an uninterrupted run writes."""
        folder = self.folder / "whole"
        if not folder.exists():
            self.merge(output_dir=folder, overwrite=False)
        return contents(folder)

    @property
    def nbytes(self) -> int:
        """How many bytes of tensors a whole run writes."""
        return self.merge(dry_run=True, output_dir=self.folder / "none").plan.tensor_bytes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def limited_file_size(nbytes: int) -> Iterator[None]:
    """As if the disk were full; POSIX only. No bytecode is stored, which would be cut off too."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    stores_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = stores_none


def patch_os(patch: pytest.MonkeyPatch, name: str, function: Callable[..., None]) -> None:
    """Replace a function of ``os``, also where ``Path`` looks for it."""
    patch.setattr(os, name, function)
    if sys.version_info < (3, 11):
        import pathlib

        accessor = pathlib._NormalAccessor  # type: ignore[attr-defined]
        patch.setattr(accessor, name, staticmethod(function))


@contextmanager
def interrupted_at(number: int, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt where a name in ``folder`` is given or taken away for the time after ``number``."""
    left = number

    def counted(act: Callable[..., None]) -> Callable[..., None]:
        def acting(*paths: Path, **options: int) -> None:
            nonlocal left
            last = Path(paths[-1])
            if last.parent == folder and not last.name.startswith("."):
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
            act(*paths, **options)

        return acting

    with patch.context() as inner:
        for name in ("replace", "unlink"):
            patch_os(inner, name, counted(getattr(os, name)))
        yield
