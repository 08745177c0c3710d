"""``compare_checkpoints``: two checkpoints, tensor by tensor, whatever their layouts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, shown
from ..messages import compose, tr, translate
from .common import DIFFERENT, DONE, add_output_volume_options, command_parser, run
from .language import say
from .machine import add_json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..tensors.lazy import LazyTensor
    from ..verification.compare import CheckpointComparison, TensorComparison
    from ..verification.loading import LoadedCheckpoint

    Tensors = Mapping[str, LazyTensor]

_DESCRIPTION = tr("""\
Compare two checkpoints tensor by tensor, in any two layouts (Hugging Face's .bin or safetensors,
Meta's .pth, GGUF, or single weight files) and dtypes. Names and rotary order are brought to
Hugging Face's first. Distances are counted in units in the last place (ulp), of the coarser dtype
where the two differ; every difference in bits counts at least 1. A tensor in q8_0 beside one in
another type must lie within the error of its blocks, whatever --max_ulp.
""")
_EPILOG = tr("""\
example, this merge and one made elsewhere:
  %(prog)s chinese-alpaca-plus-7b \\
      downloads/chinese-alpaca-plus-7b-pth --max_ulp 1

exit codes: 0 the same, or within --max_ulp and the error of q8_0 blocks; 1 different;
  2 wrong input; 130 interrupted
""")
_LISTED = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two checkpoints."""
    return run(make_parser(), _compare, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION, _EPILOG)
    for name in ("A", "B"):
        parser.add_argument(name.lower(), metavar=name, help=tr("model folder, or one weight file"))
    parser.add_argument(
        "--max_ulp",
        type=int,
        default=0,
        metavar="N",
        help=tr("largest distance that still counts as the same (default: %(default)s)"),
    )
    add_output_volume_options(parser)
    add_json_option(parser)
    return parser


def _compare(args: argparse.Namespace) -> int:
    if args.max_ulp < 0:
        raise UsageError(tr("--max_ulp must be at least 0"), found=args.max_ulp)

    from ..plan.places import find_result
    from ..storage.offload import Offload
    from ..verification.compare import compare_checkpoints
    from ..verification.loading import open_any
    from .progress import progress_bar

    with Offload(None, Path.cwd()) as offload:
        places = [find_result(name) for name in (args.a, args.b)]
        ours, theirs = (open_any(place, offload) for place in places)
        if not ours.tensors and not theirs.tensors:
            raise UsageError(
                tr("there is nothing to compare: neither of the two holds a tensor"),
                file=places[0],
                found=tr("no tensors, and none in {b}", b=places[1]),
                remedy=tr("give two models, or two weight files"),
            )
        with progress_bar(args.quiet, tr("comparing")) as on_progress:
            result = compare_checkpoints(*_tensors(ours, theirs), on_progress)
    if args.as_json:
        print_json(_as_json(ours, theirs, result, args.max_ulp))
    elif not args.quiet:
        for line in _report(ours, theirs, result, args):
            say(shown(translate(line)))
    return DIFFERENT if result.differ(args.max_ulp) else DONE


def _tensors(ours: LoadedCheckpoint, theirs: LoadedCheckpoint) -> tuple[Tensors, Tensors]:
    """Both sides; a tied model has an LM head where the other one has."""
    from ..layouts.llama import LM_HEAD

    either = LM_HEAD in ours.tensors or LM_HEAD in theirs.tensors
    return (ours.with_head(), theirs.with_head()) if either else (ours.tensors, theirs.tensors)


def _as_json(
    ours: LoadedCheckpoint, theirs: LoadedCheckpoint, result: CheckpointComparison, max_ulp: int
) -> dict[str, Any]:
    different = [tensor for tensor in result.compared if not tensor.is_identical]
    sides = {
        label: {
            "path": str(side.path),
            "layout": side.layout,
            "types": side.dtypes.split(", "),
            "tensors": len(side.tensors),
        }
        for label, side in (("a", ours), ("b", theirs))
    }
    return {
        **sides,
        "same": not result.differ(max_ulp),
        "max_ulp_allowed": max_ulp,
        "identical": len(result.compared) - len(different),
        "different": [_describe_tensor(tensor) for tensor in different],
        "other_shapes": {
            name: [list(shape) for shape in both] for name, both in result.other_shapes.items()
        },
        "missing_in_b": list(result.missing),
        "only_in_b": list(result.extra),
    }


def _describe_tensor(tensor: TensorComparison) -> dict[str, Any]:
    """One tensor that differs; null for a distance that ulp cannot count."""
    from ..verification.ulps import INCOMPARABLE

    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "types": list(tensor.types),
        "elements": tensor.elements,
        "differing": tensor.differing,
        "max_ulp": None if tensor.max_ulp == INCOMPARABLE else tensor.max_ulp,
        "max_abs": tensor.max_abs,
        "in_blocks": tensor.in_blocks,
    }


def _report(
    ours: LoadedCheckpoint,
    theirs: LoadedCheckpoint,
    result: CheckpointComparison,
    args: argparse.Namespace,
) -> Iterator[str]:
    from ..verification.compare import describe_difference

    for label, side in (("A", ours), ("B", theirs)):
        yield tr(
            "{label}  {path} ({layout}, {dtypes}, {n_tensors} tensors)",
            label=label,
            path=side.path,
            layout=side.layout,
            dtypes=side.dtypes,
            n_tensors=len(side.tensors),
        )
    different = [tensor for tensor in result.compared if not tensor.is_identical]
    yield tr("identical: {n_compared} tensors", n_compared=len(result.compared) - len(different))
    different.sort(key=lambda tensor: -tensor.max_ulp)
    shown = different if args.verbose else different[:_LISTED]
    if different:
        yield tr("not identical: {n_different} tensors", n_different=len(different))
    for tensor in shown:
        yield from (compose("  {line}", line=line) for line in describe_difference(tensor))
    if len(shown) < len(different):
        yield tr(
            "  ... and {n_different} more (--verbose lists them)",
            n_different=len(different) - len(shown),
        )
    for name, shapes in result.other_shapes.items():
        yield tr(
            "other shape: {name}: {shapes} in A, {shapes_2} in B",
            name=name,
            shapes=shapes[0],
            shapes_2=shapes[1],
        )
    for label, names in ((tr("missing in B"), result.missing), (tr("only in B"), result.extra)):
        for name in names if args.verbose else names[:_LISTED]:
            yield compose("{label}: {name}", label=label, name=name)
        if not args.verbose and len(names) > _LISTED:
            yield tr("{label}: ... and {n_names} more", label=label, n_names=len(names) - _LISTED)
    yield _verdict(result, args.max_ulp)


def _verdict(result: CheckpointComparison, max_ulp: int) -> str:
    within = tr("within {max_ulp} ulp", max_ulp=max_ulp) if max_ulp else tr("the same bits")
    in_blocks = any(tensor.in_blocks for tensor in result.compared)
    if result.differ(max_ulp):
        blocks = tr(", or for q8_0 within the error of its blocks,") if in_blocks else ""
        return tr("DIFFERENT: not {within}{blocks} throughout", within=within, blocks=blocks)
    if in_blocks:
        return tr("the same within the error of q8_0 blocks") + (
            compose(", {within}", within=within) if max_ulp else ""
        )
    if all(tensor.is_identical for tensor in result.compared):
        return tr("the same: every tensor is identical")
    if not max_ulp:
        return tr("the same numbers: equal in the coarser dtype")
    return tr("the same {within}", within=within)


if __name__ == "__main__":
    sys.exit(main())
