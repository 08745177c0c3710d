"""What commands print in Chinese: no words of a sentence stay English."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from tests.kit.inputs import Inputs, make_inputs
from tests.kit.models import base_tensors, save_base

# Two words in a row, or a label at the beginning of a line.
_ENGLISH = re.compile(
    r"\b(?!token id|dtype auto)[a-z]{2,} [a-z]{2,}\b|^ *[a-z]+ {2,}", re.MULTILINE
)
# Names of the field, which stay.
_LABELS = re.compile(r"^ *(delta|dtype|float64|sha256) {2,}", re.MULTILINE)


@dataclass
class Screen:
    """Runs commands in Chinese, and gives what they print, less the folder's name."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, line: str, code: int = 0) -> str:
        command, *words = line.split()
        main = import_module(f"merge.commands.{command}").main
        assert main([*words, "--lang", "zh"]) == code
        printed = self.capsys.readouterr()
        text = (printed.out + printed.err).replace(str(self.folder), "")
        assert re.search(r"[\u4e00-\u9fff]", text), text
        return text


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    made = make_inputs(tmp_path_factory.mktemp("screens"))
    save_base(made.folder / "tuned", {name: one * 1.5 for name, one in base_tensors().items()})
    return made


@pytest.fixture
def screen(inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> Screen:
    return Screen(inputs.folder, capsys)


def require_chinese(text: str) -> None:
    assert _ENGLISH.findall(_LABELS.sub("", text)) == [], text


def test_jobs_and_their_checks(inputs: Inputs, screen: Screen) -> None:
    base, lora, merged, to = inputs.base, inputs.llama, inputs.out, inputs.folder
    merge = f"merge_lora --base_model {base} --lora_model {lora} --output_type hf --output_dir"
    both = f"--base_model {base} --delta_model {to}/delta --delta_embeddings difference"
    for line in (
        f"{merge} {to}/planned --dry_run",
        f"{merge} {merged} --verify",
        f"verify_merge --output_dir {merged}",
        f"inspect_adapter {lora} --base_model {base}",
        f"report {merged}",
        f"make_delta --base_model {base} --target_model {to}/tuned --output_dir {to}/delta",
        f"apply_delta {both} --output_dir {to}/sum",
        f"convert_checkpoint --input {base} --output {to}/converted",
        f"resize_vocabulary --base_model {base} --tokenizer {base} --output_dir {to}/grown",
    ):
        require_chinese(screen(line))
    require_chinese(screen(f"compare_checkpoints {base} {merged}", code=1))
    weights = next(merged.glob("*.bin"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    require_chinese(screen(f"verify_merge --output_dir {merged}", code=1))


def test_refusals(inputs: Inputs, screen: Screen) -> None:
    base, lora, no, never = inputs.base, inputs.llama, inputs.folder / "no", inputs.folder / "never"
    (inputs.folder / "jobs.yaml").write_text("jobs: &a []\n", encoding="utf-8")
    for line in (
        f"merge_lora --base_model {no} --lora_model {lora} --output_dir {never}",
        f"merge_lora --base_model {base} --lora_model {base} --output_dir {never}",
        f"merge_lora --base_model {base} --lora_model {lora} --output_dir {never} --num_shards 3",
        f"merge_lora --base_model {base} --lora_model {lora} --output_dir {never} --max_memory 1",
        f"apply_delta --base_model {base} --delta_model {no} --output_dir {never}",
        f"make_delta --base_model {base} --target_model {no} --output_dir {never}",
        f"convert_checkpoint --input {no} --output {never}",
        f"resize_vocabulary --base_model {base} --tokenizer {no} --output_dir {never}",
        f"verify_merge --output_dir {base} --files_only",
        f"merge_many {inputs.folder}/jobs.yaml",
    ):
        require_chinese(screen(line, code=2))
    assert not never.exists()
