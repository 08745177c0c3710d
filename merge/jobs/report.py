"""Make the report of a result that is there: from the numbers of an earlier report, or by measuring
once more with the inputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, OutputError, UsageError, shown
from ..job_settings import ApplyDeltaSettings, MergeSettings
from ..messages import compose, join, tr
from ..option_checks import require_report_libraries
from ..output.preflight import OutputFolder, require_names_free
from ..output.staged_folder import lock_folder, replace_files
from ..plan.inputs import find_sources
from ..settings import OnProgress, OutputSettings, OutputType
from ..storage.offload import Offload
from ..user_paths import expand_user
from ..version import MANIFEST_NAME, REPORT_HTML, REPORT_JSON, REPORT_NAMES
from .apply_delta import DeltaCall
from .merge_lora import plan_merge
from .writing import byte_counter

if TYPE_CHECKING:
    from ..deltas.observed import Measurements
    from ..plan.placement import Plan
    from ..reports.content import ReportSource
    from ..verification.manifest import Manifest

# What the merge had as --outtype for each dtype; other types are made of these tensors.
_PLAIN_OUTTYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "auto": "f16"}


@dataclass(frozen=True)
class ReportResult:
    """Where a report is, how many ``findings`` it has, and how long it took.

    ``measured`` tells whether inputs were read; otherwise an earlier report's numbers were taken.
    """

    path: Path
    findings: int
    measured: bool
    seconds: float

    def summary(self) -> str:
        """Describe it in a few lines."""
        how = (
            tr("measured from the inputs")
            if self.measured
            else tr("from the numbers of report.json")
        )
        lines = [
            tr("report     {path} ({how})", path=shown(str(self.path)), how=how),
            tr("findings   {findings}", findings=self.findings),
            tr("took       {seconds:.1f} s", seconds=self.seconds),
        ]
        return join("\n", [tr("Done:"), *(compose("  {line}", line=line) for line in lines)])


@dataclass(frozen=True)
class NamedInputs:
    """The inputs as the user names them; None for those that the manifest names."""

    base_model: str | Path | None = None
    lora_model: str | Path | Sequence[str | Path] | None = None
    delta_model: str | Path | None = None
    tokenizer: str | Path | None = None
    context_length: int | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())


def write_report(
    output_dir: str | Path,
    *,
    base_model: str | Path | None = None,
    lora_model: str | Path | Sequence[str | Path] | None = None,
    delta_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    context_length: int | None = None,
    num_workers: int | None = None,
    offload_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> ReportResult:
    """Write ``report.html`` and ``report.json`` into the folder of a result.

    Where ``report.json`` is there and no input is named, the page is made of it anew. Otherwise
    base, adapters and delta are read, those that are not named from where the manifest says, and
    every change is measured; the result must be theirs.

    Raises ``MergeError`` for a folder that is no result, and for inputs of another one; the folder
    is then as it was.
    """
    started = time.monotonic()
    require_report_libraries()
    folder = expand_user(output_dir)
    named = NamedInputs(base_model, lora_model, delta_model, tokenizer, context_length)
    _require_folder(folder)
    resources = {"num_workers": num_workers, "offload_dir": offload_dir}
    with lock_folder(folder):
        target = OutputFolder(folder)
        manifest, parsed = _read_result(target)
        require_names_free(target, REPORT_NAMES, overwrite=True)
        report = None if named else _read_report(target, manifest)
        measured = report is None
        if report is None:
            report = _measure(folder, manifest, parsed, named, resources, started, on_progress)
        from ..reports.report_files import render_report

        replace_files(folder, render_report(report))
    count = len(report["findings"])
    return ReportResult(folder / REPORT_HTML, count, measured, time.monotonic() - started)


def _require_folder(folder: Path) -> None:
    if "\0" in str(folder) or not folder.is_dir():
        raise UsageError(
            tr("the result does not exist"),
            file=folder,
            remedy=tr("give the --output_dir of a merge"),
        )


def _read_result(target: OutputFolder) -> tuple[dict[str, Any], Manifest]:
    """The manifest, as it is and parsed. Raises ``MergeError`` where there is no whole result."""
    from ..verification.manifest import read_manifest

    if target.leftovers:
        raise OutputError(
            tr("the run that writes this folder was interrupted: there is no result yet"),
            file=target.path,
            remedy=tr("resume it with the same command and --resume"),
        )
    parsed = read_manifest(target.path)
    if not parsed.adapters and "delta_model" not in parsed.models:
        raise UsageError(
            tr("nothing was merged into this model, so there is no change to report"),
            file=target.path / MANIFEST_NAME,
            expected=tr("the result of a merge, or of apply_delta.py"),
            found=tr(
                "inputs {models}", models=", ".join(parsed.models) or tr("that are not named")
            ),
        )
    return target.read_json(MANIFEST_NAME), parsed


def _read_report(target: OutputFolder, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of an earlier report of this very result; None where there is none."""
    from ..reports.content import FORMAT, digest_manifest

    if REPORT_JSON not in target.report_names:
        return None
    try:
        report = target.read_json(REPORT_JSON)
    except FormatError:
        return None
    same = report.get("manifest_sha256") == digest_manifest(manifest)
    return report if same and report.get("format") == FORMAT else None


