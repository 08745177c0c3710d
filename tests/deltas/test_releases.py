"""Adapters that older PEFT releases wrote, and the logits they gave (``frozen/make.py``)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merge import merge_lora, verify_merge
from merge.errors import AdapterError
from tests.deltas.frozen.make import IDS, KINDS
from tests.kit.adapters import load
from tests.kit.tokenizer_models import write_tokenizer

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


# Until PEFT 0.17 no release is recorded, and these are other adapters to other releases.
TOLD_BY_NOBODY = [FROZEN / "peft-0.13.2" / "overlapping-patterns"]


def logits_of_merged(base: Path, adapter: Path, out: Path) -> torch.Tensor:
    options = {"dtype": "float32", "ignore_file": "logits.safetensors"}
    options |= {"allow_unknown_combination": True}  # its norms are random, as a difference's
    merge_lora(base, adapter, out, output_type="huggingface", **options)
    with torch.no_grad():
        logits: torch.Tensor = load(out)(IDS).logits
    return logits


@pytest.mark.parametrize(
    "adapter",
    [path for path in ADAPTERS if path not in TOLD_BY_NOBODY],
    ids=lambda path: f"{path.parent.name} {path.name}",
)
def test_merged_model_says_what_the_release_said(tmp_path: Path, base: Path, adapter: Path) -> None:
    logits = logits_of_merged(base, adapter, tmp_path)
    expected = load_file(adapter / "logits.safetensors")["logits"]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", TOLD_BY_NOBODY, ids=lambda path: path.parent.name)
def test_patterns_that_releases_read_differently_need_the_release(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "lora"))
    options = {"ignore_file": "logits.safetensors", "allow_unknown_combination": True}
    with pytest.raises(AdapterError, match="which one trained the adapter") as caught:
        merge_lora(base, copy, tmp_path / "out", **options)
    assert '"peft_version": "0.13.2"' in caught.value.facts["remedy"]
    assert "q_proj" in caught.value.facts["found"]
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"peft_version": "0.13.2"}), encoding="utf-8")
    expected = load_file(adapter / "logits.safetensors")["logits"]
    logits = logits_of_merged(base, copy, tmp_path / "out")
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    verified = verify_merge(tmp_path / "out", base_model=base, lora_model=[copy])
    assert not verified.faults
