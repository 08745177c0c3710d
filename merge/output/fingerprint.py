"""What a run is: enough to decide whether an interrupted one can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checksums.file_digests import get_file_digest
from ..errors import OutputError
from ..messages import tr
from ..settings import OutputSettings
from ..storage.offload import is_offloaded
from ..storage.remote_path import RemotePath
from ..version import __version__

if TYPE_CHECKING:
    from ..plan.placement import Plan
    from ..tensors.lazy import Checkpoint, LazyTensor

_CHANGED = tr(
    "what is written so far was made from the earlier file: start over "
    "with --overwrite instead of --resume"
)
_REMEDY = tr(
    "give the same inputs and options to resume, or start over with --overwrite instead of --resume"
)


@dataclass(frozen=True)
class JobInputs:
    """What a job reads: ``models`` by role, small files of adapters with their SHA-256.

    ``how`` is what shapes the result beside its settings.
    """

    models: Mapping[str, Checkpoint]
    adapters: Mapping[Path, str] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self, plan: Plan) -> dict[str, LazyTensor]:
        """Every tensor whose content digest the manifest records, by a unique name."""
        named = {
            f"{role}: {name}": tensor
            for role, model in self.models.items()
            for name, tensor in model.tensors.items()
        }
        return named | {f"result: {name}": tensor for name, tensor in plan.tensors.items()}


def compute_fingerprint(plan: Plan, settings: OutputSettings, inputs: JobInputs) -> dict[str, Any]:
    """What the result's bytes depend on, as JSON holds it."""
    imatrix = plan.imatrix
    digests = {} if imatrix is None else {imatrix: get_file_digest(imatrix)}
    files = list(_describe_inputs(replace(inputs, adapters={**inputs.adapters, **digests})))
    value = {
        "version": __version__,
        "inputs": dict(files),
        "order": files,
        "settings": {**inputs.how, **settings.result_values()},
        "result": sha256(json.dumps(list(_describe_result(plan))).encode()).hexdigest(),
    }
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]


def _describe_inputs(inputs: JobInputs) -> Iterator[tuple[str, dict[str, str | int]]]:
    """Large files by size and times of their last change, small ones by digest."""
    for path, digest in inputs.adapters.items():
        yield path.name if is_offloaded(path) else str(path.resolve()), {"sha256": digest}
    for model in inputs.models.values():
        for path in model.files:
            status = path.stat()
            if isinstance(path, RemotePath):
                yield str(path), {"bytes": status.st_size, "version": path.stat().version or ""}
            elif is_offloaded(path):  # fetched or unpacked for this run alone
                yield path.name, {"bytes": status.st_size}
            else:
                place = str(path.resolve())
                yield place, {"bytes": status.st_size, **_read_times(status)}


def _read_times(status: os.stat_result) -> dict[str, int]:
    """When a file was last changed.

    Tools that copy set the modification time as they like (``cp -p``, ``rsync -t``), but not the
    change time. Windows has none: there that field holds the time of creation.
    """
    times = {"mtime_ns": status.st_mtime_ns}
    return times if os.name == "nt" else times | {"ctime_ns": status.st_ctime_ns}


def _describe_result(plan: Plan) -> Iterator[list[object]]:
    """Every tensor with its pieces, in the order of writing, and every document."""
    for item in plan.placed:
        pieces = [[*vars(piece).values()] for piece in item.pieces]
        tensor = item.tensor
        yield [item.name, list(tensor.shape), str(tensor.dtype), tensor.origin, pieces]
    for name, data in {**plan.documents, **plan.headers}.items():
        yield [name, sha256(data).hexdigest()]


def require_same_run(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ``OutputError`` saying in what a run differs from the one that was interrupted."""
    if then == now:
        return
    if then["version"] != now["version"]:
        sentence = tr("the interrupted run was one of another version of this program")
        raise _different_run_error(sentence, folder, then["version"], now["version"])
    for name, value in then["inputs"].items():
        if name not in now["inputs"]:
            raise _different_run_error(
                tr("the interrupted run had another input"), folder, name, tr("not given")
            )
        if value != now["inputs"][name]:
            sentence = tr("an input has changed since the run was interrupted")
            then_and_now = (describe_entry(value), describe_entry(now["inputs"][name]))
            raise _different_run_error(sentence, name, *then_and_now, _CHANGED)
    if extra := [name for name in now["inputs"] if name not in then["inputs"]]:
        raise _different_run_error(
            tr("the interrupted run did not have this input"), extra[0], None, None
        )
    for name in {**then["settings"], **now["settings"]}:
        before, after = then["settings"].get(name), now["settings"].get(name)
        if before != after:
            sentence = tr("the interrupted run had another --{name}", name=name)
            if name == "merged_by":
                sentence = tr("the interrupted run merged adapters with other releases of PEFT")
            raise _different_run_error(sentence, folder, before, after)
    raise _different_run_error(
        tr("the interrupted run was to write another model"), folder, None, None
    )


def _different_run_error(
    sentence: str, file: object, then: object, now: object, remedy: str = _REMEDY
) -> OutputError:
    return OutputError(sentence, file=file, expected=then, found=now, remedy=remedy)


def describe_entry(entry: Mapping[str, Any]) -> str:
    """An input of a fingerprint, for people."""
    if "sha256" in entry:
        return f"SHA-256 {entry['sha256']}"
    size = tr("{bytes:,} bytes", bytes=entry["bytes"])
    if "version" in entry:
        return tr("{size}, version {version}", size=size, version=entry["version"])
    if "mtime_ns" not in entry:
        return size
    changed = tr(
        "{size}, last changed {moment}", size=size, moment=_format_moment(entry["mtime_ns"])
    )
    if "ctime_ns" not in entry:
        return changed
    return tr(
        "{changed}, put there {moment}", changed=changed, moment=_format_moment(entry["ctime_ns"])
    )


def _format_moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9).isoformat(" ", "microseconds")
