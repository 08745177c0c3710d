"""``inspect_adapter`` as a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import (
    LLAMA_ROWS,
    ROOT,
    adapter_tensors,
    run_merge,
    save_adapter,
    save_base,
)

SCRIPT = ROOT / "scripts" / "inspect_adapter.py"


def test_what_an_adapter_is_and_whether_it_fits(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "lora", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    done = run_merge(adapter, "--base_model", base, script=SCRIPT)
    assert done.returncode == 0, done.stderr
    for words in (
        "LORA, PEFT 0.2",
        "q_proj: rank 2 x 2, in 2 tensors",
        f"vocabulary {LLAMA_ROWS} rows",
        "float16",
        "not known by this digest",
        "grows      lm_head.weight: 40 to 56 rows",
    ):
        assert words in done.stdout


@pytest.mark.parametrize("fields", [{"peft_type": "ADALORA"}, {"use_dora": True}])
def test_refusal_is_foretold(tmp_path: Path, fields: dict[str, object]) -> None:
    adapter = save_adapter(tmp_path / "lora", adapter_tensors(), **fields)
    done = run_merge(adapter, script=SCRIPT)
    assert done.returncode == 1
    assert "refused" in done.stdout


def test_folder_without_an_adapter(tmp_path: Path) -> None:
    done = run_merge(tmp_path, script=SCRIPT)
    assert done.returncode == 2
    assert "no adapter configuration" in done.stderr
