"""``check_llama_cpp.py`` foretells what llama.cpp's own converters make of the same folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from merge.commands.check_llama_cpp import main, reports_of
from tests.oracles import llama_cpp_oracle
from tests.oracles.llama_cpp_folders import (
    CASES,
    ROWS,
    Case,
    biases,
    change_weights,
    edit,
    good_folders,
    tokenizer,
)
from tests.oracles.llama_cpp_oracle import HUGGINGFACE, LEGACY, Conversion, gguf_contents

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Conversion]:
    """Every case's folder, as ``PLACE/model``, and what the real converter made of it."""
    llama_cpp_oracle.converters()
    root = tmp_path_factory.mktemp("converters")
    good = good_folders(root / "good")
    jobs = []
    for number, case in enumerate(CASES.values()):
        folder = root / str(number) / "model"
        shutil.copytree(good[case.kind], folder)
        case.make(folder)
        converter = HUGGINGFACE if case.kind == "hf" else LEGACY
        output = folder.with_name("model.gguf")
        jobs.append((converter, folder, "--outfile", output, "--outtype", "f16"))
    return dict(zip(CASES, llama_cpp_oracle.convert(jobs), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_it_foretells_what_the_converter_does(
    converted: Mapping[str, Conversion], name: str
) -> None:
    case, real = CASES[name], converted[name]
    assert _outcome(real, converted, case) == case.outcome, real
    outcomes = {
        finding.outcome
        for report in reports_of(real.outfile.with_name("model"))
        for finding in report.findings
    }
    worst = next((outcome for outcome in ("stops", "silent") if outcome in outcomes), "right")
    assert worst == case.outcome


def _outcome(real: Conversion, converted: Mapping[str, Conversion], case: Case) -> str:
    """What the converter did, told by its result and that of the good folder."""
    if real.error is not None:
        return "stops"
    good = converted["bin" if case.kind == "hf" else "one shard"]
    dropped = any(re.match(r"ignore tokens? |replacing token", line) for line in real.warnings)
    same = gguf_contents(real.outfile) == gguf_contents(good.outfile)
    return "right" if same and not dropped else "silent"


def test_our_shards_become_the_same_model_as_our_huggingface_output(
    converted: Mapping[str, Conversion],
) -> None:
    models = [gguf_contents(converted[name].outfile) for name in ("one shard", "two shards", "bin")]
    same = ("tensor ", "tokenizer.ggml.tokens")
    tensors = [
        {name: value for name, value in model.items() if name.startswith(same)} for model in models
    ]
    assert len(tensors[0]) == 3 + 2 * 9 + 1
    assert tensors[0] == tensors[1] == tensors[2]


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("params.json", {"use_scaled_rope": True}),
        ("config.json", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("config.json", {"rope_scaling": {"type": "linear"}}),
    ],
)
def test_scaled_positions_are_said_to_be_lost(
    tmp_path: Path, file: str, fields: dict[str, object]
) -> None:
    good = good_folders(tmp_path)["meta1" if file == "params.json" else "hf"]
    edit(file, **fields)(good)
    (report,) = reports_of(good)
    assert [finding.outcome for finding in report.findings] == ["silent"]
    assert "positions" in report.findings[0].problem.sentence


def test_biases_that_config_json_speaks_of_go_into_the_file(tmp_path: Path) -> None:
    llama_cpp_oracle.converters()
    folder, output = good_folders(tmp_path)["hf"], tmp_path / "model.gguf"
    change_weights(biases)(folder)
    edit("config.json", attention_bias=True)(folder)
    (real,) = llama_cpp_oracle.convert([(HUGGINGFACE, folder, "--outfile", output)])
    assert real.error is None
    written = [name for name in gguf_contents(output) if name.endswith(".bias")]
    assert len(written) == 2 * 4
    (report,) = reports_of(folder)
    assert report.findings == []


def test_the_command_tells_what_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = good_folders(tmp_path)
    assert main([str(folders["meta2"])]) == 0
    tokenizer(ROWS - 1)(folders["meta2"])
    assert main([str(folders["meta2"])]) == 1
    assert f"{ROWS - 1} pieces and 0 added tokens" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 2
