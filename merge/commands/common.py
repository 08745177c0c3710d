"""What every command shares: exit codes, the way a mistake is told, the common options."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import MergeError, shown
from ..interruption import INTERRUPTED, Interrupted, deferred_signals
from ..settings import OnProgress

if TYPE_CHECKING:
    from ..jobs.writing import Report

DONE, DIFFERENT, WRONG_INPUT = 0, 1, 2


# An orderly end takes milliseconds; only a disk that is slow to take what it was given, or a
# library that is being loaded, take longer. Ending at once then loses no more than a power cut.
_GRACE_SECONDS = 1.0
# How soon a thread that reads, hashes or writes gets its turn while Python's code runs, such as the
# two seconds of torch's import.
_SWITCH_SECONDS = 5e-4


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv`` and run ``command``; return the exit code of the process.

    0 done, 1 a check found a difference, 2 wrong input or usage, 130 interrupted, 143 terminated. A
    mistake in the input is told in one message on standard error; the traceback is shown only with
    ``--verbose``. Without ``argv`` the process is the command's alone, and ends here.
    """
    code = _run(parser, command, argv)
    if argv is None:
        exit_immediately(code)
    return code


def exit_immediately(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which takes half a second with torch.

    As Python does, turn the code into 120 where what was said can't be delivered.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code)


def _run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    sys.setswitchinterval(_SWITCH_SECONDS)
    for stream in (sys.stdout, sys.stderr):  # a Windows console may not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    args = parser.parse_args(argv)
    verbose = bool(getattr(args, "verbose", False))
    codes = []
    try:
        with deferred_signals(_GRACE_SECONDS):
            codes.append(command(args))
    except _ENDINGS as error:
        return _told(error, verbose, is_done=bool(codes))
    return codes[0]


# What ends a command other than its own exit code.
_ENDINGS = (MergeError, OSError, KeyboardInterrupt)


def _told(error: BaseException, verbose: bool, is_done: bool) -> int:
    """Tell what ended a command; return the exit code."""
    if isinstance(error, MergeError):
        return _tell(f"error: {error}", verbose, WRONG_INPUT)
    if isinstance(error, OSError):
        return _tell(f"error: {_os_error(error)}", verbose, WRONG_INPUT)
    code = error.exit_code if isinstance(error, Interrupted) else INTERRUPTED
    unfinished = "nothing was written under a final name"
    state = str(error) or ("everything was done by then" if is_done else unfinished)
    return _tell(f"interrupted: {state}", verbose, code)


def _tell(message: str, verbose: bool, code: int) -> int:
    if verbose:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return code


def _os_error(error: OSError) -> str:
    """Say what the operating system refused, by which operation, and to which file."""
    lines = [error.strerror or str(error)]
    if error.filename:
        lines.append(f"  file:     {shown(os.fsdecode(str(error.filename)))}")
    if operation := _operation(error):
        lines.append(f"  found:    it failed in {operation}")
    return "\n".join(lines)


def _operation(error: OSError) -> str:
    """The function of this program that asked the system, by its name."""
    package = str(Path(__file__).parent.parent)
    frames = reversed(traceback.extract_tb(error.__traceback__))
    names = (frame.name.strip("_") for frame in frames if frame.filename.startswith(package))
    return next(names, "")


_NEGATIVE_NUMBERS = re.compile(r"-[\d.][\d.,e+-]*")


def command_parser(description: str, examples: str | None = None) -> argparse.ArgumentParser:
    """A parser that keeps the lines of its texts and takes no abbreviated options."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # argparse takes "-1,0.5" for an option; only words that this matches are numbers to it.
    parser._negative_number_matcher = _NEGATIVE_NUMBERS
    return parser


def carry_out(args: argparse.Namespace, job: Callable[[OnProgress], Report]) -> int:
    """Run a job with progress on the screen, and tell its summary unless ``--quiet``."""
    from .progress import progress_bar

    with progress_bar(quiet=args.quiet) as on_progress:
        report = job(on_progress)
    if not args.quiet:
        print(report.summary())
    return DONE


def add_output_volume_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose`` and ``--quiet``."""
    group = parser.add_argument_group("messages")
    group.add_argument("--verbose", action="store_true", help="say more, tracebacks included")
    group.add_argument("--quiet", action="store_true", help="print errors only")


def add_delta_embeddings_option(
    group: argparse._ArgumentGroup, choices: Sequence[str], default: str
) -> None:
    """Add how a delta stores embeddings and LM head."""
    told = "; auto: as a few of its values tell" if "auto" in choices else ""
    group.add_argument(
        "--delta_embeddings",
        choices=choices,
        default=default,
        help="whether the delta holds embeddings and LM head whole, as Ziya's does, or as "
        f"differences{told} (default: %(default)s)",
    )


def add_context_length_option(group: argparse._ArgumentGroup) -> None:
    """Add ``--context_length``, for bases in Meta's layout."""
    group.add_argument(
        "--context_length",
        type=int,
        metavar="N",
        help="of a base in Meta's layout, which does not say it (default: that of the published "
        "model it looks like, told in the summary)",
    )


def add_output_options(
    parser: argparse.ArgumentParser, output_type: str | None = "huggingface", dtype: str = "auto"
) -> argparse._ArgumentGroup:
    """Add what says how a model is written; with ``output_type`` None, always Hugging Face's.

    Returns the group, to which a command adds its own word for the output folder.
    """
    group = parser.add_argument_group("what is written")
    if output_type is not None:
        group.add_argument(
            "--output_type",
            default=output_type,
            choices=("pth", "huggingface", "hf", "gguf"),
            help="pth: Meta's consolidated.*.pth; huggingface (hf): .bin or safetensors shards, "
            "for transformers; gguf: for llama.cpp (default: %(default)s)",
        )
        group.add_argument(
            "--num_shards",
            type=int,
            metavar="N",
            help="number of .pth files (default: as many as Meta uses for this size)",
        )
        _add_gguf_options(group)
    unless = "; for GGUF what --outtype needs" if dtype != "auto" else ""
    group.add_argument(
        "--dtype",
        default="" if unless else dtype,
        choices=("auto", "float16", "bfloat16", "float32"),
        help=f"of the result; auto keeps what is there (default: {dtype}{unless})",
    )
    group.add_argument(
        "--max_shard_size",
        default="10GB",
        metavar="SIZE",
        help="largest Hugging Face shard (default: %(default)s)",
    )
    group.add_argument(
        "--safe_serialization", action="store_true", help="safetensors instead of .bin"
    )
    group.add_argument("--overwrite", action="store_true", help="replace an earlier result there")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run that was interrupted there; of a complete result, end with 0",
    )
    group.add_argument(
        "--allow_nonfinite",
        action="store_true",
        help="write weights that are infinite or no numbers as they are, and name them (default: "
        "refuse)",
    )
    group.add_argument(
        "--dry_run", action="store_true", help="check everything, say what would be done, stop"
    )
    return group


