"""``extend_llama3_tokenizer.py``: grow Llama 3's vocabulary by BPE training on Chinese text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..messages import compose, tr
from .common import DONE, add_corpus_options, add_output_volume_options, command_parser, run
from .language import say

if TYPE_CHECKING:
    from tokenizer_tools.compare import TokenizerComparison
    from tokenizer_tools.llama3_base import Llama3Tokenizer
    from tokenizer_tools.llama3_growth import GrownTokenizer, GrowthSettings

_COMPARISON_NAME = "comparison.json"

_DESCRIPTION = tr("""\
Grow Llama 3's vocabulary: go on with its BPE training on Chinese text. Old ids and merges stay,
each new token is reached, and a text of which the new tokenizer makes no new token keeps its ids.
The same text and settings give the same files.
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Grow Llama 3's tokenizer."""
    return run(make_parser(), _command, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION)
    add = parser.add_argument
    add(
        "--llama3_tokenizer",
        type=Path,
        required=True,
        metavar="DIR_OR_FILE",
        help=tr(
            "of a Llama 3 to 3.3: Meta's or a Hugging Face folder, which tell "
            "how its special tokens are named; or a tokenizer.model alone; also "
            "one that was grown before"
        ),
    )
    add_corpus_options(parser)
    add(
        "--vocab_size",
        type=int,
        required=True,
        metavar="N",
        help=tr("ids in the end, Llama 3's own 128256 included, such as 160000"),
    )
    add("--output_dir", type=Path, required=True, metavar="DIR", help=tr("output folder"))
    add("--overwrite", action="store_true", help=tr("replace a tokenizer in DIR"))
    add(
        "--held_out",
        type=Path,
        nargs="+",
        metavar="FILE_OR_DIR",
        help=tr(
            "text that is not in --input, to compare both tokenizers on as "
            "compare_tokenizers.py does; writes {comparison_name} too",
            comparison_name=_COMPARISON_NAME,
        ),
    )
    _add_settings(parser)
    add_output_volume_options(parser)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(tr("what is learned")).add_argument
    add(
        "--min_frequency",
        type=int,
        default=2,
        metavar="N",
        help=tr("how often a pair must occur to be merged (default: %(default)s)"),
    )
    add(
        "--max_token_length",
        type=int,
        default=16,
        metavar="N",
        help=tr("longest new token, in characters (default: %(default)s)"),
    )


def _command(args: argparse.Namespace) -> int:
    from tokenizer_tools import llama3_growth as growth
    from tokenizer_tools.corpus import find_text_files
    from tokenizer_tools.llama3_base import read_llama3
    from tokenizer_tools.output_files import require_room_for_tokenizer

    settings = growth.GrowthSettings(args.vocab_size, args.min_frequency, args.max_token_length)
    base = read_llama3(args.llama3_tokenizer)
    growth.check_settings(settings, base)
    names = [*base.documents, growth.TIKTOKEN_NAME, *([_COMPARISON_NAME] * bool(args.held_out))]
    require_room_for_tokenizer(args.output_dir, names, args.overwrite)
    base.load_encoding()
    find_text_files((*args.input, *(args.held_out or ())))
    grown = _learn(args, base, settings)
    comparison = _compare(args, base, grown.tokenizer) if args.held_out else None
    more = {} if comparison is None else {_COMPARISON_NAME: _to_json(comparison)}
    growth.write_grown(grown, args.output_dir, more)
    if not args.quiet:
        from tokenizer_tools.report import format_table

        say(growth.format_summary(grown))
        if comparison is not None:
            say(compose("\n{table}\n", table=format_table(comparison)))
        say(tr("written to {output_dir}", output_dir=args.output_dir))
    return DONE


def _learn(
    args: argparse.Namespace, base: Llama3Tokenizer, settings: GrowthSettings
) -> GrownTokenizer:
    from tqdm import tqdm

    from tokenizer_tools import corpus as text
    from tokenizer_tools import llama3_growth as growth

    files = text.find_text_files(args.input)
    total = text.count_bytes(files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="read", disable=args.quiet) as bar:
        counts = growth.count_pre_tokens(files, args.json_field, bar.update)
    corpus = growth.encode_corpus(base, counts)
    del counts  # a third of the memory, on Chinese
    wanted = settings.vocab_size - base.n_tokens
    with tqdm(total=wanted, unit=" tokens", desc="learn", disable=args.quiet) as bar:
        return growth.grow_tokenizer(base, corpus, settings, args.output_dir, bar.update)


def _compare(
    args: argparse.Namespace, base: Llama3Tokenizer, grown: Llama3Tokenizer
) -> TokenizerComparison:
    from tokenizer_tools import compare
    from tokenizer_tools.backends import open_llama3
    from tokenizer_tools.corpus import find_text_files, read_lines

    files = find_text_files(args.held_out)
    lines = (line for file in files for line in read_lines(file, args.json_field))
    backends = [open_llama3(base, "before"), open_llama3(grown, "after")]
    return compare.compare_tokenizers(backends, lines, [(0, 1)])


def _to_json(comparison: TokenizerComparison) -> bytes:
    from tokenizer_tools import report

    text = json.dumps(report.to_json(comparison), ensure_ascii=False, indent=1) + "\n"
    return text.encode("utf-8")
