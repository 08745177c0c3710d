"""Every method in the registry of the installed PEFT: merged as PEFT merges it, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import convert_checkpoint, merge_lora, verify_merge
from merge.deltas.peft_methods import TRAINABLE_TOKENS
from merge.deltas.peft_methods import VARIANTS as HANDLED_VARIANTS
from merge.deltas.refusals import REFUSED
from merge.errors import AdapterError, MergeError, OutputError, UsageError
from tests.kit.adapters import make_lora, merge_with_peft
from tests.kit.files import load_weights
from tests.kit.llamas import make_base
from tests.kit.peft_methods import (
    METHODS,
    VARIANTS,
    WITH_LAYERS,
    make_method,
    merge_method_with_peft,
)

# Methods that have layers, whose output is no product of the input with some matrix.
UNMERGEABLE = {"LILY", "POLY", "SHADOW", "XLORA"}
BY_OTHER_TESTS = {"LORA", TRAINABLE_TOKENS}
MERGED = [name for name in WITH_LAYERS if name not in UNMERGEABLE | BY_OTHER_TESTS]
CASES = [(name, {}) for name in MERGED] + [("LORA", fields) for fields in VARIANTS.values()]
NAMES = [*MERGED, *VARIANTS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with biases, which some methods train."""
    folder = tmp_path_factory.mktemp("methods") / "base"
    return make_base(folder, attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def vera(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_method(tmp_path_factory.mktemp("vera") / "vera", base, "VERA")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []


@pytest.mark.parametrize(("method", "fields"), CASES, ids=NAMES)
def test_method_of_peft_merges_as_peft_does(
    tmp_path: Path, base: Path, method: str, fields: dict[str, Any]
) -> None:
    adapter = make_method(tmp_path / "adapter", base, method, **fields)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    found = load_weights(tmp_path / "out")
    assert_equal(found, merge_method_with_peft(base, adapter, torch.float16))
    plain = load_weights(base)
    changed = [name for name in plain if not torch.equal(plain[name], found[name])]
    assert changed  # the adapter does something


def test_every_variant_of_the_registry_has_a_case() -> None:
    assert VARIANTS.keys() == {variant.name for variant in HANDLED_VARIANTS}


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in {*MERGED, "LORA", TRAINABLE_TOKENS}]
)
def test_other_methods_are_refused_by_name(
    tmp_path: Path, base: Path, vera: Path, method: str
) -> None:
    refusal = next(r for r in REFUSED if r.field == "peft_type" and r.applies(method))
    adapter = spoil(vera, tmp_path / "adapter", peft_type=method)
    error = refused(base, adapter, tmp_path / "out")
    assert refusal.name in error.sentence
    assert error.facts["found"] == f'"peft_type": {method!r}'


def spoil(adapter: Path, folder: Path, **fields: Any) -> Path:
    """A copy of an adapter with other fields in its configuration."""
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def refused(base: Path, adapter: Path, out: Path, **options: Any) -> MergeError:
    with pytest.raises((AdapterError, UsageError)) as caught:
        merge_lora(base, adapter, out, output_type="huggingface", **options)
    assert caught.value.facts["remedy"]
    assert not out.exists()
    return caught.value


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("NEXT_YEAR", "pip install -U peft"),
        ("BONE", '"peft==0.18.*"'),
    ],
)
def test_method_that_this_peft_does_not_know_is_told_with_a_remedy(
    tmp_path: Path, base: Path, vera: Path, method: str, told: str
) -> None:
    import peft

    error = refused(base, spoil(vera, tmp_path / "adapter", peft_type=method), tmp_path / "out")
    assert method in error.sentence
    assert error.facts["found"] == f"PEFT {peft.__version__}"
    assert told in error.facts["remedy"]


def test_release_that_saved_the_adapter_is_named(tmp_path: Path, base: Path, vera: Path) -> None:
    fields = {"peft_type": "NEXT_YEAR", "peft_version": "0.99.1"}
    error = refused(base, spoil(vera, tmp_path / "adapter", **fields), tmp_path / "out")
    assert error.facts["expected"] == "PEFT 0.99.1, which saved it, or later"


