"""``train_chinese_tokenizer.py``: train the Chinese half of a vocabulary."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from ..messages import tr
from .common import DONE, add_corpus_options, add_output_volume_options, command_parser, run
from .language import say

_DESCRIPTION = tr("""\
Train a SentencePiece model on Chinese text, with the settings that fit a vocabulary to be appended
to LLaMA's by merge_tokenizers.py. The same text, settings and seed give the same file.
""")


def main(argv: Sequence[str] | None = None) -> int:
    """Train a SentencePiece model."""
    return run(make_parser(), _command, argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of this command."""
    parser = command_parser(_DESCRIPTION)
    add = parser.add_argument
    add_corpus_options(parser)
    add(
        "--vocab_size",
        type=int,
        required=True,
        metavar="N",
        help=tr("pieces to learn, such as 20000"),
    )
    add("--output_dir", type=Path, required=True, metavar="DIR", help=tr("output folder"))
    add("--overwrite", action="store_true", help=tr("replace a trained model in DIR"))
    add(
        "--model_type",
        choices=("bpe", "unigram"),
        default="bpe",
        help=tr(
            "bpe fits LLaMA's; of the pieces of a unigram model, which the "
            "published one is, LLaMA's BPE cannot produce every one (default: "
            "%(default)s)"
        ),
    )
    _add_trainer_options(parser)
    add_output_volume_options(parser)
    return parser


def _add_trainer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(tr("SentencePiece's trainer")).add_argument
    add(
        "--character_coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help=tr(
            "of the characters in the text; rarer ones are left to LLaMA's byte "
            "pieces (default: %(default)s)"
        ),
    )
    add(
        "--input_sentence_size",
        type=int,
        default=1_000_000,
        metavar="N",
        help=tr(
            "learn from N lines chosen at random, which bounds memory; 0 takes "
            "all (default: %(default)s)"
        ),
    )
    add(
        "--max_sentencepiece_length",
        type=int,
        default=16,
        metavar="N",
        help=tr("longest piece, in characters (default: %(default)s)"),
    )
    add(
        "--num_threads",
        type=int,
        default=4,
        metavar="N",
        help=tr(
            "part of the result: unigram training sums in another order with "
            "another number (default: %(default)s)"
        ),
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help=tr("of the choice of lines (default: %(default)s)"),
    )


def _command(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from tokenizer_tools import corpus as text
    from tokenizer_tools import train

    settings = train.TrainingSettings(
        vocab_size=args.vocab_size,
        model_type=args.model_type,
        character_coverage=args.character_coverage,
        input_sentence_size=args.input_sentence_size,
        max_sentencepiece_length=args.max_sentencepiece_length,
        num_threads=args.num_threads,
        seed=args.seed,
    )
    train.check_output(args.output_dir, args.overwrite)
    files = text.find_text_files(args.input)
    total = text.count_bytes(files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="read", disable=args.quiet) as bar:
        corpus = train.collect_corpus(
            files, settings, json_field=args.json_field, on_bytes=bar.update
        )
    if not args.quiet:
        say(train.format_summary(corpus, settings))
    model = _killable(lambda: train.train(corpus.lines, settings, log=not args.quiet))
    train.write_trained(model, args.output_dir)
    if not args.quiet:
        say(tr("written to {output_dir}", output_dir=args.output_dir / train.MODEL_NAME))
    return DONE


def _killable(work: Callable[[], bytes]) -> bytes:
    """Let Ctrl-C end SentencePiece's trainer, which would not notice Python's interrupt."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return work()
    finally:
        signal.signal(signal.SIGINT, before)
