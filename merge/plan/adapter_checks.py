"""Whether adapters go together: with each other, with the base, and with the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from ..checksums.adapter_order import AdapterInput, require_known_order
from ..checksums.known_files import identify_adapter
from ..checksums.known_tokenizers import recognize_bytes
from ..deltas.adapter import Adapter
from ..deltas.apply import count_low_rank_rows
from ..deltas.saved_modules import require_equal_copies
from ..errors import FormatError, UsageError
from ..job_settings import MergeSettings
from ..layouts.decoder import HEAD_OF, VOCABULARY_TENSORS, count_embedding_rows, embeddings
from ..layouts.model_folder import ModelFolder
from ..messages import tr
from ..storage.folder import Folder
from ..tensors.lazy import Checkpoint
from ..tokenizers.opaque_tokenizer import OpaqueTokenizer
from ..untrusted.strict_json import read_small
from ..version import MANIFEST_NAME
from .inputs import Sources
from .vocabulary import AdapterRows, Vocabulary

# A value head is a row or two.
_MAX_HEAD_BYTES = 16 << 20


def require_compatible(
    sources: Sources, base: Checkpoint, adapters: Sequence[Adapter], settings: MergeSettings
) -> tuple[str, ...]:
    """Check adapters against each other and in their order; return notes on the order.

    Raises ``UsageError`` for an adapter given twice, for a file to ignore that no adapter has, and
    for published adapters in an order that nobody published.
    """
    _require_different(adapters)
    _require_ignored_files(adapters, settings.ignore_file)
    if settings.allow_unknown_combination:
        return ()
    return check_order(sources, base, adapters)


def require_consistent_copies(adapters: Sequence[Adapter]) -> None:
    """Raise ``AdapterError`` where copies of one tensor in an adapter differ. Reads the copies."""
    for adapter in adapters:
        require_equal_copies(adapter.weights, adapter.copies)


def _require_ignored_files(adapters: Sequence[Adapter], names: Sequence[str]) -> None:
    """Raise ``UsageError`` for a file to ignore that is nowhere: a misspelling."""
    there = {name for adapter in adapters for name in adapter.files.ignored}
    if lost := [name for name in names if name not in there]:
        raise UsageError(
            tr("--ignore_file names a file that is in no adapter's folder"),
            expected=tr("the name of a file, without its folder"),
            found=lost[0],
            remedy=tr("check the spelling, or leave the option out"),
        )


def read_value_heads(adapters: Sequence[Adapter]) -> dict[str, bytes]:
    """Read the value heads beside adapters, which are copied as they are.

    Raises ``UsageError`` for two that differ under one name.
    """
    found: dict[str, bytes] = {}
    for path in (path for adapter in adapters for path in adapter.files.heads):
        content = read_small(path, _MAX_HEAD_BYTES)
        if found.setdefault(path.name, content) != content:
            raise UsageError(
                tr(
                    "two adapters have different value heads of one name, and only one "
                    "can be copied"
                ),
                file=path,
                expected=tr("one value head, or the same in both"),
                found=tr("another {name} in an adapter before it", name=path.name),
                remedy=tr(
                    "remove the one that is not wanted, or give --ignore_file {name}",
                    name=path.name,
                ),
            )
    return found


def _require_different(adapters: Sequence[Adapter]) -> None:
    """Raise ``UsageError`` for an adapter and its copy, which would be added twice."""
    for number, adapter in enumerate(adapters):
        for other in adapters[:number]:
            same_size = adapter.weights.stat().st_size == other.weights.stat().st_size
            if same_size and adapter.digest == other.digest:
                raise UsageError(
                    tr("the same adapter is given twice, in two folders; it would be added twice"),
                    file=adapter.weights,
                    found=tr("the same bytes as {weights}", weights=other.weights),
                    remedy=tr("name each adapter once"),
                )


def check_order(sources: Sources, base: Checkpoint, adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Check the order of published adapters; return notes, or raise ``UsageError``, as
    ``require_known_order`` does.
    """
    given = [
        AdapterInput(
            source,
            a.published,
            a.config.base_model_name_or_path,
            next(
                (a.replaced[name].rows for name in VOCABULARY_TENSORS if name in a.replaced), None
            ),
        )
        for source, a in zip(sources.lora_models, adapters, strict=True)
    ]
    return require_known_order(
        count_embedding_rows(base.tensors), given, _read_merged_names(sources.base)
    )


def _read_merged_names(base: ModelFolder) -> list[str | None] | None:
    """Return published names of the adapters that the base's manifest says were merged into it."""
    try:
        folder: Folder = base if base.path.is_dir() else Folder(base.path.parent)
        manifest = folder.read_json(MANIFEST_NAME) if MANIFEST_NAME in folder.files else {}
        if base.path.is_file() and base.path.name not in manifest.get("files", ()):
            return None
        entries = manifest["inputs"]["adapters"] if manifest else None
        digests = [[str(f["sha256"]) for f in entry["files"]] for entry in entries or ()]
    except (FormatError, KeyError, TypeError):  # not a manifest of ours
        return None
    names = [[identify_adapter(digest) for digest in entry] for entry in digests]
    return [next(filter(None, of_one), None) for of_one in names] or None


def build_vocabulary(
    sources: Sources, base: Checkpoint, adapters: Sequence[Adapter], mismatch: str
) -> Vocabulary:
    """Collect the numbers of rows and tokens that must agree."""

    def rows(adapter: Adapter, name: str) -> int | None:
        return adapter.replaced[name].rows if name in adapter.replaced else None

    name = embeddings(base.tensors)
    assert name is not None, "a base is opened only with embeddings"
    tokenizer = sources.tokenizer
    return Vocabulary(
        count_embedding_rows(base.tensors),
        tuple(
            AdapterRows(
                adapter.name,
                rows(adapter, name),
                rows(adapter, HEAD_OF[name]),
                adapter.config.ensure_weight_tying,
                count_low_rank_rows(adapter),
                next((tensor.rows for tensor in adapter.new_rows.values()), 0),
            )
            for adapter in adapters
        ),
        tokenizer.n_tokens,
        tokenizer.path,
        sources.base_tokenizer.n_tokens if sources.base_tokenizer else None,
        recognize_bytes(tokenizer.vocabulary),
        mismatch,
        isinstance(tokenizer, OpaqueTokenizer),
    )
