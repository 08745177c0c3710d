"""What the jobs on whole models share: a planned job, and how it is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checksums.known_tokenizers import explain_mismatch, recognize_bytes
from ..engines.call import Call
from ..errors import VocabularyError
from ..messages import tr
from ..output.fingerprint import JobInputs
from ..output.preflight import OutputFolder, require_names_free
from ..settings import OnProgress, OutputSettings
from ..storage.offload import Offload
from ..tokenizers.opaque_tokenizer import Tokenizer
from ..version import REPORT_NAMES
from .job_report import Report
from .writing import write

if TYPE_CHECKING:
    from ..output.journal import WrittenFile
    from ..plan.placement import Plan
    from ..reports.content import ReportSource
    from ..tensors.lazy import Checkpoint


@dataclass(frozen=True)
class Input:
    """A model that a job reads; ``source`` is how the user named it."""

    source: str
    folder: Path
    checkpoint: Checkpoint

    @property
    def rows(self) -> int:
        """Rows of the embeddings."""
        from ..layouts.llama import EMBED_TOKENS

        return self.checkpoint.tensors[EMBED_TOKENS].rows


@dataclass(frozen=True)
class PlannedJob:
    """A job that has been checked and planned from headers.

    ``models`` are its inputs by their names in the manifest, ``how`` its settings there,
    and ``record`` its name and options (``output.repeated``).
    ``changes`` and ``notes`` are lines for people; ``final_notes(resumed)`` returns those that are
    known only when everything has been written. ``check`` raises ``MergeError`` where the written
    values show a mistake. ``report()`` is what a report is made of, where one is wanted.
    """

    plan: Plan
    models: Mapping[str, Input]
    tokenizer: Tokenizer
    how: Mapping[str, Any]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    record: Mapping[str, Any]
    final_notes: Callable[[bool], tuple[str, ...]] = lambda _: ()
    check: Callable[[], None] = lambda: None
    report: Callable[[], ReportSource] | None = None

    def manifest(self, written: Mapping[str, WrittenFile]) -> dict[str, Any]:
        """What ``merge_manifest.json`` says of this job."""
        from ..output.manifest import build_manifest, describe_checkpoint

        inputs = {
            role: describe_checkpoint(model.source, model.checkpoint)
            for role, model in self.models.items()
        }
        how = {**self.how, **self.record}
        return build_manifest(self.plan, written, inputs, self.tokenizer, how, {})

    def reads(self) -> JobInputs:
        """What it reads."""
        models = {role: model.checkpoint for role, model in self.models.items()}
        return JobInputs(models, how=self.how)

    def inputs(self) -> tuple[str, ...]:
        """Lines about what was read."""
        return (
            *(_describe_model(role, model) for role, model in self.models.items()),
            tr(
                "tokenizer  {path} ({n_tokens} tokens)",
                path=self.tokenizer.path,
                n_tokens=self.tokenizer.n_tokens,
            ),
        )


def _describe_model(role: str, model: Input) -> str:
    path, rows = model.folder, model.rows
    if role == "base_model":
        return tr("base       {path} ({rows} rows)", path=path, rows=rows)
    if role == "delta_model":
        return tr("delta      {path} ({rows} rows)", path=path, rows=rows)
    if role == "target_model":
        return tr("target     {path} ({rows} rows)", path=path, rows=rows)
    return tr("model      {path} ({rows} rows)", path=path, rows=rows)


def write_and_report(
    job: PlannedJob,
    folder: OutputFolder,
    settings: OutputSettings,
    started: float,
    on_progress: OnProgress | None,
    offload: Offload,
    call: Call | None = None,
    require_same: Callable[[], None] = lambda: None,
) -> Report:
    """Write the plan, unless ``dry_run``, and report. ``started`` is a time of ``monotonic``.

    ``offload`` has counted what came over the network; ``call`` is what an engine needs that plans
    it once more on other machines. ``require_same`` raises ``VerificationError`` for inputs that
    are not to be used; it is called before anything is written and when all has been read.
    """
    require_same()
    maker = None
    if job.report is not None and not settings.dry_run:
        from ..reports.report_files import ReportMaker

        require_names_free(folder, REPORT_NAMES, settings.overwrite or settings.resume)
        maker = ReportMaker(replace(job.report(), copies=offload.copies), started)

    def check() -> None:
        require_same()
        job.check()

    resumed = write(job, folder, settings, on_progress, check, call, maker)
    seconds = time.monotonic() - started
    dry_run = settings.dry_run
    notes = job.notes if dry_run else (*resumed, *job.notes, *job.final_notes(bool(resumed)))
    inputs = offload.rename(*job.inputs(), *offload.describe_network())
    lines = inputs, job.changes, offload.rename(*notes)
    sources = {role: model.source for role, model in job.models.items()}
    return Report(folder.path, job.plan, seconds, dry_run, *lines, sources=sources)


def require_enough_rows(rows: int, tokenizer: Tokenizer) -> tuple[str, ...]:
    """A model needs a row for each token; it may have more. Returns a note where it has.

    Raises ``VocabularyError`` when it has fewer.
    """
    tokens = tokenizer.n_tokens
    if tokens is not None and tokens > rows:
        said = explain_mismatch(recognize_bytes(tokenizer.vocabulary), rows)
        raise VocabularyError(
            tr("tokenizer and embeddings do not belong together"),
            file=tokenizer.path,
            tensor="model.embed_tokens.weight, lm_head.weight",
            expected=tr("at most {rows} tokens, one for each row", rows=rows),
            found=tr("{tokens} tokens", tokens=tokens),
            remedy=said
            or tr(
                "give the tokenizer that belongs to the model, with --tokenizer; "
                "rows for new tokens are made by resize_llama_vocabulary.py"
            ),
        )
    if tokens in (None, rows):
        return ()
    return (
        tr(
            "the model has {rows} rows for {tokens} tokens; llama.cpp's "
            "converter needs --pad-vocab for that",
            rows=rows,
            tokens=tokens,
        ),
    )
