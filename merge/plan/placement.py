"""What will be written: each tensor's pieces, each file's contents, what it costs.

A plan is a value, made from headers alone. It can be printed, tested, and handed to the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LayoutError
from ..formats.container import TensorInfo
from ..job_settings import MergeSettings
from ..layouts import huggingface, meta
from ..layouts.decoder import embeddings
from ..layouts.llama import EMBED_TOKENS, LM_HEAD
from ..layouts.placement import PlacedTensor, Stream, files, group_streams
from ..messages import tr
from ..outtypes import QUANTIZED_OUTTYPES
from ..settings import OutputSettings
from ..tensors.digests import add_digests
from ..tensors.finite import check_finite
from ..tensors.lazy import LazyTensor, get_dtype_name
from ..tokenizers.opaque_tokenizer import (
    OpaqueTokenizer,
    Tokenizer,
    require_files,
)
from .documents import (
    LLAMA_ONLY,
    ModelConfig,
    build_huggingface_documents,
    build_meta_documents,
    require_meta_model,
    require_rotary_numbers,
    with_chat_template,
)
from .gguf import require_every_tensor, require_gguf_model

if TYPE_CHECKING:
    from ..deltas.observed import Measurements

# Room for containers' headers and for the manifest, beside the tensors themselves.
_ALLOWANCE = 1 << 20


@dataclass(frozen=True)
class Plan:
    """Tensors to compute and the files to pour them into, beside small files given as bytes.

    ``tensors`` are those of the model under their Hugging Face names, each of which makes its
    digest as it is written; ``checked`` are the same, whose numbers are looked at too. ``headers``
    stand in weight files before what their container writes;
    ``notes`` are lines for people. ``imatrix`` is the file of an importance matrix, which
    shapes the result too. ``measured`` collects statistics for a report, where one is wanted.
    """

    placed: tuple[PlacedTensor, ...]
    documents: Mapping[str, bytes]
    tensors: Mapping[str, LazyTensor]
    headers: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checked: Mapping[str, LazyTensor] = field(default_factory=dict)
    imatrix: Path | None = None
    measured: Measurements | None = None

    @cached_property
    def files(self) -> dict[str, list[TensorInfo]]:
        """Contents of each weight file, in the order in which they are written."""
        return files(list(self.placed))

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """Which tensors and files belong together; streams are written independently."""
        return group_streams(self.placed)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors in all files."""
        return sum(info.nbytes for infos in self.files.values() for info in infos)

    @property
    def disk_bytes(self) -> int:
        """Room that the output needs at most."""
        documents = sum(map(len, (*self.documents.values(), *self.headers.values())))
        return self.tensor_bytes + documents + _ALLOWANCE * (1 + len(self.files))


@dataclass(frozen=True)
class Model:
    """A whole model, ready to be placed: tensors by Hugging Face name, and what goes with them.

    ``rows`` are those of the embeddings; ``tied`` says that there is no LM head of its own.
    ``sources`` are the names of the models that went in.
    """

    tensors: Mapping[str, LazyTensor]
    tied: bool
    rows: int
    config: ModelConfig
    tokenizer: Tokenizer
    sources: tuple[str, ...] = ()


