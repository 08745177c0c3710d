"""``inspect_adapter``: what an adapter is and what a merge would do with it, from headers alone."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MergeError
from .common import DIFFERENT, DONE, add_output_volume_options, run

if TYPE_CHECKING:
    from ..deltas.peft import Adapter

_DESCRIPTION = """\
Say what an adapter is: kind, PEFT release, rank and scaling by module, vocabulary rows, dtypes,
digest and published name; and what a merge would add, replace or grow, or why it would be refused.
Only headers are read, and the weight file once for its digest.
"""
_EPILOG = """\
exit codes: 0 it can be merged, 1 a merge would refuse it (the report says why), 2 wrong input
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect one adapter."""
    return run(_parser(), _inspect, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("adapter", metavar="DIR", help="adapter folder, zipped folder or Hub id")
    parser.add_argument(
        "--base_model", metavar="DIR", help="say whether it fits this base, and what would change"
    )
    parser.add_argument("--no_digest", action="store_true", help="do not read the weights at all")
    add_output_volume_options(parser)
    return parser


def _inspect(args: argparse.Namespace) -> int:
    from ..deltas.adapter_config import read_fields
    from ..sources import resolve
    from ..staging import Offload

    with Offload(None, Path.cwd()) as offload:
        folder = resolve(args.adapter, "adapter", offload)
        base = resolve(args.base_model, "base model", offload) if args.base_model else None
        read_fields(folder)
        try:
            for line in report(folder, base, digest=not args.no_digest):
                if not args.quiet:
                    print(line)
        except MergeError as refusal:
            print(f"refused    {refusal}")
            return DIFFERENT
    return DONE


def report(folder: Path, base: Path | None = None, *, digest: bool = True) -> Iterator[str]:
    """The lines of a report. Raises ``MergeError`` where a merge would be refused."""
    from ..deltas.adapter_config import read_fields

    fields = read_fields(folder)
    yield f"adapter    {folder}"
    yield f"kind       {fields.get('peft_type', 'LORA')}, PEFT {_release(fields)}"
    yield f"base       {fields.get('base_model_name_or_path') or 'not recorded'}"

    from ..deltas.peft import open_adapter

    adapter = open_adapter(folder)
    yield from _contents(adapter, digest)
    if base is not None:
        yield from _fit(adapter, base)


def _release(fields: dict[str, object]) -> str:
    if version := fields.get("peft_version"):
        return str(version)
    for since, field in (
        ("0.14 or later", "exclude_modules"),
        ("0.9 or later", "use_dora"),
        ("0.6 or later", "rank_pattern"),
        ("0.3 to 0.5", "init_lora_weights"),
    ):
        if field in fields:
            return since
    return "0.2" if "enable_lora" in fields else "0.2 or later"


def _contents(adapter: Adapter, digest: bool) -> Iterator[str]:
    from ..deltas.apply import vocabulary_rows
    from ..lazy import dtype_name

    products = adapter.low_rank
    counts = Counter((_last(name), patch.rank, patch.scaling) for name, patch in products.items())
    for (module, rank, scaling), count in sorted(counts.items()):
        yield f"adds       {module}: rank {rank} x {scaling:g}, in {count} tensors"
    others = Counter(type(patch).__name__ for stage in adapter.added.values() for patch in stage)
    for patch_name, words in _WORDS.items():
        if others[patch_name]:
            yield f"adds       {words}: {others[patch_name]} tensors"
    for name, tensor in adapter.replaced.items():
        trained = "" if name in adapter.trained else " (the base's own copy, or a resized one)"
        yield f"replaces   {name}: {tuple(tensor.shape)}{trained}"
    dtypes = {patch.a.dtype for patch in products.values()}
    dtypes |= {tensor.dtype for tensor in adapter.replaced.values()}
    yield f"dtypes     {', '.join(sorted(map(dtype_name, dtypes))) or 'none'}"
    yield f"vocabulary {vocabulary_rows(adapter) or 'no'} rows"
    for ignored in adapter.ignored:
        yield f"left aside {ignored}"
    if adapter.config.unknown:
        yield f"unknown    {', '.join(adapter.config.unknown)} (harmless by their names)"
    if digest:
        yield from _digest(adapter)


_WORDS = {
    "RowMagnitude": "DoRA, norms of rows",
    "ColumnMagnitude": "DoRA, norms of columns",
    "ReplacedRows": "trained tokens",
    "AddedVector": "bias of lora_B",
}


def _last(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _digest(adapter: Adapter) -> Iterator[str]:
    from ..checksums import file_digest
    from ..known import BEFORE, known_adapter

    digest = file_digest(adapter.weights)
    yield f"sha256     {digest} ({adapter.weights.name})"
    name = known_adapter(digest)
    if name is None:
        yield "published  not known by this digest"
        return
    below = BEFORE.get(name)
    yield f"published  {name}, " + (f"after {below}" if below else "straight onto its base")


def _fit(adapter: Adapter, base: Path) -> Iterator[str]:
    from ..deltas.apply import apply_adapters
    from ..layouts.decoder import VOCABULARY_TENSORS
    from ..layouts.folder import open_checkpoint

    merged = apply_adapters(open_checkpoint(base), [adapter], None)
    steps = [step for made in merged.steps.values() for step in made]
    actions = Counter(step.action for step in steps)
    changed = ", ".join(f"{action}: {count}" for action, count in sorted(actions.items()))
    yield f"fits       {base} ({changed} of {len(merged.steps)} tensors)"
    for name in VOCABULARY_TENSORS:
        for step in merged.steps.get(name, ()):
            if step.rows_before != step.rows_after:
                yield f"grows      {name}: {step.rows_before} to {step.rows_after} rows"


if __name__ == "__main__":
    sys.exit(main())
