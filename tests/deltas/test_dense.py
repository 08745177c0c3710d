"""Vicuna's way: base + delta, target - base, and what comes back of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.errors import LayoutError, MergeError, OutputError, UsageError, VocabularyError
from merge.jobs.apply_delta import apply_delta, make_delta
from merge.jobs.convert_checkpoint import convert_checkpoint
from tests.kit.dense_deltas import (
    ROWS,
    make_published_delta,
    make_target,
    make_vicuna,
    padded,
    save_model,
)
from tests.kit.files import Tensors, load_weights, tree
from tests.kit.llamas import make_base
from tests.kit.run import ROOT, run_merge

APPLY = ROOT / "scripts" / "apply_delta.py"
MAKE = ROOT / "scripts" / "make_delta.py"
# v1.1 has the base's rows, v0 one more for [PAD], LLaVA's three more.
GROWTHS = pytest.mark.parametrize("rows", [ROWS, ROWS + 1, ROWS + 3], ids=["v1.1", "v0", "llava"])


def require_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def float64_sum(base: Path, delta: Path) -> Tensors:
    """``base + delta`` in float64, the base grown by rows of zeros, rounded once to float16."""
    ours = load_weights(base)
    return {
        name: (padded(ours[name], len(tensor)).double() + tensor.double()).half()
        for name, tensor in load_weights(delta).items()
    }


@GROWTHS
@pytest.mark.parametrize("kv_heads", [8, 4], ids=["multi-head", "grouped-query"])
@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
def test_delta_is_added_to_every_tensor(
    tmp_path: Path, rows: int, kv_heads: int, safe: bool
) -> None:
    base, _, delta = make_vicuna(tmp_path, rows, num_key_value_heads=kv_heads)
    apply_delta(base, delta, tmp_path / "out", safe_serialization=safe)
    require_equal(load_weights(tmp_path / "out"), float64_sum(base, delta))


@GROWTHS
def test_new_rows_are_the_deltas_own(tmp_path: Path, rows: int) -> None:
    base, _, delta = make_vicuna(tmp_path, rows)
    apply_delta(base, delta, tmp_path / "out")
    found, given = load_weights(tmp_path / "out"), load_weights(delta)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(found[name][ROWS:], given[name][ROWS:])


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_base_may_be_metas_download(tmp_path: Path, count: int) -> None:
    base, _, delta = make_vicuna(tmp_path, ROWS + 1)
    meta = tmp_path / "meta"
    convert_checkpoint(base, meta, output_type="pth", num_shards=count)
    apply_delta(base, delta, tmp_path / "from hf")
    apply_delta(meta, delta, tmp_path / "from meta")
    for path in (tmp_path / "from hf").iterdir():
        if path.name != "merge_manifest.json":
            assert path.read_bytes() == (tmp_path / "from meta" / path.name).read_bytes(), path.name


def test_result_may_be_written_in_metas_layout(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path, ROWS + 1)
    apply_delta(base, delta, tmp_path / "pth", output_type="pth", num_shards=2)
    convert_checkpoint(tmp_path / "pth", tmp_path / "hf")
    require_equal(load_weights(tmp_path / "hf"), float64_sum(base, delta))


def test_sums_of_mixed_dtypes_are_rounded_once(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    target = make_target(tmp_path / "target", base)
    ours, theirs = load_weights(base), load_weights(target)
    delta = {name: tensor - ours[name].half() for name, tensor in theirs.items()}
    save_model(tmp_path / "delta", base, delta)
    apply_delta(base, tmp_path / "delta", tmp_path / "out")
    require_equal(load_weights(tmp_path / "out"), float64_sum(base, tmp_path / "delta"))


def test_output_is_complete_for_the_guides(tmp_path: Path) -> None:
    """The files that MiniGPT-4 and NExT-GPT list."""
    base, _, delta = make_vicuna(tmp_path, ROWS + 1)
    apply_delta(base, delta, tmp_path / "out", max_shard_size="100KB")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    count = len([name for name in names if name.startswith("pytorch_model-")])
    assert count > 2
    expected = {f"pytorch_model-{n + 1:05}-of-{count:05}.bin" for n in range(count)} | {
        "config.json",
        "generation_config.json",
        "pytorch_model.bin.index.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert expected <= names


def test_configuration_and_tokenizer_are_the_deltas(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    target = make_target(tmp_path / "target", base, ROWS + 1)
    delta = make_published_delta(
        tmp_path / "delta", base, target, max_position_embeddings=999, bos_token_id=0
    )
    (delta / "generation_config.json").write_text('{"temperature": 0.5}', encoding="utf-8")
    apply_delta(base, delta, tmp_path / "out")

    def written(name: str) -> dict[str, Any]:
        return json.loads((tmp_path / "out" / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    config = written("config.json")
    assert config["max_position_embeddings"] == 999
    assert config["vocab_size"] == ROWS + 1
    assert config["bos_token_id"] == 1
    assert written("generation_config.json")["temperature"] == 0.5
    assert written("added_tokens.json") == {"[PAD]": ROWS}


def test_tokenizer_of_early_2023_is_mended(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path)
    old = {"tokenizer_class": "LLaMATokenizer", "bos_token": "", "eos_token": "", "unk_token": ""}
    (delta / "tokenizer_config.json").write_text(json.dumps(old), encoding="utf-8")
    (delta / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    apply_delta(base, delta, tmp_path / "out")
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text(encoding="utf-8"))
    special = json.loads((tmp_path / "out/special_tokens_map.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert [special[f"{name}_token"] for name in ("bos", "eos", "unk")] == ["<s>", "</s>", "<unk>"]


def test_delta_without_tokenizer_takes_the_bases(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path)
    (delta / "tokenizer.model").unlink()
    report = apply_delta(base, delta, tmp_path / "out")
    assert str(base) in report.inputs[-1]


@pytest.mark.parametrize("first", [0, 1])
def test_bases_in_33_files_are_read_as_they_are(tmp_path: Path, first: int) -> None:
    base, _, delta = make_vicuna(tmp_path)
    expected = float64_sum(base, delta)
    tensors = list(load_weights(base).items())
    for path in base.glob("pytorch_model*"):
        path.unlink()
    for number in range(33):
        name = f"pytorch_model-{number + first:05}-of-00033.bin"
        torch.save(dict(tensors[number::33]), base / name)
    apply_delta(base, delta, tmp_path / "out")
    require_equal(load_weights(tmp_path / "out"), expected)


def with_projector(delta: Path) -> Tensors:
    """Put LLaVA's projector and its model type into a delta."""
    extra = {
        "model.mm_projector.weight": torch.randn(64, 32).half(),
        "model.mm_projector.bias": torch.randn(64).half(),
    }
    index = json.loads((delta / "pytorch_model.bin.index.json").read_text(encoding="utf-8"))
    torch.save(extra, delta / "projector.bin")
    index["weight_map"] |= dict.fromkeys(extra, "projector.bin")
    (delta / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = json.loads((delta / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}
    (delta / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return extra


def test_extra_tensors_are_named_and_copied_when_asked(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path, ROWS + 3)
    expected = float64_sum(base, delta)
    extra = with_projector(delta)
    error = refused(tmp_path, LayoutError, "tensors that a LLaMA does not have")
    assert all(name in error.facts["found"] for name in extra)
    assert "--keep_extra_tensors" in error.facts["remedy"]
    report = apply_delta(base, delta, tmp_path / "out", keep_extra_tensors=True)
    assert "model.mm_projector.bias" in report.summary()
    require_equal(load_weights(tmp_path / "out"), expected | extra)
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llava"
    words = {"keep_extra_tensors": True, "output_type": "pth", "output_dir": tmp_path / "pth"}
    refused(tmp_path, UsageError, "no place for tensors", **words)


@GROWTHS
def test_made_delta_is_the_difference_rounded_once(tmp_path: Path, rows: int) -> None:
    base, target, _ = make_vicuna(tmp_path, rows)
    make_delta(base, target, tmp_path / "made")
    ours = load_weights(base)
    expected = {
        name: (tensor.double() - padded(ours[name], len(tensor)).double()).half()
        for name, tensor in load_weights(target).items()
    }
    require_equal(load_weights(tmp_path / "made"), expected)


@GROWTHS
def test_delta_of_a_trained_model_gives_it_back_whole(tmp_path: Path, rows: int) -> None:
    """Training moves weights by less than a factor of two: every difference is exact."""
    base, target, _ = make_vicuna(tmp_path, rows)
    ours, theirs = load_weights(base), load_weights(target)
    for name, tensor in theirs.items():
        ratio = tensor[: len(ours[name])].double() / ours[name].double()
        assert bool(((ratio >= 0.5) & (ratio <= 2)).all()), name
    report = make_delta(base, target, tmp_path / "made")
    assert "gives back every element" in report.notes[-1]
    apply_delta(base, tmp_path / "made", tmp_path / "out")
    require_equal(load_weights(tmp_path / "out"), theirs)


def test_what_float16_cannot_bring_back_is_bounded_and_counted(tmp_path: Path) -> None:
    """Two unrelated models: the worst case. Errors are half a unit of the difference, and one
    rounding; elements within a factor of two of each other come back as they were.
    """
    base, target = make_base(tmp_path / "base"), make_base(tmp_path / "target", seed=9)
    report = make_delta(base, target, tmp_path / "made")
    apply_delta(base, tmp_path / "made", tmp_path / "out")
    ours, theirs = load_weights(base), load_weights(target)
    lost, largest = 0, 0.0
    for name, found in load_weights(tmp_path / "out").items():
        b, t, found = ours[name].double(), theirs[name].double(), found.double()
        error = (found - t).abs()
        assert bool((error <= half_unit(t - b) + half_unit(found)).all()), name
        close = (t / b >= 0.5) & (t / b <= 2)
        assert not bool(error[close].any()), name
        lost, largest = lost + int(error.count_nonzero()), max(largest, float(error.max()))
    assert lost > 0
    assert f"all but {lost:,} elements" in report.notes[-1]
    assert f"within {largest:.2g}" in report.notes[-1]


def half_unit(value: torch.Tensor) -> torch.Tensor:
    """Half the distance of float16 numbers around ``value``: 11 digits, no finer than 2**-24."""
    exponent = torch.frexp(value).exponent
    return torch.ldexp(torch.ones_like(value), torch.clamp(exponent - 12, min=-25))


def test_float32_delta_brings_back_unrelated_models(tmp_path: Path) -> None:
    """A float32 difference has 13 digits more: only elements far smaller than the base's differ."""
    base, target = make_base(tmp_path / "base"), make_base(tmp_path / "target", seed=9)
    make_delta(base, target, tmp_path / "made", dtype="float32")
    apply_delta(base, tmp_path / "made", tmp_path / "out")
    found, ours, theirs = map(load_weights, (tmp_path / "out", base, target))
    for name, tensor in found.items():
        near = theirs[name].double().abs() >= ours[name].double().abs() / 2**12
        assert torch.equal(tensor[near], theirs[name][near]), name


def test_dry_run_writes_and_claims_nothing(tmp_path: Path) -> None:
    base, target, delta = make_vicuna(tmp_path)
    before = tree(tmp_path)
    apply_delta(base, delta, tmp_path / "out", dry_run=True)
    report = make_delta(base, target, tmp_path / "made", dry_run=True)
    assert "gives back" not in report.summary()
    assert tree(tmp_path) == before


SPELLINGS = pytest.mark.parametrize(
    "names",
    [
        ("--base-model-path", "--target-model-path", "--delta-path"),
        ("--base", "--target", "--delta"),
    ],
    ids=["0.2", "0.1"],
)


@SPELLINGS
def test_scripts_take_both_spellings(tmp_path: Path, names: tuple[str, str, str]) -> None:
    base, target, delta = make_vicuna(tmp_path, ROWS + 1)
    base_word, target_word, delta_word = names
    words = [base_word, base, target_word, tmp_path / "out", delta_word, delta]
    done = run_merge(*words, "--low-cpu-mem", script=APPLY)
    assert done.returncode == 0, done.stderr
    assert "--low-cpu-mem changes nothing" in done.stdout
    assert "grown by 1 rows of zeros" in done.stdout
    require_equal(load_weights(tmp_path / "out"), float64_sum(base, delta))
    words = [base_word, base, target_word, target, delta_word, tmp_path / "made"]
    done = run_merge(*words, "--quiet", script=MAKE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    require_equal(load_weights(tmp_path / "made"), load_weights(delta))


def test_existing_target_is_never_deleted(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    apply_delta(base, delta, out)
    refused(tmp_path, OutputError, "holds a model already")
    apply_delta(base, delta, out, overwrite=True)
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    require_equal(load_weights(out), float64_sum(base, delta))


def refused(folder: Path, kind: type[MergeError], words: str, **options: Any) -> MergeError:
    """Apply, and require one sentence with a remedy and nothing changed."""
    before = tree(folder)
    arguments = {
        "base_model": folder / "base",
        "delta_model": folder / "delta",
        "output_dir": folder / "out",
    }
    with pytest.raises(kind, match=words) as caught:
        apply_delta(**arguments | options)
    assert tree(folder) == before
    assert caught.value.facts.get("remedy"), str(caught.value)
    return caught.value


@pytest.mark.parametrize("place", ["base", "delta"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_target_that_is_an_input(tmp_path: Path, place: str, overwrite: bool) -> None:
    make_vicuna(tmp_path)
    same = {"output_dir": tmp_path / place, "overwrite": overwrite}
    refused(tmp_path, OutputError, "one of the inputs", **same)


def test_base_that_is_the_delta(tmp_path: Path) -> None:
    make_vicuna(tmp_path)
    refused(tmp_path, UsageError, "the same folder", base_model=tmp_path / "delta")


def test_base_and_delta_exchanged(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path, ROWS + 1)
    exchanged = {"base_model": delta, "delta_model": base}
    error = refused(tmp_path, LayoutError, "the base model is a delta", **exchanged)
    assert "exchanged" in error.facts["remedy"]


OTHER_SHAPES: dict[str, dict[str, Any]] = {
    "wider": {"hidden_size": 128},
    "deeper": {"num_hidden_layers": 3},
    "shallower": {"num_hidden_layers": 1},
    "grouped heads": {"num_key_value_heads": 4},
    "feed forward": {"intermediate_size": 160},
}


@pytest.mark.parametrize("changes", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_delta_of_another_size(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_base(tmp_path / "base")
    make_vicuna(tmp_path / "other", **changes)
    error = refused(tmp_path, LayoutError, "different models", delta_model=tmp_path / "other/delta")
    assert error.facts["tensor"].startswith(("model.", "lm_head"))


def no_weights(folder: Path) -> None:
    for path in folder.glob("pytorch_model*"):
        path.unlink()


def no_shard(folder: Path) -> None:
    max(folder.glob("pytorch_model-*.bin")).unlink()


def only_weights(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize("place", ["base", "delta"])
@pytest.mark.parametrize("change", [no_weights, no_shard, only_weights])
def test_incomplete_input_never_gives_an_empty_model(
    tmp_path: Path, place: str, change: Callable[[Path], None]
) -> None:
    make_vicuna(tmp_path)
    change(tmp_path / place)
    error = refused(tmp_path, LayoutError, "weights|configuration")
    assert str(tmp_path / place) in error.facts["file"]


def test_tokenizer_with_more_tokens_than_rows(tmp_path: Path) -> None:
    _, _, delta = make_vicuna(tmp_path)
    (delta / "added_tokens.json").write_text(json.dumps({"[PAD]": ROWS}), encoding="utf-8")
    refused(tmp_path, VocabularyError, "do not belong together")


def test_bias_in_a_layer_is_no_extra_tensor(tmp_path: Path) -> None:
    base, _, delta = make_vicuna(tmp_path)
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64).half()}
    save_model(tmp_path / "biased", base, load_weights(delta) | bias)
    words = {"delta_model": tmp_path / "biased", "keep_extra_tensors": True}
    refused(tmp_path, LayoutError, "does not have", **words)
