"""Options and names as people paste them: taken, and answered about this command alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from merge import convert_checkpoint
from merge.errors import VocabularyError
from merge.untrusted.strict_json import read_json
from tests.kit.models import adapter_tensors, save_adapter, save_base
from tests.kit.run import run_merge
from tests.kit.tokenizer_models import tokenizer_model


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("output_type", ["pth", "huggingface", "gguf"])
def test_names_that_are_no_utf8(tmp_path: Path, output_type: str) -> None:
    """Zip files of a Chinese Windows, unpacked on Linux: names in GBK."""
    above = tmp_path / os.fsdecode("模型".encode("gbk"))
    base, lora = save_base(above / "base"), save_adapter(above / "lora")
    words = ("--base_model", base, "--lora_model", lora, "--output_dir", above / "out")
    done = run_merge(*words, "--output_type", output_type, "--verify", LANG="C")
    assert done.returncode == 0, done.stderr
    manifest = read_json(above / "out/merge_manifest.json")
    assert manifest["inputs"]["base_model"]["source"] == str(base)
    assert r"\udcd0\udccd" in (above / "out/merge_manifest.json").read_text(encoding="utf-8")
    again = run_merge(*words, "--output_type", output_type, "--resume")
    assert again.returncode == 0, again.stderr
    assert "complete already" in again.stdout
    (above / "out/merge_manifest.json").unlink()
    (base / "config.json").unlink()
    failed = run_merge(*words, "--overwrite")
    assert failed.returncode == 2
    assert r"\udcd0\udccd" in failed.stderr


def test_negative_weights_in_one_word(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    loras = [save_adapter(tmp_path / n, adapter_tensors(seed=s)) for n, s in (("a", 1), ("b", 2))]
    words = ("--base_model", base, "--lora_model", *loras, "--output_dir")
    for name, given in {"one": ["-1,0.5"], "two": ["-1", "0.5"], "exp": ["-1e0,.5"]}.items():
        done = run_merge(*words, tmp_path / name, "--lora_weights", *given)
        assert done.returncode == 0, done.stderr
    found = [
        (tmp_path / name / "consolidated.00.pth").read_bytes() for name in ("one", "two", "exp")
    ]
    assert found[0] == found[1] == found[2]


def test_options_of_pasted_recipes_are_taken_and_told(tmp_path: Path) -> None:
    base, lora = save_base(tmp_path / "base"), save_adapter(tmp_path / "lora")
    words = ("--base_model", base, "--lora_model", lora, "--output_dir", tmp_path / "out")
    done = run_merge(*words, "--model_size", "13B", "--model_type", "auto")
    assert done.returncode == 0, done.stderr
    assert "--model_size changes nothing here" in done.stdout
    assert "--model_type changes nothing here" in done.stdout


def test_conversion_names_no_option_of_another_command(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    (base / "tokenizer.model").write_bytes(tokenizer_model(60))
    with pytest.raises(VocabularyError) as caught:
        convert_checkpoint(base, tmp_path / "out")
    assert "--new_token_init" not in str(caught.value)
    assert "resize_llama_vocabulary.py" in caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()
