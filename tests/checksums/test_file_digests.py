"""SHA-256 of whole files: each file is read once, and again when it has changed."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from merge.checksums.file_digests import get_file_digest


def test_file_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    path, other = tmp_path / "adapter_model.bin", tmp_path / "other"
    for file in (path, other):
        file.write_text(file.name[:5], encoding="utf-8")
        os.utime(file, ns=(0, 0))
    assert get_file_digest(path) == sha256(b"adapt").hexdigest()
    other.replace(path)
    assert get_file_digest(path) == sha256(b"other").hexdigest()
