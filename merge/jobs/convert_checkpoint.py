"""Pour a model into another layout, container, number of files or dtype."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..job_settings import ConvertSettings
from ..layouts.model_folder import ModelFolder
from ..layouts.params import PARAMS_NAME, read_params
from ..messages import tr
from ..options import takes_options
from ..output.repeated import record_options
from ..plan.documents import find_model_config
from ..plan.inputs import choose_any_tokenizer
from ..plan.places import find_output, resolve
from ..settings import OnProgress, make_settings
from ..storage.offload import Offload
from ..storage.urls import hide_credentials
from ..tokenizers.opaque_tokenizer import Tokenizer
from .job_report import Report
from .planned import Input, PlannedJob, require_enough_rows, write_and_report
from .writing import lock_output, make_input_check

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..keywords import ConvertOptions

_SCALED_RELEASES = ("3.1", "3.2")
# One size under two names: Meta's paper says 33B, its download 30B.
_ALSO_CALLED = {"30B": "33B", "33B": "30B"}


@takes_options(ConvertSettings)
def convert_checkpoint(
    model: str | Path,
    output_dir: str | Path,
    *,
    tokenizer: str | Path | None = None,
    same_inputs_as: str | Path | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[ConvertOptions],
) -> Report:
    """Write ``model``, a local folder or Hub id in any layout that is read, in another one.

    ``options`` are those of the command (docs/options.md), the fields of ``ConvertSettings``.
    With ``same_inputs_as``, a manifest, inputs of other content than it records are refused.

    Raises ``MergeError`` for every mistake in the input; the output folder is then as it was.
    """
    started = time.monotonic()
    chosen = make_settings(ConvertSettings, options, output_dir, convert_checkpoint)
    output = find_output(output_dir)
    named = None if tokenizer is None else str(tokenizer)
    call = ConvertCall(output, chosen, str(model), named)
    with Offload(chosen.offload_parent, output, chosen.io) as offload:
        found = call.find_inputs(offload)
        inputs = (found.folder.path, found.tokenizer.path)
        with lock_output(output, inputs, chosen) as target:
            job = call.plan(found, offload)
            require_same = make_input_check(job, same_inputs_as)
            return write_and_report(
                job, target, chosen, started, on_progress, offload, call, require_same
            )


@dataclass(frozen=True)
class ConvertInputs:
    """The model that is converted, and the tokenizer of the result."""

    folder: ModelFolder
    tokenizer: Tokenizer


@dataclass(frozen=True)
class ConvertCall:
    """What a conversion was called with: a ``Call``."""

    output: Path
    settings: ConvertSettings
    model: str
    tokenizer: str | None

    def find_inputs(self, offload: Offload) -> ConvertInputs:
        """Find the folders; the Hub's are downloaded."""
        folder = ModelFolder(resolve(self.model, tr("model"), offload))
        folder.require_config()
        return ConvertInputs(folder, choose_any_tokenizer(self.tokenizer, folder, offload))

    def plan(self, found: ConvertInputs, offload: Offload) -> PlannedJob:
        """Plan the conversion of what was found."""
        named = self.tokenizer is not None
        return _plan_job(self.model, found.folder, found.tokenizer, self.settings, offload, named)


def _plan_job(
    source: str,
    folder: ModelFolder,
    tokenizer: Tokenizer,
    settings: ConvertSettings,
    offload: Offload,
    named: bool,
) -> PlannedJob:
    from ..deltas.apply import apply_adapters
    from ..layouts.opening import open_checkpoint
    from ..plan.placement import Model, plan_output
    from ..tensors.digests import add_checkpoint_digests
    from ..tensors.lazy import parse_dtype

    checkpoint = add_checkpoint_digests(open_checkpoint(folder, offload, settings.context_length))
    config = find_model_config(folder, checkpoint)
    model = Input(hide_credentials(source), folder.path, checkpoint)
    padding = require_enough_rows(model.rows, tokenizer)
    placed = apply_adapters(checkpoint, (), parse_dtype(settings.dtype))
    parts = (placed.tensors, placed.tied, model.rows, config, tokenizer, (source,))
    plan = plan_output(Model(*parts), settings)
    notes = [*config.notes, *padding]
    if settings.output_type != "pth":
        notes += checkpoint.notes
    if checkpoint.dropped:
        notes.append(
            tr(
                "left out {n_dropped} rotary buffers, which every reader makes",
                n_dropped=len(checkpoint.dropped),
            )
        )
    changes = (
        tr(
            "{n_tensors} tensors, dtype {dtype}",
            n_tensors=len(checkpoint.tensors),
            dtype=settings.dtype,
        ),
    )
    how = {"dtype": settings.dtype, "tokenizer_named": named}
    return PlannedJob(
        plan,
        {"model": model},
        tokenizer,
        how,
        changes,
        tuple(notes),
        record_options("convert", settings),
    )


def require_release(folder: Path, release: str | None) -> None:
    """Raise ``UsageError`` where ``--llama_version`` contradicts ``params.json``: from Llama 3.1 on
    rotary positions are scaled.
    """
    scaled = bool(read_params(ModelFolder(folder)).get("use_scaled_rope"))
    if release is not None and (release in _SCALED_RELEASES) != scaled:
        raise UsageError(
            tr("--llama_version and params.json contradict each other"),
            file=folder / PARAMS_NAME,
            expected=tr(
                '"use_scaled_rope": {text}, as in Llama {release}',
                text="false" if scaled else "true",
                release=release,
            ),
            found="true" if scaled else tr("no such key"),
            remedy=tr("leave --llama_version out, or give that of the download"),
        )


def find_size(input_dir: Path, model_size: str | None) -> Path:
    """Find the folder of one size in Meta's download; ``tokenizer.model`` is one level above.

    ``input_dir`` may be that folder itself. Raises ``UsageError`` when it cannot be found.
    """
    names = [name for name in (model_size, _ALSO_CALLED.get(model_size or "")) if name]
    folders = [*(input_dir / name for name in names), input_dir]
    if found := next((folder for folder in folders if ModelFolder(folder).is_meta), None):
        return found
    present = sorted(path.parent for path in input_dir.glob(f"*/{PARAMS_NAME}"))
    if model_size is None and len(present) == 1:
        return present[0]
    listed = ", ".join(path.name for path in present)
    raise UsageError(
        tr("the folder holds no model of this size")
        if model_size
        else tr("the folder holds no model"),
        file=folders[0],
        expected=tr("consolidated.*.pth and {params_name}", params_name=PARAMS_NAME),
        found=tr("in folders of their own: {listed}", listed=listed)
        if listed
        else tr("neither here nor one below"),
        remedy=tr("name one of them with --model_size")
        if listed
        else tr("give the folder that has them as --input_dir"),
    )
