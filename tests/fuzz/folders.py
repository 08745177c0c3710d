"""Folders in which one file is changed: results verified, models compared, configurations used."""

from __future__ import annotations

import io
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from merge import convert_checkpoint, merge_lora
from merge.commands import compare_checkpoints
from merge.errors import MergeError
from merge.jobs.verify_merge import verify_merge
from tests.fuzz.edits import apply_in_folder, apply_to_json, apply_to_values
from tests.fuzz.subjects import Change, Subject, require_short_message
from tests.kit.models import BASE_ROWS, adapter_tensors, base_tensors, save_adapter, save_base

Use = Callable[[], object]
RESULT = "out/merge_manifest.json"
COMPARED = ("compared/hf", "compared/meta", "compared/gguf")
CONFIGURATIONS = ("base/config.json, values", "meta/params.json, values")


def manifests(folder: Path) -> dict[str, Subject]:
    """The manifest of a result, which is then verified with the inputs that it names."""
    base, adapter = _inputs(folder)
    out = folder / "out"
    merge_lora(base, adapter, out, output_type="huggingface", lora_weights="0.5")

    def verify() -> None:
        for files_only in (True, False):
            found = verify_merge(out, files_only=files_only, num_workers=1)
            for fault in found.faults:
                require_short_message(fault)
            _require_printable(found.summary())

    return {RESULT: _changed(folder / RESULT, apply_to_json, [verify])}


def configurations(folder: Path) -> dict[str, Subject]:
    """Values of other kinds in what says how large a model is; all that reads it is tried."""
    base, adapter = _inputs(folder)
    meta, out = folder / "meta", folder / "out"
    full = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": 4}
    more = {"max_position_embeddings": 64, "tie_word_embeddings": False, "pad_token_id": 0}
    save_base(base, pieces=BASE_ROWS, **full, **more)
    save_base(folder / "plain")
    convert_checkpoint(folder / "plain", meta, output_type="pth")

    def merged(kind: str) -> Use:
        return lambda: merge_lora(base, adapter, out, output_type=kind, dry_run=True)

    def converted(source: Path, kind: str) -> Use:
        return lambda: convert_checkpoint(source, out, output_type=kind, dry_run=True)

    kinds = ("huggingface", "pth", "gguf")
    uses = {
        CONFIGURATIONS[0]: [
            *(merged(kind) for kind in kinds),
            *(converted(base, kind) for kind in kinds),
            lambda: _command(compare_checkpoints.main, base, folder / "plain"),
        ],
        CONFIGURATIONS[1]: [
            *(converted(meta, kind) for kind in kinds),
            lambda: _command(compare_checkpoints.main, meta, base),
        ],
    }
    return {
        name: _changed(folder / name.partition(",")[0], apply_to_values, used)
        for name, used in uses.items()
    }


def compared(folder: Path) -> dict[str, Subject]:
    """Folders in each layout, packed for the way; a file in them is changed, renamed or removed."""
    folders = {name: folder / name for name in COMPARED}
    hf, meta, gguf = folders.values()
    plain = save_base(folder / "plain", max_position_embeddings=64)
    convert_checkpoint(plain, hf, output_type="huggingface", safe_serialization=True)
    convert_checkpoint(plain, meta, output_type="pth", num_shards=2)
    convert_checkpoint(plain, gguf, output_type="gguf")

    def subject(path: Path) -> Subject:
        def check(changed: bytes, at: Path) -> bool:
            there = at / "unpacked"
            shutil.rmtree(there, ignore_errors=True)
            try:
                with zipfile.ZipFile(io.BytesIO(changed)) as archive:
                    archive.extractall(there)
            except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
                return False  # the parcel itself is spoilt, which tells nothing of the folder
            return _command(compare_checkpoints.main, there, plain) != 2

        return Subject(_packed(path), apply_in_folder, check)

    return {name: subject(path) for name, path in folders.items()}


def _inputs(folder: Path) -> tuple[Path, Path]:
    base = save_base(folder / "base", base_tensors(), pieces=BASE_ROWS)
    return base, save_adapter(folder / "adapter", adapter_tensors(), pieces=BASE_ROWS)


def _changed(path: Path, change: Change, uses: Sequence[Use]) -> Subject:
    """A file at its place; each changed one is used in one of the ways, the same one every time."""
    content = path.read_bytes()

    def check(changed: bytes, _: Path) -> bool:
        path.write_bytes(changed)
        try:
            uses[zlib.crc32(changed) % len(uses)]()
        except MergeError as error:
            require_short_message(error)
            return False
        finally:
            path.write_bytes(content)
        return True

    return Subject(content, change, check)


def _packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def _command(main: Callable[[Sequence[str]], int], *paths: Path) -> int:
    """The exit code of a command, which says nothing that could steer a terminal."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([*map(str, paths)])
    assert code in (0, 1, 2)
    _require_printable(said.getvalue())
    return code


def _require_printable(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), text
