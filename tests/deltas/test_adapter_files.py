"""Files beside an adapter: read, known to say nothing, named, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from merge import merge_lora, verify_merge
from merge.errors import AdapterError, MergeError, UsageError
from tests.kit.adapters import make_adapter
from tests.kit.files import Tensors, load_weights, tree
from tests.kit.llamas import make_base
from tests.kit.models import (
    BASE_ROWS,
    HIDDEN,
    adapter_tensors,
    random_tensor,
    save_adapter,
    save_base,
)
from tests.kit.run import run_merge

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "lora")


def long_lora(tmp_path: Path) -> tuple[Path, Path, Tensors]:
    """A base, an adapter with trained embeddings and norms beside it, and those tensors."""
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "lora", base, modules_to_save=None)
    torch.manual_seed(5)
    trained = {
        name: torch.randn(tensor.shape).half()
        for name, tensor in load_weights(base).items()
        if "embed" in name or "norm" in name
    }
    torch.save(trained, adapter / "trainable_params.bin")
    return base, adapter, trained


def test_trained_embeddings_and_norms_of_long_lora_are_merged_as_its_own_script_does(
    tmp_path: Path,
) -> None:
    base, adapter, trained = long_lora(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict({k: v.float() for k, v in trained.items()}, strict=False)
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    out = tmp_path / "out"
    report = merge_lora(base, adapter, out, output_type="huggingface", dtype="float32")
    found = load_weights(out)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert "trainable_params.bin" in report.summary()
    verification = verify_merge(out)
    assert not verification.faults, verification.faults


def test_verification_calls_a_merge_without_them_wrong(tmp_path: Path) -> None:
    base, adapter, _ = long_lora(tmp_path)
    alone = tmp_path / "alone"
    shutil.copytree(adapter, alone)
    (alone / "trainable_params.bin").unlink()
    out = tmp_path / "out"
    merge_lora(base, alone, out, output_type="huggingface")
    (out / "merge_manifest.json").unlink()
    assert verify_merge(out, base_model=base, lora_model=adapter).faults


def test_names_with_pefts_prefix_are_the_same(tmp_path: Path) -> None:
    base, adapter, trained = long_lora(tmp_path)
    merge_lora(base, adapter, tmp_path / "plain")
    prefixed = {f"base_model.model.{name}": tensor for name, tensor in trained.items()}
    torch.save(prefixed, adapter / "trainable_params.bin")
    merge_lora(base, adapter, tmp_path / "prefixed")
    files = [tmp_path / name / "consolidated.00.pth" for name in ("plain", "prefixed")]
    assert files[0].read_bytes() == files[1].read_bytes()


UNCLAIMED = [
    "non_lora_trainables.bin",
    "mm_projector.bin",
    "pytorch_model_fsdp.bin",
    "something.pt",
    "consolidated.00.pth",
    "ADAPTER.GGUF",
    "model_world_size_4_rank_0.pt",
]


@pytest.mark.parametrize("name", UNCLAIMED)
def test_weights_that_nothing_claims_are_refused_by_name(
    base: Path, lora: Path, tmp_path: Path, name: str
) -> None:
    torch.save({"weight": torch.ones(2)}, lora / name)
    before = tree(tmp_path)
    with pytest.raises(AdapterError, match="beside the adapter") as caught:
        merge_lora(base, lora, tmp_path / "out")
    assert caught.value.facts["file"] == str(lora / name)
    assert f"--ignore_file {name}" in caught.value.facts["remedy"]
    assert tree(tmp_path) == before


def test_file_that_is_to_be_ignored_is_ignored_and_told(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    merge_lora(base, lora, tmp_path / "plain")
    torch.save({"weight": torch.ones(2)}, lora / "something.pt")
    words = ("--base_model", base, "--lora_model", lora, "--output_dir", tmp_path / "out")
    ended = run_merge(*words, "--ignore_file", "something.pt", "--verify")
    assert ended.returncode == 0, ended.stderr
    assert "ignored as asked: something.pt" in ended.stdout
    files = [tmp_path / name / "consolidated.00.pth" for name in ("plain", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(UsageError, match="in no adapter's folder"):
        merge_lora(base, lora, tmp_path / "other", ignore_file=["something.pt", "else.pt"])


def test_verification_calls_weights_that_were_not_merged_a_fault(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    merge_lora(base, lora, tmp_path / "out")
    assert not verify_merge(tmp_path / "out").faults
    torch.save({"weight": torch.ones(2)}, lora / "non_lora_trainables.bin")
    (fault,) = verify_merge(tmp_path / "out").faults
    assert "non_lora_trainables.bin" in str(fault)


def test_state_of_a_trainer_says_nothing_and_other_files_are_named(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    for name in (
        *("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"),
        *("0000100_adapters.safetensors", "ggml-adapter-model.bin"),
    ):
        torch.save({"state": torch.ones(2)}, lora / name)
    for name in ("trainer_state.json", "README.md", "LICENSE", "all_results.json"):
        (lora / name).write_text("{}", encoding="utf-8")
    assert "files not read" not in merge_lora(base, lora, tmp_path / "out").summary()
    (lora / "notes.xyz").write_text("what is this", encoding="utf-8")
    summary = merge_lora(base, lora, tmp_path / "other").summary()
    assert "files not read: notes.xyz" in summary
    assert not verify_merge(tmp_path / "out").faults


def test_adapter_in_both_containers_is_read_once_where_they_hold_the_same(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    merge_lora(base, lora, tmp_path / "bin")
    save_file(adapter_tensors(), lora / "adapter_model.safetensors")
    report = merge_lora(base, lora, tmp_path / "both")
    assert "adapter_model.bin holds the same" in report.summary()
    files = [tmp_path / name / "consolidated.00.pth" for name in ("bin", "both")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not verify_merge(tmp_path / "both").faults


def test_adapter_in_both_containers_with_other_values_is_refused(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    save_file(adapter_tensors(seed=9), lora / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="two different versions"):
        merge_lora(base, lora, tmp_path / "out")
    fewer = dict(list(adapter_tensors().items())[:-1])
    save_file(fewer, lora / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="holds the adapter twice"):
        merge_lora(base, lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trained_tensor_of_another_shape_or_name_is_refused(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    for name, size in (("model.norm.weight", HIDDEN + 1), ("model.other.weight", 3)):
        torch.save({name: torch.ones(size)}, lora / "trainable_params.bin")
        with pytest.raises(AdapterError) as caught:
            merge_lora(base, lora, tmp_path / "out")
        assert name in caught.value.facts["tensor"]


NEW = 4


def grown_lora(tmp_path: Path) -> tuple[Path, Path, Tensors, Tensors]:
    """A base, a LoRA of embeddings and LM head with 4 rows more, the rows, and what vLLM makes of
    them: the base's rows, the new ones, and the product over all.
    """
    base = save_base(tmp_path / "base")
    ours = {name: tensor.float() for name, tensor in load_weights(base).items()}
    rows, torch_rows = {}, BASE_ROWS + NEW
    torch.manual_seed(4)
    matrices, expected = adapter_tensors(), dict(ours)
    for side, key in (("embed_tokens", "input_embeddings"), ("lm_head", "output_embeddings")):
        rows[key] = torch.randn(NEW, HIDDEN)
        name = "lm_head" if side == "lm_head" else "model.embed_tokens"
        a, b = torch.randn(2, torch_rows) * 0.1, torch.randn(HIDDEN, 2) * 0.1
        if side == "embed_tokens":
            matrices[f"base_model.model.{name}.lora_embedding_A"] = a
            matrices[f"base_model.model.{name}.lora_embedding_B"] = b
            product = 2.0 * (b @ a).T
        else:
            matrices[f"base_model.model.{name}.lora_A.weight"] = b.T.contiguous()
            matrices[f"base_model.model.{name}.lora_B.weight"] = a.T.contiguous()
            product = 2.0 * (a.T @ b.T)
        expected[f"{name}.weight"] = torch.cat([ours[f"{name}.weight"], rows[key]]) + product
    lora = save_adapter(tmp_path / "lora", matrices, pieces=BASE_ROWS + NEW)
    return base, lora, rows, expected


def test_new_rows_of_vllm_follow_the_bases_before_the_lora(tmp_path: Path) -> None:
    base, lora, rows, expected = grown_lora(tmp_path)
    save_file(rows, lora / "new_embeddings.safetensors")
    options = {"output_type": "huggingface", "dtype": "float32"}
    report = merge_lora(base, lora, tmp_path / "out", **options)
    found = load_weights(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)
    assert "4 rows of new_embeddings.safetensors" in report.summary()
    assert not verify_merge(tmp_path / "out").faults
    merge_lora(base, lora, tmp_path / "pth")
    assert not verify_merge(tmp_path / "pth").faults


def test_new_rows_beside_a_lora_of_zeros_are_a_change(tmp_path: Path) -> None:
    base, lora, rows, _ = grown_lora(tmp_path)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_weights(lora).items()}
    lora = save_adapter(tmp_path / "zeros", zeros, pieces=BASE_ROWS + NEW)
    save_file(rows, lora / "new_embeddings.safetensors")
    report = merge_lora(base, lora, tmp_path / "out")
    assert "4 rows of new_embeddings.safetensors" in report.summary()
    assert "changes nothing" not in report.summary()


def test_new_rows_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    base, lora, rows, _ = grown_lora(tmp_path)
    path = lora / "new_embeddings.safetensors"
    odd = "not what such a file holds"
    for wrong, told in (
        ({key: t[:3].clone() for key, t in rows.items()}, "trained on a larger vocabulary|size"),
        (rows | {"output_embeddings": rows["output_embeddings"][:3].clone()}, odd),
        (rows | {"third": torch.ones(NEW, HIDDEN)}, odd),
        ({key: torch.ones(NEW, HIDDEN + 1) for key in rows}, "a model of another size"),
        ({key: torch.ones(NEW) for key in rows}, odd),
    ):
        save_file(wrong, path)
        before = tree(tmp_path)
        with pytest.raises(MergeError, match=told) as caught:
            merge_lora(base, lora, tmp_path / "out")
        assert caught.value.facts["remedy"]
        assert tree(tmp_path) == before


def test_rows_of_open_assistant_want_a_word_on_the_head(tmp_path: Path) -> None:
    """Its loader copies them into the last rows of the grown embeddings; the head's are random."""
    base = save_base(tmp_path / "base")
    lora = save_adapter(tmp_path / "lora", pieces=BASE_ROWS + NEW)
    rows = random_tensor(NEW, HIDDEN, seed=6)
    torch.save(rows, lora / "extra_embeddings.pt")
    with pytest.raises(AdapterError, match="no rows of the LM head") as caught:
        merge_lora(base, lora, tmp_path / "out")
    assert "--new_token_init mean or zeros" in caught.value.facts["remedy"]
    options = {"output_type": "huggingface", "new_token_init": "mean"}
    merge_lora(base, lora, tmp_path / "out", **options)
    found, ours = load_weights(tmp_path / "out"), load_weights(base)
    assert torch.equal(found["model.embed_tokens.weight"][BASE_ROWS:], rows)
    mean = ours["lm_head.weight"].float().mean(dim=0)
    for row in found["lm_head.weight"][BASE_ROWS:].float():
        torch.testing.assert_close(row, mean, rtol=1e-3, atol=1e-3)
    assert not verify_merge(tmp_path / "out").faults


@pytest.mark.parametrize("name", ["value_head.bin", "value_head.safetensors"])
def test_value_heads_go_along_as_they_are(
    base: Path, lora: Path, tmp_path: Path, name: str
) -> None:
    head = {"v_head.summary.weight": torch.ones(1, HIDDEN), "v_head.summary.bias": torch.ones(1)}
    save_file(head, lora / name) if name.endswith("s") else torch.save(head, lora / name)
    report = merge_lora(base, lora, tmp_path / "out", output_type="huggingface")
    assert (tmp_path / "out" / name).read_bytes() == (lora / name).read_bytes()
    assert f"{name} copied as it is" in report.summary()
    assert not verify_merge(tmp_path / "out").faults
    assert "has no place" in merge_lora(base, lora, tmp_path / "pth").summary()
    second = save_adapter(tmp_path / "second", adapter_tensors(seed=9))
    (second / name).write_bytes((lora / name).read_bytes() + b" ")
    with pytest.raises(UsageError, match="value heads of one name"):
        merge_lora(base, [lora, second], tmp_path / "two", output_type="huggingface")