def _add_gguf_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--outtype",
        default="auto",
        choices=("auto", "f32", "f16", "bf16", "q8_0"),
        help="of the matrices in a GGUF file; auto: bf16 for a model in bfloat16, else f16 "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--split_max_size",
        metavar="SIZE",
        help="largest GGUF file, such as 4GB (default: one file however large)",
    )
    group.add_argument(
        "--chat_template",
        choices=("alpaca",),
        help="how a GGUF or Hugging Face model is to be talked to (default: as its tokenizer says)",
    )


def add_resource_options(parser: argparse.ArgumentParser) -> None:
    """Add the budgets of memory, processors and disk."""
    group = parser.add_argument_group("memory, disk and processors")
    group.add_argument(
        "--max_memory",
        default="64MB",
        metavar="SIZE",
        help="budget for buffers, from 1MB; what is over 256MB is not used (default: %(default)s)",
    )
    group.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help="threads that compute, as many as --max_memory has room for (default: up to 2)",
    )
    group.add_argument(
        "--io",
        default="auto",
        choices=("auto", "direct", "buffered"),
        help="auto: past the page cache for what is not in it; direct: always past it; buffered: "
        "never (default: %(default)s)",
    )
    group.add_argument(
        "--offload_dir",
        metavar="DIR",
        help="where inputs are unpacked that cannot be read in place, and downloads go; emptied "
        "at the end (default: beside the output; downloads: the Hub's cache)",
    )


def job_options(args: argparse.Namespace) -> dict[str, Any]:
    """What ``add_output_options`` and ``add_resource_options`` say, as a job's keyword arguments.

    >>> parser = argparse.ArgumentParser()
    >>> _ = add_output_options(parser), add_resource_options(parser)
    >>> job_options(parser.parse_args(["--output_type", "hf"]))["output_type"]
    'huggingface'
    """
    kind = getattr(args, "output_type", "huggingface")
    return {
        "output_type": "huggingface" if kind == "hf" else kind,
        "num_shards": getattr(args, "num_shards", None),
        "outtype": getattr(args, "outtype", "auto"),
        "split_max_size": getattr(args, "split_max_size", None),
        "chat_template": getattr(args, "chat_template", None),
        "dtype": args.dtype,
        "max_shard_size": args.max_shard_size,
        "safe_serialization": args.safe_serialization,
        "overwrite": args.overwrite,
        "resume": args.resume,
        "allow_nonfinite": args.allow_nonfinite,
        "dry_run": args.dry_run,
        "max_memory": args.max_memory,
        "num_workers": args.num_workers,
        "io": args.io,
        "offload_dir": args.offload_dir,
    }
