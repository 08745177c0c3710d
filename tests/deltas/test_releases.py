"""Adapters that older PEFT releases wrote, and the logits they gave (``frozen/make.py``)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merge import merge_lora
from tests.deltas.frozen.make import IDS, KINDS
from tests.deltas.making import load
from tests.tiny import write_tokenizer

FROZEN = Path(__file__).with_name("frozen")
ADAPTERS = sorted(path.parent for path in FROZEN.glob("peft-*/*/logits.safetensors"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen") / "base"
    shutil.copytree(FROZEN / "base", folder)
    write_tokenizer(folder, 40)
    return folder


def test_every_kind_is_there_from_some_release() -> None:
    assert {path.name for path in ADAPTERS} == KINDS.keys()


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda path: f"{path.parent.name} {path.name}")
def test_merged_model_says_what_the_release_said(tmp_path: Path, base: Path, adapter: Path) -> None:
    merge_lora(base, adapter, tmp_path, output_type="huggingface", dtype="float32")
    with torch.no_grad():
        logits = load(tmp_path)(IDS).logits
    expected = load_file(adapter / "logits.safetensors")["logits"]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
