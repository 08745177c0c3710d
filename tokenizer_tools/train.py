"""Train a Chinese SentencePiece model whose pieces are fit to be appended to LLaMA's.

The settings follow from where the pieces go. LLaMA's normalizer changes nothing, so a piece
learned from normalized text would never match: identity. LLaMA has the byte pieces: no byte
fallback here. LLaMA splits numbers into digits: so does this. LLaMA puts ``▁`` before a text, and
Chinese does not separate words: no dummy prefix, or thousands of pieces would exist twice. LLaMA's
model is BPE, which makes a piece only from two shorter ones: BPE, because of the pieces of a
unigram model many have no such parts and could never occur.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merge.errors import FormatError, MergeError, UsageError, VocabularyError
from merge.messages import compose, join, tr
from merge.sizes import OnBytes
from merge.storage.atomic_write import write_atomically
from merge.tokenizers.sentencepiece_model import list_pieces, load_processor

from .corpus import LineStats, read_lines, sample, select_training_lines
from .output_files import require_free

MODEL_NAME = "chinese_sp.model"
_VOCABULARY_NAME = "chinese_sp.vocab"
_LARGE_CORPUS = 10**9
"""Characters beyond which older releases of SentencePiece need an option."""


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the result, apart from the text; named as SentencePiece names it.

    ``num_threads`` is among them: the sums of unigram training depend on it, so it is not the
    number of cores of the machine. ``seed`` chooses the ``input_sentence_size`` lines.
    """

    vocab_size: int
    model_type: str = "bpe"
    character_coverage: float = 0.9995
    input_sentence_size: int = 1_000_000
    max_sentencepiece_length: int = 16
    num_threads: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """The lines to learn from, and what became of all that were read."""

    lines: list[str]
    stats: LineStats


def collect_corpus(
    files: Sequence[Path],
    settings: TrainingSettings,
    *,
    json_field: str = "text",
    on_bytes: OnBytes = lambda count: None,
) -> Corpus:
    """Read ``files`` and choose the lines to learn from, ``input_sentence_size`` at most.

    Raises ``FormatError`` for text that cannot be read or holds nothing.
    """
    _check_settings(settings)
    stats = LineStats()
    lines = (line for file in files for line in read_lines(file, json_field, on_bytes))
    kept = sample(select_training_lines(lines, stats), settings.input_sentence_size, settings.seed)
    if not kept:
        raise FormatError(
            tr("the corpus is empty: it holds no line to learn from"),
            file=", ".join(str(file) for file in files[:3]) + (" ..." if len(files) > 3 else ""),
            found=tr(
                "{lines} lines; {reasons}",
                lines=stats.lines,
                reasons=_format_reasons(stats) or tr("nothing dropped"),
            ),
            remedy=tr("name files with text, one sentence or paragraph a line"),
        )
    return Corpus(kept, stats)


def train(lines: Sequence[str], settings: TrainingSettings, *, log: bool = False) -> bytes:
    """Return the model as the bytes of its file; the same lines and settings give the same.

    ``log`` lets SentencePiece report on standard error. Raises ``VocabularyError`` for a
    vocabulary larger or smaller than the text supports.
    """
    from sentencepiece import SentencePieceTrainer

    options: dict[str, Any] = asdict(settings)
    for ours in ("input_sentence_size", "seed"):  # the lines have been chosen already
        del options[ours]
    if sum(map(len, lines)) > _LARGE_CORPUS:
        options["train_extremely_large_corpus"] = True
    stream = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=stream,
            normalization_rule_name="identity",
            byte_fallback=False,
            split_digits=True,
            add_dummy_prefix=False,
            minloglevel=0 if log else 2,
            **options,
        )
    except RuntimeError as error:
        raise _training_error(str(error), settings) from None
    return stream.getvalue()


def check_output(folder: Path, overwrite: bool = False) -> None:
    """Raise ``OutputError`` if ``folder`` holds a trained model, unless ``overwrite``."""
    require_free(folder, (MODEL_NAME, _VOCABULARY_NAME), overwrite, tr("a trained model"))


def write_trained(model: bytes, folder: Path) -> None:
    """Write ``chinese_sp.model`` and, to read, ``chinese_sp.vocab`` (piece, tab, score)."""
    write_atomically(folder, {MODEL_NAME: model, _VOCABULARY_NAME: _format_vocabulary(model)})


def _format_vocabulary(model: bytes) -> bytes:
    """Return the pieces and their scores as text, in id order."""
    loaded = load_processor(model)
    rows = (f"{piece}\t{loaded.get_score(i):g}\n" for i, piece in enumerate(list_pieces(loaded)))
    return "".join(rows).encode("utf-8")


def format_summary(corpus: Corpus, settings: TrainingSettings) -> str:
    """Describe how much text was read, and what of it was not learned from."""
    stats = corpus.stats
    lines = [tr("{lines:>10,} lines read", lines=stats.lines)]
    lines += [
        tr("{count:>10,} dropped: {why}", count=count, why=why)
        for why, count in stats.dropped.most_common()
    ]
    if stats.split:
        lines.append(
            tr(
                "{split:>10,} longer than SentencePiece takes, cut after sentences",
                split=stats.split,
            )
        )
    if len(corpus.lines) < stats.kept:
        lines.append(
            tr("{kept:>10,} left out by --input_sentence_size", kept=stats.kept - len(corpus.lines))
        )
    lines.append(
        tr(
            "{n_lines:>10,} learned from, seed {seed}",
            n_lines=len(corpus.lines),
            seed=settings.seed,
        )
    )
    lines.append(
        tr(
            "{vocab_size:>10,} pieces, {model_type}",
            vocab_size=settings.vocab_size,
            model_type=settings.model_type,
        )
    )
    return join("\n", lines)


def _training_error(message: str, settings: TrainingSettings) -> MergeError:
    """Turn SentencePiece's message into one that names our options."""
    too_high = re.search(r"value <= (\d+)", message)
    if too_high:
        return VocabularyError(
            tr("the corpus does not support a vocabulary of that size"),
            expected=tr("--vocab_size of at most {too_high}", too_high=too_high[1]),
            found=settings.vocab_size,
            remedy=tr("lower --vocab_size or give more text"),
        )
    too_low = re.search(r"required_chars. (\d+) vs (\d+)", message)
    if too_low:
        return VocabularyError(
            tr("the vocabulary is smaller than the number of different characters"),
            expected=tr("--vocab_size of at least {too_low}", too_low=too_low[2]),
            found=settings.vocab_size,
            remedy=tr("raise --vocab_size or lower --character_coverage"),
        )
    return UsageError(
        tr("SentencePiece could not train on this"),
        found=message,
        remedy=tr("change the option or the text that the message names"),
    )


def _check_settings(settings: TrainingSettings) -> None:
    """Refuse numbers that SentencePiece would refuse without naming our options."""
    bounds: Iterable[tuple[str, float, float, float]] = (
        ("vocab_size", settings.vocab_size, 4, 2**24),
        ("character_coverage", settings.character_coverage, 0.98, 1.0),
        ("input_sentence_size", settings.input_sentence_size, 0, 2**40),
        ("max_sentencepiece_length", settings.max_sentencepiece_length, 1, 512),
        ("num_threads", settings.num_threads, 1, 1024),
    )
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise UsageError(
                tr("--{name} is out of range", name=name),
                expected=tr("{low} to {high}", low=low, high=high),
                found=value,
                remedy=tr("give another --{name}", name=name),
            )


def _format_reasons(stats: LineStats) -> str:
    reasons = stats.dropped.most_common()
    return join(", ", (compose("{count} {why}", count=count, why=why) for why, count in reasons))
