"""Quantized GGUF files as a user asks for them: refusals, resuming, independence of threads."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import merge.outtypes
from merge import convert_checkpoint
from merge.commands.convert_checkpoint import main
from merge.errors import MergeError, NumberError, UsageError
from merge.outtypes import GUIDED_OUTTYPES
from tests.kit.files import save_shards
from tests.kit.imatrices import make_factors, write_gguf
from tests.kit.llama_cpp import skip_without_quantizer
from tests.kit.llamas import make_base

pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    skip_without_quantizer()


SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
MATRICES = [
    f"blk.{layer}.{role}.weight"
    for layer in range(2)
    for role in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base", num_key_value_heads=2, **SIZES)


def _convert(base: Path, output: Path, outtype: str = "q4_k_m", **options: Any) -> bytes:
    convert_checkpoint(
        base, output, output_type="gguf", outtype=outtype, model_name="tiny", **options
    )
    return (output / f"ggml-model-{outtype.lower()}.gguf").read_bytes()


def _one_matrix_less(path: Path) -> Path:
    return write_gguf(path, make_factors(dict.fromkeys(MATRICES[1:], 256)))


def _another_width(path: Path) -> Path:
    return write_gguf(path, make_factors(dict.fromkeys(MATRICES, 512)))


def _more_layers(path: Path) -> Path:
    return write_gguf(path, make_factors(dict.fromkeys([*MATRICES, "blk.2.attn_q.weight"], 256)))


def _no_imatrix(path: Path) -> Path:
    path.write_text("not one")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_one_matrix_less, "another model"),
        (_another_width, "512 factors"),
        (_more_layers, "blk.2.attn_q.weight"),
        (_no_imatrix, "no importance matrix"),
        (lambda path: path / "missing", "does not exist"),
        (lambda path: path.parent, "does not exist"),
    ],
)
def test_another_models_imatrix_is_refused(
    tmp_path: Path,
    base: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    said: str,
) -> None:
    (tmp_path / "in").mkdir()
    words = ["--input", base, "--output_dir", tmp_path / "out", "--output_type", "gguf"]
    words += ["--outtype", "q4_k_m", "--imatrix", make(tmp_path / "in" / "imatrix"), "--quiet"]
    assert main(list(map(str, words))) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outtype": "q4_km"}, "did you mean q4_k_m?"),
        ({"outtype": "Q5_K_N"}, "did you mean q5_k_"),
        *(({"outtype": one}, "needs an importance matrix") for one in GUIDED_OUTTYPES),
        ({"outtype": "f16", "imatrix": "a.gguf"}, "--imatrix means nothing"),
        ({"outtype": "q8_0", "imatrix": "a.gguf"}, "--imatrix means nothing"),
        ({"imatrix": "a.gguf", "output_type": "huggingface"}, "--output_type gguf"),
        ({"outtype": "q4_k_m", "imatrix": 3}, "must be a path"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, base: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        convert_checkpoint(base, tmp_path / "out", **{"output_type": "gguf", **options})
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_llama_cpp_the_extra_is_named(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(merge.outtypes, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install 'chinese-llama-merge") as caught:
        _convert(base, tmp_path / "out")
    assert "llama_cpp" in caught.value.facts["remedy"]
    assert not (tmp_path / "out").exists()


def test_a_plan_says_disk_and_time_and_writes_nothing(tmp_path: Path, base: Path) -> None:
    options: dict[str, Any] = {"output_type": "gguf", "outtype": "q4_k_m"}
    report = convert_checkpoint(base, tmp_path / "out", dry_run=True, **options)
    assert re.search(r"quantizing takes about [\d,]+ s with \d+ threads", report.summary())
    assert not (tmp_path / "out").exists()
    written = convert_checkpoint(base, tmp_path / "out", **options)
    size = (tmp_path / "out" / "ggml-model-q4_k_m.gguf").stat().st_size
    assert report.plan.tensor_bytes <= size <= report.plan.disk_bytes
    assert "quantizing takes" not in written.summary()


def test_capitals_mean_the_same(tmp_path: Path, base: Path) -> None:
    assert _convert(base, tmp_path / "a", "Q4_K_M") == _convert(base, tmp_path / "b", "q4_k_m")


@pytest.mark.parametrize("at", [0.2, 0.7])
def test_a_run_that_was_interrupted_goes_on_with_the_same_bytes(
    tmp_path: Path, base: Path, at: float
) -> None:
    imatrix = write_gguf(tmp_path / "imatrix", make_factors(dict.fromkeys(MATRICES, 256)))
    whole = _convert(base, tmp_path / "whole", imatrix=imatrix, num_workers=1)

    def stop(done: int, total: int) -> None:
        if done > at * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _convert(base, tmp_path / "out", imatrix=imatrix, on_progress=stop)
    assert not list((tmp_path / "out").glob("*.gguf"))
    assert _convert(base, tmp_path / "out", imatrix=imatrix, resume=True, num_workers=2) == whole
    assert not list((tmp_path / "out").glob(".*"))


def test_it_does_not_go_on_with_another_imatrix(tmp_path: Path, base: Path) -> None:
    imatrix = write_gguf(tmp_path / "imatrix", make_factors(dict.fromkeys(MATRICES, 256)))

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _convert(base, tmp_path / "out", imatrix=imatrix, on_progress=stop)
    write_gguf(
        imatrix,
        {name: values * 2 for name, values in make_factors(dict.fromkeys(MATRICES, 256)).items()},
    )
    with pytest.raises(MergeError, match="an input has changed"):
        _convert(base, tmp_path / "out", imatrix=imatrix, resume=True)


@pytest.mark.parametrize(("value", "outtype"), [(torch.inf, "q4_k_m"), (1e9, "q4_0")])
def test_values_that_blocks_cannot_hold_are_refused(
    tmp_path: Path, value: float, outtype: str
) -> None:
    from tests.kit.files import load_weights

    model = make_base(tmp_path / "base", dtype=torch.float32, num_key_value_heads=2, **SIZES)
    weights = load_weights(model)
    weights["model.layers.1.mlp.up_proj.weight"][5, 9] = value
    for file in model.glob("*.bin*"):
        file.unlink()
    save_shards(weights, model, ".bin", 1 << 30)
    with pytest.raises(NumberError, match="up_proj"):
        _convert(model, tmp_path / "out", outtype)
    assert not list((tmp_path / "out").glob("*"))
