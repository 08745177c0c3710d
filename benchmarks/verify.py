"""Compare a merged model, element by element, with a float64 reference rounded once.

Exit codes: 0 the same, 1 a difference, 2 something that has to be there cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.documents import huggingface_faults, meta_faults, tokenizer_faults
from benchmarks.outputs import Output, OutputTensor, read_huggingface, read_meta
from benchmarks.reference import Merged, Reference
from benchmarks.weights import archive_faults, weight_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_ULP, MIN_IDENTICAL = 1, 0.999
CHUNK_ELEMENTS = 1 << 19  # blocks that stay in the cache: twice as fast as 1 << 22
NOT_A_NUMBER = 1 << 16  # further than any two 16-bit floats can be


@dataclass(frozen=True)
class Comparison:
    """How far one tensor is from the reference, in units in the last place of its own dtype."""

    name: str
    elements: int
    identical: int
    max_ulp: int

    @property
    def share(self) -> float:
        """Share of the elements that are identical."""
        return self.identical / self.elements

    @property
    def good(self) -> bool:
        """Within one unit everywhere, and nearly everywhere the same."""
        return self.max_ulp <= MAX_ULP and self.share >= MIN_IDENTICAL


@dataclass
class Verdict:
    """Everything that was compared, and every fault as a sentence."""

    comparisons: list[Comparison] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether there is nothing to complain about."""
        return bool(self.comparisons) and not self.faults

    def table(self) -> str:
        """Tensors, elements, largest distance, share identical, worst tensor, one a line."""
        done = self.comparisons
        elements = sum(c.elements for c in done)
        worst = min(done, key=lambda c: (-c.max_ulp, c.share), default=None)
        rows = [
            ("tensors", f"{len(done)}"),
            ("elements", f"{elements:,}"),
            ("max ulp", f"{worst.max_ulp if worst else '-'}"),
            ("identical", f"{sum(c.identical for c in done) / max(elements, 1):.6%}"),
            ("worst tensor", f"{worst.name}, {worst.share:.6%} identical" if worst else "-"),
            ("faults", f"{len(self.faults)}"),
        ]
        return "\n".join(f"{label:<14}{value}" for label, value in rows)


def verify(base: Path, adapters: Sequence[Path], output: Path) -> Verdict:
    """Compare the model in ``output`` with base + adapters, and check what stands beside it.

    Raises ``OSError``, ``ValueError`` or ``KeyError`` when a folder cannot be read at all.
    """
    reference = Reference.read(base, list(adapters))
    is_meta = any(output.glob("consolidated.*.pth"))
    merged = (
        read_meta(output, reference.names, reference.config)
        if is_meta
        else read_huggingface(output, reference.names)
    )
    verdict = Verdict()
    for name in reference.names:
        compared = list(_compare(reference.merged(name), merged.tensors.get(name), name))
        verdict.comparisons += [item for item in compared if isinstance(item, Comparison)]
        verdict.faults += [item for item in compared if isinstance(item, str)]
    verdict.faults += [f"{name} belongs to no model" for name in merged.unknown]
    for file in weight_files(output):
        verdict.faults += archive_faults(file.path)
    verdict.faults += _document_faults(base, adapters, output, reference, merged, is_meta)
    return verdict


def _compare(expected: Merged, found: OutputTensor | None, name: str) -> Iterator[Comparison | str]:
    """One comparison, or why there is none; faults of its shape and precision besides."""
    if found is None:
        yield f"{name} is missing"
        return
    yield from (f"{name}: {fault}" for fault in found.faults)
    if found.shape != expected.shape:
        yield f"{name}: shape {found.shape}, expected {expected.shape}"
        return
    if not found.dtypes <= {"torch.float16", "torch.bfloat16"} or len(found.dtypes) > 1:
        yield f"{name}: {sorted(found.dtypes)}, expected one 16-bit float type"
        return
    comparison = compare(expected, found)
    yield comparison
    if not comparison.good:
        yield f"{name}: {comparison.max_ulp} ulp at most, {comparison.share:.4%} identical"


def compare(expected: Merged, found: OutputTensor) -> Comparison:
    """Go through a tensor in blocks of rows; a block holds whole heads."""
    length, width = found.shape[0], prod(found.shape[1:])
    step = max(128, CHUNK_ELEMENTS // width // 128 * 128)  # 128: a multiple of every head size
    identical, furthest = 0, 0
    for start in range(0, length, step):
        stop = min(start + step, length)
        block = found.rows(start, stop)
        distance = ulps(expected.rows(start, stop, block.dtype), block)
        identical += int((distance == 0).sum())
        furthest = max(furthest, int(distance.max()))
    return Comparison(found.name, length * width, identical, furthest)


def ulps(expected: Tensor, found: Tensor) -> Tensor:
    """How many 16-bit floats lie from one to the other; the two zeros are one number.

    A NaN on one side only is further than anything else.
    """
    import torch

    distance = (_ordered(expected) - _ordered(found)).abs()
    one_sided = expected.isnan() != found.isnan()
    return torch.where(one_sided, NOT_A_NUMBER, distance)


def _ordered(values: Tensor) -> torch.Tensor:
    """Integers in the order of the floats, one apart for neighbours."""
    import torch

    bits = values.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _document_faults(
    base: Path,
    adapters: Sequence[Path],
    output: Path,
    reference: Reference,
    merged: Output,
    is_meta: bool,
) -> Iterator[str]:
    folders = [path for path in (base, *adapters) if (path / "tokenizer.model").exists()]
    size = reference.vocab_size
    yield from tokenizer_faults(output, folders[-1] / "tokenizer.model", size)
    if is_meta:
        yield from meta_faults(output, reference.config, size)
    else:
        dtypes = {dtype for tensor in merged.tensors.values() for dtype in tensor.dtypes}
        yield from huggingface_faults(output, reference.config, size, dtypes)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table and the first faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base_model", type=Path, required=True)
    parser.add_argument("--lora_model", type=Path, nargs="+", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_threads", type=int, default=1, help="threads of torch")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(args.num_threads)
    try:
        verdict = verify(args.base_model, args.lora_model, args.output_dir)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: cannot be compared: {error}", file=sys.stderr)
        return 2
    print(verdict.table())
    for fault in verdict.faults[:20]:
        print(f"  {fault}")
    if len(verdict.faults) > 20:
        print(f"  and {len(verdict.faults) - 20} more")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    raise SystemExit(main())
