"""Messages offer what was probably meant, and say where the documentation says more."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge.errors import Topic
from tests.kit.inputs import Inputs
from tests.kit.pages import anchor
from tests.kit.run import ROOT, run_merge


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--output_type", "hugingface"), "did you mean huggingface?"),
        (("--rounding", "per-adapter"), "did you mean per_adapter?"),
        (("--ouput_type", "hf"), "did you mean --output_type by --ouput_type?"),
        (("--num_shard=2",), "did you mean --num_shards by --num_shard?"),
        (("--outtype", "q8-0", "--output_type", "gguf"), "did you mean q8_0?"),
    ],
)
def test_misspelt_option_or_value_names_the_one_that_is_meant(
    inputs: Inputs, tmp_path: Path, words: tuple[str, ...], meant: str
) -> None:
    given = ("--base_model", inputs.base, "--lora_model", inputs.llama)
    done = run_merge(*given, "--output_dir", tmp_path / "out", *words)
    assert (done.returncode, meant in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("name", ["lama-7b-hf", "LLaMA-7B-HF", "llama_7b_hf"])
def test_a_folder_beside_the_one_that_is_named_is_offered(
    inputs: Inputs, tmp_path: Path, name: str
) -> None:
    given = ("--base_model", inputs.folder / name, "--lora_model", inputs.llama)
    done = run_merge(*given, "--output_dir", tmp_path / "out")
    if not (inputs.folder / name).exists():  # it does where a system ignores case
        assert f"did you mean {inputs.base}?" in done.stderr
        assert done.returncode == 2


def test_a_message_ends_with_the_page_that_says_more(inputs: Inputs, tmp_path: Path) -> None:
    given = ("--base_model", tmp_path / "nothing", "--lora_model", inputs.llama)
    done = run_merge(*given, "--output_dir", tmp_path / "out")
    assert done.stderr.splitlines()[-1] == "  see docs/troubleshooting.md#files"


@pytest.mark.parametrize("topic", Topic)
def test_every_topic_is_a_heading_of_the_page(topic: Topic) -> None:
    page, _, fragment = topic.page.partition("#")
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert fragment in {anchor(line.lstrip("# ")) for line in lines if line.startswith("#")}


@pytest.mark.parametrize(
    ("words", "meant"),
    [(("--lora_modle", "x"), "--lora_model"), (("--output_type", "hugingface"), "huggingface")],
)
def test_what_was_meant_is_told_in_chinese(words: tuple[str, ...], meant: str) -> None:
    told = run_merge("--base_model", "b", "--output_dir", "o", *words, "--lang", "zh").stderr
    assert meant in told.splitlines()[-1]
    assert "did you mean" not in told
