"""What describes the inputs is opened once in a merge, and each folder is listed once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.kit.adapters import make_adapter
from tests.kit.llamas import make_base
from tests.kit.run import run_python
from tests.kit.tokenizer_models import write_tokenizer

COUNT = Path(__file__).with_name("count_opens.py")
DESCRIBING = ("config.json", "adapter_config.json", "params.json", "generation_config.json")


def counted(folder: Path, **keywords: Any) -> dict[str, int]:
    """How often each path below ``folder`` was opened or listed, by its path relative to it."""
    done = run_python(COUNT, json.dumps(keywords, default=str))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    top = folder.resolve()
    return {
        Path(path).relative_to(top).as_posix() + ("/" if path.endswith(os.sep) else ""): count
        for path, count in found.items()
        if Path(path).is_relative_to(top)
    }


@pytest.mark.parametrize("output_type", ["pth", "huggingface", "gguf"])
def test_configurations_and_folders_are_read_once(tmp_path: Path, output_type: str) -> None:
    base = make_base(tmp_path / "base")
    write_tokenizer(base, 101)
    adapters = [make_adapter(tmp_path / f"lora{n}", base, seed=n) for n in (1, 2)]
    keywords = {
        "base_model": base,
        "lora_model": adapters,
        "output_dir": tmp_path / "out",
        "output_type": output_type,
    }
    for run in ({}, {"overwrite": True}):
        counts = counted(tmp_path, **keywords, **run)
        folders = {"base/", "lora1/", "lora2/", "out/"}
        assert {name: counts.get(name) for name in folders} == dict.fromkeys(folders, 1)
        read = {name: count for name, count in counts.items() if Path(name).name in DESCRIBING}
        inputs = {name: count for name, count in read.items() if not name.startswith("out/")}
        assert inputs.keys() >= {
            "base/config.json",
            "lora1/adapter_config.json",
            "lora2/adapter_config.json",
        }
        assert set(inputs.values()) == {1}, inputs


def test_a_resumed_run_reads_the_journal_once_and_then_appends_to_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    write_tokenizer(base, 101)
    adapter = make_adapter(tmp_path / "lora", base)
    journal = tmp_path / "out" / ".merge_journal"
    keywords = {"base_model": base, "lora_model": adapter, "output_dir": tmp_path / "out"}
    assert counted(tmp_path, **keywords)["out/.merge_journal"] == 1, "made, and never read"
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    journal.write_text('{"format": 1}\n', encoding="utf-8")
    assert counted(tmp_path, **keywords, resume=True)["out/.merge_journal"] == 2
