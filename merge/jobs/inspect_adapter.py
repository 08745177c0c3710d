"""Describe an adapter, and what a merge would do with it, from headers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ..checksums.file_digests import start_digests
from ..deltas.adapter_config import WEIGHT_NAMES, AdapterFolder
from ..errors import MergeError
from ..job_settings import MergeSettings
from ..messages import join, tr
from ..plan.inputs import find_sources
from ..reports.merge_text import describe_adapter_changes, describe_untouched
from ..settings import OutputType
from ..storage.offload import Offload

if TYPE_CHECKING:
    from ..deltas.adapter import Adapter
    from .merge_lora import MergeJob

# Planned unless another is asked for; a GGUF file's plan holds its whole vocabulary.
QUICK_LAYOUTS: tuple[OutputType, ...] = ("pth", "huggingface")

_OTHERS = {
    "RowMagnitude": tr("DoRA, norms of rows"),
    "ColumnMagnitude": tr("DoRA, norms of columns"),
    "ReplacedRows": tr("trained tokens"),
    "AddedVector": tr("bias of lora_B"),
}


def describe_adapter(
    folder: AdapterFolder,
    offload: Offload,
    base_model: Path | str | None = None,
    *,
    digest: bool = True,
    every_module: bool = False,
    layouts: Sequence[OutputType] = QUICK_LAYOUTS,
) -> Iterator[str]:
    """Describe an adapter in lines. Raises ``MergeError`` where a merge would be refused.

    With ``base_model`` that is every check of a merge with its default options, as planned for each
    of ``layouts``; it is refused when none of them can hold the result. Without ``digest`` the
    weights are not read, so published adapters are not recognised, their order is not checked, and
    tensors that they hold twice are not compared.
    """
    fields = folder.fields
    if digest:
        start_digests(folder.path / name for name in WEIGHT_NAMES)
    yield tr("adapter    {path}", path=offload.get_name(folder.path))
    release = tr("in GGUF form") if folder.gguf is not None else f"PEFT {guess_release(fields)}"
    yield tr("kind       {text}, {release}", text=fields.get("peft_type", "LORA"), release=release)
    yield tr("base       {text}", text=fields.get("base_model_name_or_path") or tr("not recorded"))

    from ..deltas.adapter import open_adapter
    from ..plan.adapter_checks import require_consistent_copies

    opened = open_adapter(folder, offload)
    yield from _describe_modules(opened, every_module)
    yield from _describe_contents(opened)
    if digest:
        yield from _describe_digest(opened)
        require_consistent_copies([opened])
    elif opened.copies:
        yield tr(
            "copies     of {n_copies} trained tensors not compared but by size",
            n_copies=len(opened.copies),
        )
    if base_model is not None:
        yield from _describe_fit(str(folder.path), str(base_model), digest, layouts, offload)


def guess_release(fields: Mapping[str, object]) -> str:
    """The PEFT release that wrote a configuration, or what its fields say of it."""
    if version := fields.get("peft_version"):
        return str(version)
    for since, field in (
        (tr("0.14 or later"), "exclude_modules"),
        (tr("0.9 or later"), "use_dora"),
        (tr("0.6 or later"), "rank_pattern"),
        (tr("0.3 to 0.5"), "init_lora_weights"),
    ):
        if field in fields:
            return since
    return "0.2" if "enable_lora" in fields else tr("0.2 or later")


def _describe_modules(adapter: Adapter, every_module: bool) -> Iterator[str]:
    """Rank and scaling: those of most modules of a name together, the others one by one."""
    groups: dict[str, dict[tuple[int, float], list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, patch in adapter.low_rank.items():
        module = name.removesuffix(".weight")
        groups[module.rpartition(".")[2]][patch.rank, patch.scaling].append(module)
    for last, by_factors in sorted(groups.items()):
        most = max(by_factors.values(), key=len)
        for (rank, scaling), modules in sorted(by_factors.items()):
            factors = tr("rank {rank} x {scaling:g}", rank=rank, scaling=scaling)
            if every_module:
                yield from (
                    tr("adds       {module}: {factors}", module=module, factors=factors)
                    for module in modules
                )
            elif modules is most:
                yield tr(
                    "adds       {last}: {factors}, in {n_modules} tensors",
                    last=last,
                    factors=factors,
                    n_modules=len(modules),
                )
            else:
                for names in compact(modules):
                    yield tr("adds       {names}: {factors}", names=names, factors=factors)


def compact(modules: Iterable[str]) -> list[str]:
    """Write names that differ only in the number of their layer as one.

    >>> compact(["layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "layers.4.mlp.up_proj", "lm_head"])
    ['layers.{0-1,4}.mlp.up_proj', 'lm_head']
    """
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    single = []
    for module in modules:
        if match := re.search(r"\.(\d+)\.", module):
            layers[module[: match.start(1)], module[match.end(1) :]].append(int(match[1]))
        else:
            single.append(module)
    return [
        f"{head}{_format_ranges(numbers)}{tail}" for (head, tail), numbers in layers.items()
    ] + single


def _format_ranges(numbers: list[int]) -> str:
    ranges = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        ranges.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    text = ",".join(ranges)
    return text if len(numbers) == 1 else f"{{{text}}}"


def _describe_contents(adapter: Adapter) -> Iterator[str]:
    from ..deltas.apply import count_vocabulary_rows
    from ..tensors.lazy import get_dtype_name

    others = Counter(type(patch).__name__ for stage in adapter.added.values() for patch in stage)
    for patch_name, words in _OTHERS.items():
        if others[patch_name]:
            yield tr("adds       {words}: {others} tensors", words=words, others=others[patch_name])
    if adapter.config.method:
        yield tr(
            "merged     by PEFT ({method}): {n_by_peft} tensors",
            method=adapter.config.method,
            n_by_peft=len(adapter.by_peft),
        )
    for name, tensor in adapter.replaced.items():
        trained = "" if name in adapter.trained else tr(" (the base's own copy, or a resized one)")
        yield tr(
            "replaces   {name}: {tuple}{trained}",
            name=name,
            tuple=tuple(tensor.shape),
            trained=trained,
        )
    dtypes = {patch.a.dtype for patch in adapter.low_rank.values()}
    dtypes |= {tensor.dtype for tensor in (*adapter.replaced.values(), *adapter.by_peft.values())}
    yield tr("dtypes     {map}", map=", ".join(sorted(map(get_dtype_name, dtypes))) or tr("none"))
    yield tr(
        "vocabulary {count_vocabulary_rows} rows",
        count_vocabulary_rows=count_vocabulary_rows(adapter) or tr("no"),
    )
    for ignored in adapter.ignored:
        yield tr("ignored    {ignored}", ignored=ignored)
    for path in filter(None, (*adapter.files.further, adapter.files.duplicate)):
        yield tr("read too   {name}", name=path.name)
    for name in adapter.files.unknown:
        yield tr("not read   {name}", name=name)
    if adapter.config.unknown:
        yield tr("unknown    {unknown} (not set)", unknown=", ".join(adapter.config.unknown))


def _describe_digest(adapter: Adapter) -> Iterator[str]:
    from ..checksums.adapter_order import PREREQUISITES
    from ..checksums.known_files import identify_adapter

    yield f"sha256     {adapter.digest} ({adapter.weights.name})"
    name = identify_adapter(adapter.digest)
    if name is None:
        yield tr("published  not known by this digest")
        return
    below = PREREQUISITES.get(name)
    yield tr("published  {name}, ", name=name) + (
        tr("after {below}", below=below) if below else tr("straight onto its base")
    )


def plan_layouts(
    adapter: str, base_model: str, digest: bool, layouts: Sequence[OutputType], offload: Offload
) -> tuple[dict[str, MergeJob], dict[str, MergeError]]:
    """Plan a merge for each layout; return the plans, and why there are none for the others.

    Raises ``MergeError`` where no layout can hold the result.
    """
    from .merge_lora import plan_merge

    sources = find_sources(base_model, [adapter], None, offload)
    jobs: dict[str, MergeJob] = {}
    refused: dict[str, MergeError] = {}
    if sources.base.is_gguf and layouts == QUICK_LAYOUTS:
        layouts = ("gguf",)  # the others need a tokenizer that such a base does not have
    for layout in layouts:
        try:
            settings = MergeSettings(layout, allow_unknown_combination=not digest)
            jobs[layout] = plan_merge(sources, settings, offload)
        except MergeError as error:
            refused[layout] = error
    if not jobs:
        raise list(refused.values())[-1]
    return jobs, refused


def _describe_fit(
    adapter: str, base_model: str, digest: bool, layouts: Sequence[OutputType], offload: Offload
) -> Iterator[str]:
    jobs, refused = plan_layouts(adapter, base_model, digest, layouts, offload)
    job = list(jobs.values())[-1]
    yield tr(
        "fits       {base_model}, written as {jobs}",
        base_model=base_model,
        jobs=join(tr(" or "), jobs),
    )
    yield from (
        tr("not as     {layout}: {sentence}", layout=layout, sentence=error.sentence)
        for layout, error in refused.items()
    )
    yield tr("tokenizer  {path}", path=offload.get_name(job.sources.tokenizer.path))
    yield tr("would have {changes}", changes=describe_adapter_changes(job, 1))
    yield describe_untouched(job)
    if not digest:
        yield tr("order      of published adapters not checked, because no digest was made")
