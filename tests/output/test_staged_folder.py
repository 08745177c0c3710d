"""The output folder keeps nothing of a run that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge.output.staged_folder import StagedFolder


def test_file_whose_opening_failed_half_way_is_removed(tmp_path: Path) -> None:
    beyond_memory = 1 << 62
    with (
        pytest.raises((OSError, OverflowError, MemoryError)),
        StagedFolder(tmp_path) as staged,
    ):
        staged.create("model.bin", buffer_bytes=beyond_memory)
    assert not list(tmp_path.iterdir())