def _measure(
    folder: Path,
    manifest: Mapping[str, Any],
    parsed: Manifest,
    named: NamedInputs,
    resources: Mapping[str, Any],
    started: float,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Read the inputs and compute the result once more, without writing it."""
    from ..reports.content import build_report
    from ..reports.pace import Pace

    pace = Pace(started)
    settings = _make_settings(folder, manifest, parsed, named, resources)
    with Offload(settings.offload_parent, folder, settings.io) as offload:
        source, plan = _plan(folder, parsed, named, settings, offload)
        tensors = {name: plan.tensors[name] for name in source.measured.tensors}
        measured = replace(source.measured, tensors=tensors)
        total = sum(tensor.nbytes for tensor in tensors.values())
        count = byte_counter(pace.following(on_progress), total)
        measured.compute_missing(settings.workers, count)
        _require_same_result(folder, parsed, measured)
        return build_report(
            replace(source, is_merge=False, copies=offload.copies), manifest, pace, len(tensors)
        )


def _make_settings(
    folder: Path,
    manifest: Mapping[str, Any],
    parsed: Manifest,
    named: NamedInputs,
    resources: Mapping[str, Any],
) -> MergeSettings | ApplyDeltaSettings:
    """The settings of the merge, as far as they shape what is measured."""
    output_type = _find_output_type(parsed)
    common: dict[str, Any] = {
        **resources,
        "output_type": output_type,
        "dtype": parsed.dtype,
        "allow_nonfinite": True,
        "delta_embeddings": parsed.delta_embeddings,
        "context_length": named.context_length,
        "report": True,
        "model_name": folder.resolve().name or "model",
    }
    if output_type == "gguf":
        common["outtype"] = _PLAIN_OUTTYPES[parsed.dtype]
    if not parsed.adapters:
        init = manifest.get("delta", {}).get("new_token_init")
        return ApplyDeltaSettings(**common, new_token_init=init, keep_extra_tensors=True)
    return MergeSettings(
        **common,
        lora_weights=[entry.weight for entry in parsed.adapters],
        ignore_file=tuple(name for entry in parsed.adapters for name in entry.ignored),
        rounding=parsed.rounding,  # type: ignore[arg-type]
        vocab_mismatch=parsed.vocab_mismatch,
        new_token_init=parsed.new_token_init,
        allow_unknown_combination=parsed.allow_unknown,
        allow_quantized_input=True,
    )


def _find_output_type(parsed: Manifest) -> OutputType:
    suffixes = {Path(name).suffix for name in parsed.files}
    if ".gguf" in suffixes:
        return "gguf"
    return "pth" if ".pth" in suffixes else "huggingface"


def _plan(
    folder: Path,
    parsed: Manifest,
    named: NamedInputs,
    settings: OutputSettings,
    offload: Offload,
) -> tuple[ReportSource, Plan]:
    """Plan the merge once more. Raises ``UsageError`` that says how to name what is not there."""
    from ..reports.merge_source import describe_merge

    models = {role: entry.source for role, entry in parsed.models.items()}
    base = str(named.base_model or models.get("base_model") or "")
    delta = named.delta_model or models.get("delta_model")
    tokenizer = named.tokenizer or (_find_own_tokenizer(folder) if parsed.tokenizer_named else None)
    told = str(tokenizer) if tokenizer else None
    if not isinstance(settings, MergeSettings):
        assert isinstance(settings, ApplyDeltaSettings)
        call = DeltaCall(folder, settings, base, str(delta), told)
        job = call.plan(call.find_inputs(offload), offload)
        assert job.report is not None, "it was asked for"
        return job.report(), job.plan
    given = named.lora_model or [entry.source for entry in parsed.adapters]
    loras = [given] if isinstance(given, (str, Path)) else given
    try:
        sources = find_sources(base, [str(name) for name in loras], told, offload, _text(delta))
    except UsageError as error:
        raise UsageError(
            error.sentence,
            file=error.facts.get("file"),
            expected=error.facts.get("expected"),
            remedy=tr(
                "say where the inputs are now, with --base_model, --lora_model and --delta_model"
            ),
        ) from None
    merge = plan_merge(sources, settings, offload)
    _require_same_adapters(folder, parsed, [[*a.digests.values()] for a in merge.adapters])
    return describe_merge(merge), merge.plan


def _text(source: str | Path | None) -> str | None:
    return str(source) if source else None


def _find_own_tokenizer(folder: Path) -> Path:
    """The result's own tokenizer: that of its files, or of its GGUF file."""
    return next(iter(sorted(folder.glob("*.gguf"))), folder)


def _require_same_adapters(
    folder: Path, parsed: Manifest, digests: Sequence[Sequence[str]]
) -> None:
    recorded = [set(entry.digests) for entry in parsed.adapters]
    if [set(one) for one in digests] != recorded:
        raise _other_inputs_error(folder, tr("the adapters' files have other digests"))


def _require_same_result(folder: Path, parsed: Manifest, measured: Measurements) -> None:
    """Raise ``UsageError`` unless the tensors just computed are those that were written."""
    from ..tensors.digests import get_digests
    from ..tensors.lazy import get_dtype_name

    for name, digest in get_digests(measured.tensors).items():
        written = parsed.tensors.get(name)
        same_dtype = written and written.dtype == get_dtype_name(measured.tensors[name].dtype)
        if written is None or (same_dtype and digest and digest != written.digest):
            raise _other_inputs_error(folder, tr("{name} comes out with other values", name=name))


def _other_inputs_error(folder: Path, found: str) -> UsageError:
    return UsageError(
        tr("these are not the inputs that the result was made of"),
        file=folder / MANIFEST_NAME,
        found=found,
        remedy=tr(
            "name the base and the adapters of this result with --base_model and --lora_model"
        ),
    )