def plan_output(model: Model, settings: OutputSettings) -> Plan:
    """Distribute a model over files of the chosen layout, with its documents.

    Raises ``UsageError`` and ``LayoutError`` for what the layout cannot hold.
    """
    if settings.output_type != "gguf":
        require_files(model.tokenizer, f"--output_type {settings.output_type}")
        require_rotary_numbers(model.config)
    if settings.chat_template:
        named = with_chat_template(model.tokenizer, settings.chat_template)
        model = replace(model, tokenizer=named)
    headless = LM_HEAD not in model.tensors and not model.tied
    layout = LLAMA_ONLY.get(settings.output_type)
    if layout and (headless or EMBED_TOKENS not in model.tensors):
        raise LayoutError(
            tr("the model has no LM head, and {layout} is for models that have one", layout=layout),
            file=model.config.path.parent,
            expected=tr("{embed_tokens} and {lm_head}", embed_tokens=EMBED_TOKENS, lm_head=LM_HEAD),
            found=", ".join(list(model.tensors)[:2]) + ", ...",
            remedy=tr(
                "use --output_type huggingface; or give the base as "
                "AutoModelForCausalLM saves it, and an adapter without a score layer"
            ),
        )
    if settings.output_type == "gguf":
        return _plan_gguf(model, settings)
    result, checked = _checked(model.tensors, settings)
    if settings.output_type == "pth":
        shape = require_meta_model(model.config, model.tokenizer)
        whole = {LM_HEAD: checked[EMBED_TOKENS], **checked}
        by_rows = isinstance(model.tokenizer, OpaqueTokenizer)  # Llama 3's
        placed = meta.place_tensors(whole, shape, settings.num_shards, by_rows)
        documents = build_meta_documents(model.config, model.tokenizer, model.rows)
        return Plan(tuple(placed), documents, result, checked=checked)
    placed = huggingface.place_tensors(checked, settings.suffix, settings.shard_bytes)
    dtype = get_dtype_name(result[embeddings(result) or EMBED_TOKENS].dtype)
    documents = {
        **build_huggingface_documents(model.config, model.tokenizer, model.rows, dtype, model.tied),
        **huggingface.build_index(placed, settings.suffix),
    }
    return Plan(tuple(placed), documents, result, checked=checked)


def _checked(
    tensors: Mapping[str, LazyTensor], settings: OutputSettings
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The tensors with a digest made as they pass, and those with their numbers looked at."""
    allowed = settings.allow_nonfinite
    if allowed:
        tensors = {name: tensor.allowing_nonfinite() for name, tensor in tensors.items()}
    result = add_digests(tensors)
    return result, check_finite(result, allowed)


def _plan_gguf(model: Model, settings: OutputSettings) -> Plan:
    from ..layouts.gguf import output as gguf_output
    from ..layouts.gguf.metadata import Description
    from ..layouts.gguf.modelfile import build_modelfile
    from ..layouts.gguf.vocabulary import require_vocab_matches_rows

    known = require_gguf_model(model.config, model.tokenizer)
    kept = isinstance(settings, MergeSettings) and settings.vocab_mismatch == "keep_base_rows"
    require_vocab_matches_rows(model.rows, known.tokenizer, kept)
    require_every_tensor(model.tensors, known.shape, model.config.path, model.tied)
    outtype, imatrix = settings.outtype, settings.imatrix
    typed = gguf_output.convert_tensors(model.tensors, outtype, known.shape, imatrix)
    dtype = get_dtype_name(model.tensors[EMBED_TOKENS].dtype)
    said = (model.config, model.tokenizer, model.rows, dtype, model.tied)
    description = Description(
        known.config,
        model.config.path,
        known.shape,
        model.rows,
        known.tokenizer,
        build_huggingface_documents(*said),
        settings.model_name,
        model.sources,
        model.config.gguf,
    )
    result, checked = _checked(typed.tensors, settings)
    made = gguf_output.place_tensors(checked, description, typed, settings.split_bytes)
    documents = {}
    if settings.modelfile is not None:
        documents = build_modelfile(settings.modelfile, [*made.headers], known.tokenizer.tokens)
    notes = (*made.notes, *_describe_time(typed.tensors.values(), settings))
    plan = Plan(made.placed, documents, result, made.headers, notes, checked)
    return replace(plan, imatrix=typed.importance.path)


def _describe_time(tensors: Iterable[LazyTensor], settings: OutputSettings) -> Iterator[str]:
    """How long quantizing takes where only the plan is asked for; measuring takes a moment."""
    if settings.dry_run and settings.outtype in QUANTIZED_OUTTYPES:
        from ..layouts.gguf.quantized import estimate_seconds

        seconds = estimate_seconds(tensors) / settings.workers
        yield (
            tr(
                "quantizing takes about {value:,} s with {workers} threads here, "
                "beside reading and writing",
                value=max(1, round(seconds)),
                workers=settings.workers,
            )
        )
