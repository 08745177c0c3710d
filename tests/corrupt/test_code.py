"""Python files in somebody's repository: copied when that is asked for, and never run."""

from __future__ import annotations

import sys

import pytest

from tests.kit.files import write_json
from tests.kit.inputs import Inputs

NAMES = ("modeling_evil.py", "sitecustomize.py", "tokenization_evil.py")


@pytest.mark.parametrize("copied", [False, True])
def test_python_files_of_an_adapter(inputs: Inputs, copied: bool) -> None:
    trap = inputs.folder / "it-ran"
    code = f"open({str(trap)!r}, 'w')"
    for name in NAMES:
        (inputs.alpaca / name).write_text(code, encoding="utf-8")
    names = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
    write_json(inputs.alpaca / "tokenizer_config.json", {"auto_map": names})
    inputs.merge(output_type="huggingface", copy_code=copied)
    assert not trap.exists()
    assert "tokenization_evil" not in sys.modules
    present = {path.name for path in inputs.out.glob("*.py")} - {"sentencepiece_llama.py"}
    assert present == (set(NAMES) if copied else set())
    config = (inputs.out / "tokenizer_config.json").read_text(encoding="utf-8")
    assert "evil" not in config


def test_the_class_of_this_project_is_not_replaced(inputs: Inputs) -> None:
    (inputs.alpaca / "sentencepiece_llama.py").write_text("evil", encoding="utf-8")
    inputs.merge(output_type="huggingface", copy_code=True)
    assert (inputs.out / "sentencepiece_llama.py").read_text(encoding="utf-8") != "evil"
