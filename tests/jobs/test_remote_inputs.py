"""Models and adapters behind URLs: the bytes of local runs, and no more fetched than is needed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from merge import apply_delta, convert_checkpoint, make_delta, merge_lora, resize_vocabulary
from merge.errors import FormatError, OutputError, UsageError
from merge.jobs.merge_many import merge_many
from merge.jobs.verify_merge import verify_merge
from merge.sizes import size_text
from merge.storage import http_client
from merge.tensors.digests import DIGEST_KEYS, DIGEST_VERSION
from tests.kit.adapters import make_adapter
from tests.kit.dense_deltas import make_target
from tests.kit.hub import serve
from tests.kit.llamas import make_base
from tests.kit.run import ROOT, run_merge
from tests.kit.s3_server import BUCKET, serve_bucket, upload
from tests.kit.stopped import contents
from tests.kit.tokenizer_models import write_tokenizer
from tests.kit.web_server import Web, serve_files

MANIFEST = "merge_manifest.json"


@dataclass(frozen=True)
class Local:
    """Inputs in one folder, and what a merge on this machine makes of them."""

    root: Path
    result: dict[str, bytes]


@pytest.fixture(scope="module", params=[".safetensors", ".bin"])
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Local:
    root = tmp_path_factory.mktemp("local")
    sizes = {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 501}
    base = make_base(root / "base", container=request.param, max_shard_size=2_000_000, **sizes)
    adapter = make_adapter(root / "lora", base)
    target = make_target(root / "sum", base, rows=501)
    make_delta(base, target, root / "delta")
    (root / "tokenizer").mkdir()
    write_tokenizer(root / "tokenizer", 520)
    merge_lora(base, adapter, root.parent / f"out{request.param}", output_type="huggingface")
    return Local(root, weights(root.parent / f"out{request.param}"))


@pytest.fixture
def web(local: Local, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(http_client, "_FIRST_WAIT", 0.01)
    with serve_files(local.root) as served:
        yield served


def weights(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which names the sources."""
    found = contents(folder)
    found.pop(MANIFEST, None)
    return found


def needed(root: Path, told: object) -> int:
    """Bytes of the files, less the tensors that were not read whole by the ``told`` manifest."""
    whole = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert isinstance(told, dict)
    key = DIGEST_KEYS[DIGEST_VERSION]
    unread = [t for t in told["inputs"]["base_model"]["tensors"].values() if t[key] is None]
    return whole - sum(2 * math.prod(tensor["shape"]) for tensor in unread)


def test_a_web_servers_base_and_adapter_give_the_bytes_of_a_local_merge(
    tmp_path: Path, local: Local, web: Web
) -> None:
    report = merge_lora(
        f"{web.url}/base", f"{web.url}/lora", tmp_path / "out", output_type="huggingface"
    )
    assert weights(tmp_path / "out") == local.result
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    assert web.nbytes <= 1.02 * needed(local.root, manifest)
    assert f"network    {size_text(web.nbytes)} read" in report.summary()
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["out"], "nothing is left of what was fetched"


