"""Hub ids, through a server on this machine, and names that only look like them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.kit.files import tree
from tests.kit.hub import serve
from tests.kit.models import LLAMA_ROWS, adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.run import run_merge


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Repositories ``meta/llama-7b`` (both containers) and ``zh/chinese-llama``."""
    root = tmp_path / "hub"
    save_base(root / "meta" / "llama-7b", name="model.safetensors")
    save_base(root / "meta" / "llama-7b", {"wrong": base_tensors()["lm_head.weight"]})
    save_adapter(root / "zh" / "chinese-llama", adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    return root


def merge(tmp_path: Path, url: str, lora: str, *more: object) -> subprocess.CompletedProcess[str]:
    words = ("--base_model", "meta/llama-7b", "--lora_model", lora)
    out = ("--output_dir", tmp_path / "merged")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return run_merge(*words, *out, *more, HF_ENDPOINT=url, **home)


@pytest.mark.slow
@pytest.mark.parametrize("offloaded", [False, True], ids=["cache", "--offload_dir"])
def test_hub_ids_are_downloaded_and_merged(tmp_path: Path, hub: Path, offloaded: bool) -> None:
    offload = ("--offload_dir", tmp_path / "offload") if offloaded else ()
    with serve(hub) as url:
        told = merge(tmp_path, url, "zh/chinese-llama", *offload)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "merged" / "consolidated.00.pth").is_file()
    assert not (tmp_path / "offload").exists()
    cached = [path.name for path in (tmp_path / "home").rglob("*") if path.is_symlink()]
    assert ("adapter_model.bin" in cached) is not offloaded
    assert "pytorch_model.bin" not in cached  # safetensors suffice


@pytest.mark.slow
@pytest.mark.parametrize("offloaded", [False, True], ids=["cache", "--offload_dir"])
def test_folder_and_revision_of_a_repository(tmp_path: Path, hub: Path, offloaded: bool) -> None:
    plain = hub / "zh" / "chinese-llama"
    tagged = hub / "zh" / "all@v1.0" / "lora" / "7b"
    save_adapter(tagged, adapter_tensors(LLAMA_ROWS), pieces=LLAMA_ROWS)
    save_adapter(hub / "zh" / "all" / "lora" / "7b", adapter_tensors(LLAMA_ROWS, seed=9))
    offload = ("--offload_dir", tmp_path / "offload") if offloaded else ()
    with serve(hub) as url:
        told = merge(tmp_path, url, "zh/all/lora/7b@v1.0", *offload)
        assert told.returncode == 0, told.stderr
        (tmp_path / "merged").rename(tmp_path / "first")
        local = merge(tmp_path, url, str(plain))
        lost = merge(tmp_path, url, "zh/all/lora/8b@v1.0", "--overwrite")
        unknown = merge(tmp_path, url, "zh/other@v1.0", "--overwrite")
    assert local.returncode == 0, local.stderr
    first, second = (tmp_path / name / "consolidated.00.pth" for name in ("first", "merged"))
    assert first.read_bytes() == second.read_bytes()
    assert lost.returncode == unknown.returncode == 2
    assert "has no such folder" in lost.stderr
    assert "zh/other@v1.0" in unknown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zh/chinese-lama", "zh/chinese--llama"])
def test_repository_that_does_not_exist_is_told_in_one_message(
    tmp_path: Path, hub: Path, name: str
) -> None:
    with serve(hub) as url:
        told = merge(tmp_path, url, name)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("error: the adapter is no local folder, and it could not be")
    assert f"file:     {name}" in told.stderr
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_connection_that_breaks_is_told_and_nothing_stays(tmp_path: Path, hub: Path) -> None:
    with serve(hub, cut=("adapter_model.bin",)) as url:
        told = merge(tmp_path, url, "zh/chinese-llama", "--offload_dir", tmp_path / "offload")
    assert told.returncode == 2
    assert "error: the adapter is no local folder, and it could not be fetched" in told.stderr
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "offload").exists()
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_hub_that_cannot_be_reached_is_told_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    told = merge(tmp_path, "http://127.0.0.1:9", "zh/chinese-llama")
    assert time.monotonic() - started < 10
    assert told.returncode == 2
    assert "the base model is no local folder, and it could not be fetched" in told.stderr
    assert "download it elsewhere" in told.stderr


@pytest.mark.parametrize(
    "name", ["./chinese-lama", "/nowhere/chinese-lama", "chinese-lama", "loras/chinese-lama"]
)
def test_path_that_does_not_exist_is_no_download_attempt(tmp_path: Path, name: str) -> None:
    save_base(tmp_path / "base")
    (tmp_path / "loras" / "chinese-llama").mkdir(parents=True)
    before = tree(tmp_path)
    home = str(tmp_path / "home")
    words = ("--base_model", "base", "--lora_model", name, "--output_dir", "merged")
    with serve(tmp_path) as url:
        told = run_merge(*words, cwd=tmp_path, HF_ENDPOINT=url, HF_HOME=home)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("error: the adapter does not exist\n")
    assert tree(tmp_path) == before