def test_peft_that_is_too_old_is_told(
    tmp_path: Path, base: Path, vera: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft.__version__", "0.18.1")
    error = refused(base, vera, tmp_path / "out")
    assert error.facts["expected"] == "PEFT 0.21 or later"


def test_peft_that_is_not_installed_is_told_with_the_extra(
    tmp_path: Path, base: Path, vera: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merge.peft_layers.installed.find_spec", lambda name: None)
    error = refused(base, vera, tmp_path / "out")
    assert "peft" in error.sentence
    assert error.facts["remedy"] == 'pip install "chinese-llama-merge[peft]"'


def test_every_output_holds_the_same(tmp_path: Path, vera: Path) -> None:
    """Without biases, for which Meta's layout has no place."""
    base = make_base(tmp_path / "base")
    merge_lora(base, vera, tmp_path / "hf", output_type="huggingface")
    merge_lora(base, vera, tmp_path / "pth", output_type="pth")
    merge_lora(base, vera, tmp_path / "gguf", output_type="gguf")
    convert_checkpoint(tmp_path / "pth", tmp_path / "back", output_type="huggingface")
    assert_equal(load_weights(tmp_path / "back"), load_weights(tmp_path / "hf"))
    for name in ("pth", "gguf"):
        checked = verify_merge(tmp_path / name)
        assert not checked.faults
        assert not checked.unchecked


def test_number_of_workers_changes_nothing(tmp_path: Path, base: Path, vera: Path) -> None:
    options: dict[str, Any] = {"output_type": "huggingface", "dtype": "float32"}
    merge_lora(base, vera, tmp_path / "one", num_workers=1, **options)
    merge_lora(base, vera, tmp_path / "many", num_workers=4, **options)
    assert_equal(load_weights(tmp_path / "one"), load_weights(tmp_path / "many"))


def test_run_of_another_peft_is_not_resumed(
    tmp_path: Path, base: Path, vera: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"output_type": "huggingface"}

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_lora(base, vera, tmp_path / "out", on_progress=stop, **options)
    with monkeypatch.context() as other:
        other.setattr("peft.__version__", "0.99.0")
        with pytest.raises(OutputError, match="other releases of PEFT"):
            merge_lora(base, vera, tmp_path / "out", resume=True, **options)
    merge_lora(base, vera, tmp_path / "out", resume=True, **options)
    assert_equal(load_weights(tmp_path / "out"), merge_method_with_peft(base, vera, torch.float16))


def test_lora_before_and_after_another_method(tmp_path: Path, base: Path, vera: Path) -> None:
    first = make_lora(tmp_path / "first", base, modules_to_save=None, seed=5)
    last = make_lora(tmp_path / "last", base, seed=6, target_modules=["q_proj", "up_proj"])
    loras = [first, vera, last]
    merge_lora(base, loras, tmp_path / "out", output_type="huggingface", dtype="float32")
    found, expected = load_weights(tmp_path / "out"), merge_with_peft(base, loras)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_method_on_a_vocabulary_that_an_earlier_adapter_grew(tmp_path: Path, base: Path) -> None:
    saved = ["embed_tokens", "lm_head"]
    first = make_lora(tmp_path / "first", base, rows=120, modules_to_save=saved)
    options: dict[str, Any] = {"output_type": "huggingface", "dtype": "float32"}
    merge_lora(base, first, tmp_path / "grown", **options)
    targets = ["q_proj", "lm_head"]
    second = make_method(tmp_path / "second", tmp_path / "grown", "VERA", target_modules=targets)
    merge_lora(base, [first, second], tmp_path / "out", **options)
    expected = merge_method_with_peft(tmp_path / "grown", second, torch.float32)
    torch.testing.assert_close(load_weights(tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)
    assert not verify_merge(tmp_path / "out").faults


def test_whole_modules_beside_another_method(tmp_path: Path, base: Path) -> None:
    adapter = make_method(
        tmp_path / "adapter", base, "LOHA", modules_to_save=["lm_head", "input_layernorm"]
    )
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert_equal(
        load_weights(tmp_path / "out"), merge_method_with_peft(base, adapter, torch.float16)
    )


@pytest.mark.parametrize("method", ["VERA", "PSOFT", "GLORA"])
def test_result_is_checked_against_peft(tmp_path: Path, base: Path, method: str) -> None:
    adapter = make_method(tmp_path / "adapter", base, method)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    checked = verify_merge(tmp_path / "out")
    assert not checked.faults
    assert not checked.unchecked
    (tmp_path / "out" / "merge_manifest.json").unlink()  # whose digests would tell it too
    name = "model.layers.0.self_attn.q_proj.weight"
    for path in (tmp_path / "out").glob("*.bin"):
        tensors = torch.load(path)
        if name in tensors:
            tensors[name][3, 5] += 0.25
            torch.save(tensors, path)
    (fault,) = verify_merge(tmp_path / "out", base_model=base, lora_model=adapter).faults
    assert name in fault.facts["tensor"]


def test_what_peft_is_not_asked_of_again_is_said(tmp_path: Path, base: Path, vera: Path) -> None:
    merge_lora(base, vera, tmp_path / "out", output_type="huggingface")
    path = tmp_path / "out" / "merge_manifest.json"
    text = path.read_text(encoding="utf-8")
    assert '"merged_by": "PEFT ' in text
    path.write_text(text.replace('"merged_by": "PEFT ', '"merged_by": "PEFT 0.'), encoding="utf-8")
    checked = verify_merge(tmp_path / "out")
    assert not checked.faults
    assert any("q_proj" in line and "VERA" in line for line in checked.unchecked)


def test_weight_on_what_is_added_is_refused(tmp_path: Path, base: Path, vera: Path) -> None:
    error = refused(base, vera, tmp_path / "out", lora_weights="0.5")
    assert "--lora_weights" in error.facts["remedy"]


@pytest.mark.parametrize("lost", ["vera_lambda_b", "vera_A"])
def test_missing_tensor_is_named(tmp_path: Path, base: Path, vera: Path, lost: str) -> None:
    adapter = spoil(vera, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if lost in key)
    del tensors[name]
    save_file(tensors, path)
    error = refused(base, adapter, tmp_path / "out")
    assert lost in str(error)


def test_tensor_that_nothing_takes_is_named(tmp_path: Path, base: Path, vera: Path) -> None:
    adapter = spoil(vera, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    stray = "base_model.model.model.layers.9.self_attn.q_proj.vera_lambda_b"
    save_file({**load_file(path), stray: torch.ones(64)}, path)
    assert "layers.9" in refused(base, adapter, tmp_path / "out").facts["tensor"]


HOSTILE = {
    "expression without end": {"target_modules": r"(a+)+\1"},
    "expression of layers": {"layers_pattern": "(x+x+)+y"},
    "rank": {"r": 2_000_000_000},
    "field of next year": {"use_next_years_idea": True},
    "value of another kind": {"projection_prng_key": "x"},
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_configuration_of_a_stranger_is_refused(
    tmp_path: Path, base: Path, vera: Path, fields: dict[str, Any]
) -> None:
    error = refused(base, spoil(vera, tmp_path / "adapter", **fields), tmp_path / "out")
    assert error.facts["file"].startswith(str(tmp_path / "adapter"))


def test_rank_of_one_module_that_no_training_had_is_refused(tmp_path: Path, base: Path) -> None:
    plain = make_method(tmp_path / "plain", base, "LOHA")
    adapter = spoil(plain, tmp_path / "adapter", rank_pattern={"q_proj": 2_000_000_000})
    error = refused(base, adapter, tmp_path / "out")
    assert error.facts["expected"].startswith('"rank_pattern" up to')


def test_expression_for_modules_is_spelt_out(tmp_path: Path, base: Path, vera: Path) -> None:
    pattern = r".*layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)"
    adapter = spoil(vera, tmp_path / "adapter", target_modules=pattern)
    merge_lora(base, adapter, tmp_path / "out", output_type="huggingface")
    assert_equal(load_weights(tmp_path / "out"), merge_method_with_peft(base, vera, torch.float16))