def test_a_bucket_gives_the_bytes_of_a_local_merge(
    tmp_path: Path, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_bucket(monkeypatch) as client:
        upload(client, local.root, "in")
        place = f"s3://{BUCKET}/in"
        merge_lora(f"{place}/base", f"{place}/lora", tmp_path / "out", output_type="huggingface")
        assert weights(tmp_path / "out") == local.result
        with pytest.raises(UsageError, match="holds no files"):
            merge_lora(f"{place}/bass", f"{place}/lora", tmp_path / "other")
        with pytest.raises(UsageError, match="holds no files"):
            merge_lora("s3://nobody/base", f"{place}/lora", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_hub_gives_the_bytes_of_a_local_merge(tmp_path: Path, local: Local) -> None:
    hub = tmp_path / "hub" / "zh" / "models"
    hub.parent.mkdir(parents=True)
    hub.symlink_to(local.root, target_is_directory=True)
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    words = ("--base_model", "hf://zh/models/base", "--lora_model", "hf://zh/models@main/lora")
    out = ("--output_dir", tmp_path / "out", "--output_type", "huggingface")
    with serve(tmp_path / "hub") as url:
        told = run_merge(*words, *out, HF_ENDPOINT=url, **home)
        lost = run_merge("--base_model", "hf://zh/model/base", *words[2:], *out, HF_ENDPOINT=url)
    assert told.returncode == 0, told.stderr
    assert weights(tmp_path / "out") == local.result
    assert not list((tmp_path / "home").rglob("*.safetensors")), "no copy is kept"
    assert lost.returncode == 2
    assert "hf://zh/model/base" in lost.stderr


def test_faults_on_the_way_change_nothing(tmp_path: Path, local: Local, web: Web) -> None:
    for path in (local.root / "base").iterdir():
        web.busy[path.name] = web.cut[path.name] = 1
    merge_lora(f"{web.url}/base", local.root / "lora", tmp_path / "out", output_type="huggingface")
    assert weights(tmp_path / "out") == local.result


def test_what_was_written_before_a_server_fell_silent_is_resumed(
    tmp_path: Path, local: Local, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "ATTEMPTS", 2)

    def fail_in_the_middle(written: int, total: int) -> None:
        if written > total // 2:
            web.busy.update({path.name: 99 for path in (local.root / "base").iterdir()})

    arguments = (f"{web.url}/base", local.root / "lora", tmp_path / "out")
    with pytest.raises(OutputError, match="reading or writing failed") as caught:
        merge_lora(*arguments, output_type="huggingface", on_progress=fail_in_the_middle)
    assert web.url in str(caught.value)
    web.busy.clear()
    report = merge_lora(*arguments, output_type="huggingface", resume=True)
    assert any(note.startswith("resumed after") for note in report.notes)
    assert weights(tmp_path / "out") == local.result


def test_a_base_that_changes_meanwhile_is_refused(tmp_path: Path, local: Local, web: Web) -> None:
    copy = local.root / "changing"
    copy.mkdir(exist_ok=True)
    for path in (local.root / "base").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    last = sorted(copy.glob("*model-*"))[-1]

    def change(name: str, count: int) -> None:
        if name == last.name and count == 6:
            last.write_bytes(last.read_bytes()[:-1] + b"\1")

    web.before_part = change
    with pytest.raises(FormatError, match="was changed while it was read"):
        merge_lora(f"{web.url}/changing", local.root / "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_server_without_ranges_needs_a_folder_for_a_copy(
    tmp_path: Path, local: Local, web: Web
) -> None:
    web.ranges = False
    arguments = (f"{web.url}/base", local.root / "lora", tmp_path / "out")
    with pytest.raises(UsageError, match="whole files only"):
        merge_lora(*arguments, output_type="huggingface")
    assert not (tmp_path / "out").exists()
    report = merge_lora(*arguments, output_type="huggingface", offload_dir=tmp_path / "copies")
    assert "was copied into --offload_dir" in report.summary()
    assert weights(tmp_path / "out") == local.result
    assert not (tmp_path / "copies").exists()


def test_other_jobs_read_urls_too(tmp_path: Path, local: Local, web: Web) -> None:
    merge_lora(f"{web.url}/base", local.root / "lora", tmp_path / "out", output_type="huggingface")
    checked = verify_merge(
        tmp_path / "out", base_model=f"{web.url}/base", lora_model=f"{web.url}/lora"
    )
    assert not checked.faults, checked.summary()
    for name, place in (("there", web.url), ("here", local.root)):
        convert_checkpoint(f"{place}/base", tmp_path / name / "meta", output_type="pth")
        resize_vocabulary(f"{place}/base", f"{place}/tokenizer", tmp_path / name / "resized")
        apply_delta(f"{place}/base", f"{place}/delta", tmp_path / name / "sum")
    for job in ("meta", "resized", "sum"):
        assert weights(tmp_path / "there" / job) == weights(tmp_path / "here" / job)


@pytest.mark.parametrize("script", ["inspect_adapter", "compare_checkpoints"])
def test_inspection_and_comparison_read_urls_too(local: Local, web: Web, script: str) -> None:
    """What they print is that of the local files, but for the names."""
    told = []
    for place in (web.url, str(local.root)):
        words = {
            "inspect_adapter": (f"{place}/lora", "--base_model", f"{place}/base"),
            "compare_checkpoints": (f"{place}/base", f"{place}/sum"),
        }[script]
        ended = run_merge(*words, "--json", script=ROOT / "scripts" / f"{script}.py")
        assert ended.returncode in (0, 1), ended.stderr
        told.append(ended.stdout.replace(str(local.root), "PLACE").replace(web.url, "PLACE"))
    assert told[0] == told[1]
    assert "PLACE" in told[0]


@pytest.mark.parametrize("kind", ["a folder behind a URL", "a zipped folder"])
def test_copies_are_told_by_the_names_that_the_user_gave(
    tmp_path: Path, local: Local, kind: str
) -> None:
    """Adapters are read from copies, which are gone when a message is read."""
    root = tmp_path / "served"
    shutil.copytree(local.root / "lora", root / "lora")
    write_tokenizer(root / "lora", 501)
    with serve_files(root) as web:
        named = f"{web.url}/lora"
        if kind == "a zipped folder":
            named = shutil.make_archive(str(tmp_path / "zipped"), "zip", root, "lora")
        place, out = local.root / "base", tmp_path / "out"
        summary = merge_lora(place, named, out, output_type="huggingface", report=True).summary()
        assert named in summary
        told = json.loads((out / "report.json").read_bytes())
        assert told["inputs"]["tokenizer"]["source"] == named
        for text in (summary, *(data.decode("latin-1") for data in contents(out).values())):
            assert ".offload" not in text

        weights = root / "lora" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        if kind == "a zipped folder":
            shutil.make_archive(str(tmp_path / "zipped"), "zip", root, "lora")
        with pytest.raises(FormatError) as caught:
            merge_lora(place, named, tmp_path / "none")
    assert caught.value.facts["file"] == f"{named}/{weights.name}"
    assert ".offload" not in str(caught.value)


def test_jobs_of_a_file_read_urls(tmp_path: Path, local: Local, web: Web) -> None:
    jobs = {
        "base_model": f"{web.url}/base",
        "output_type": "huggingface",
        "jobs": [{"lora_model": [f"{web.url}/lora"], "output_dir": str(tmp_path / "out")}],
    }
    (tmp_path / "jobs.yaml").write_text(json.dumps(jobs))
    merge_many(tmp_path / "jobs.yaml")
    assert weights(tmp_path / "out") == local.result


def test_credentials_are_in_neither_manifest_nor_summary(
    tmp_path: Path, local: Local, web: Web
) -> None:
    secret = web.url.replace("://", "://me:hidden@")
    report = merge_lora(f"{secret}/base?key=hidden", f"{secret}/lora?key=hidden", tmp_path / "out")
    assert "hidden" not in report.summary()
    for data in contents(tmp_path / "out").values():
        assert b"hidden" not in data
