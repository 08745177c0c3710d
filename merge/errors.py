"""What can go wrong through no fault of this program, as sentences for the person who reads them.

Everything here ends a command with exit code 2 and no traceback. A broken promise inside the
program is an ``AssertionError`` instead.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from enum import Enum
from gettext import NullTranslations
from pathlib import Path
from typing import Any

from .messages import Message, column_width, compose, rename_paths, tr, translate

# Longer than any path that a system allows.
_LONGEST = 5000


class Topic(str, Enum):
    """A section of docs/troubleshooting.md, by the anchor of its heading."""

    SIZES = "sizes-that-do-not-fit"
    NONSENSE = "the-result-is-nonsense"
    NO_CHANGE = "nothing-changes"
    FILES = "files"
    CHECKSUMS = "sha-256-differs-from-a-published-value"
    LIBRARIES = "old-libraries"

    @property
    def page(self) -> str:
        """The link, as the documentation names it."""
        return f"docs/troubleshooting.md#{self.value}"


class MergeError(Exception):
    """A mistake in the input, told with everything needed to mend it.

    ``str()`` gives the whole message: the sentence, then the facts that are known, one a line.
    ``sizes`` is a table of several lines, where the mistake lies in how numbers fit together.
    ``kind`` tells programs what went wrong (docs/json.md), and ``topic`` is where the
    documentation says more, that of the class unless another is given.
    """

    kind = "system"
    topic: Topic | None = None

    def __init__(
        self,
        sentence: str,
        *,
        file: object = None,
        tensor: str | None = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
        sizes: str | None = None,
        topic: Topic | None = None,
    ) -> None:
        if topic is not None:
            self.topic = topic
        self.sentence = _as_shown(sentence)
        super().__init__(self.sentence)
        self.facts: dict[str, str] = {
            label: _as_shown(value, lines=label in ("remedy", "sizes"))
            for label, value in {
                "file": file,
                "tensor": tensor,
                "expected": expected,
                "found": found,
                "remedy": remedy,
                "sizes": sizes,
            }.items()
            if value is not None
        }

    def __str__(self) -> str:
        return _lay_out(
            shown(str.__str__(self.sentence)),
            {label: _show_fact(label, value) for label, value in self.facts.items()},
        )

    def translated(self, catalogue: NullTranslations | None = None) -> str:
        """The whole message in a language, by default that of ``messages.used_language``."""
        facts = {
            translate(_LABELS.get(label, label), catalogue): _show_fact(
                label, translate(value, catalogue)
            )
            for label, value in self.facts.items()
        }
        return _lay_out(shown(translate(self.sentence, catalogue)), facts)

    def rename_paths(self, names: Mapping[Path, str]) -> None:
        """Say these names in place of paths, as of copies that the user has never seen."""
        self.sentence = rename_paths(self.sentence, names)
        self.facts = {label: rename_paths(value, names) for label, value in self.facts.items()}
        self.args = (self.sentence,)


_LABELS = {
    "job": tr("job"),
    "file": tr("file"),
    "tensor": tr("tensor"),
    "expected": tr("expected"),
    "found": tr("found"),
    "remedy": tr("remedy"),
    "sizes": tr("sizes"),
}
_LABEL_WIDTH = 10


def _as_shown(value: object, lines: bool = False) -> str:
    """Text as ``shown``; a message stays one, and is cleaned when it is put on the screen."""
    return value if isinstance(value, Message) else shown(str(value), lines)


def _show_fact(label: str, value: str) -> str:
    return shown(value, lines=label in ("remedy", "sizes"))


def _lay_out(sentence: str, facts: Mapping[str, str]) -> str:
    lines = [sentence]
    for label, value in facts.items():
        indented = value.replace("\n", "\n" + " " * (_LABEL_WIDTH + 2))
        padding = " " * (_LABEL_WIDTH - column_width(label) - 1)
        lines.append(f"  {label}:{padding}{indented}")
    return "\n".join(lines)


def shown(text: str, lines: bool = False) -> str:
    """Text that may be from a hostile file, fit for a terminal: one line unless ``lines``.

    Control characters, line ends and marks of direction are spelled out, and what is very long is
    cut in its middle.
    """
    kept = ("\n",) if lines else ()
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


class UsageError(MergeError):
    """The options contradict each other or name something that is not there."""

    kind = "usage"


class FormatError(MergeError):
    """A file is not what its name says: truncated, damaged, of another kind, or unsafe to read."""

    kind = "format"
    topic = Topic.FILES


class LayoutError(MergeError):
    """A folder of readable files does not hold the model that its configuration describes."""

    kind = "layout"
    topic = Topic.FILES


class AdapterError(MergeError):
    """An adapter cannot be merged rightly: an unknown kind, a missing half, another model's."""

    kind = "adapter"


class VocabularyError(MergeError):
    """Tokenizer, embedding rows and LM head rows do not belong together."""

    kind = "vocabulary"
    topic = Topic.SIZES


class OutputError(MergeError):
    """The result cannot be written there: files in the way, no room, no permission."""

    kind = "output"


class NetworkError(MergeError, OSError):
    """A server did not answer, or not with what was asked for: an error of the system, after which
    a run can be resumed.
    """

    def __init__(self, sentence: str, *, file: object = None, **facts: Any) -> None:
        super().__init__(sentence, file=file, **facts)
        self.filename = file
        self.strerror = compose("{sentence} ({found})", sentence=sentence, found=facts.get("found"))


class NumberError(MergeError):
    """A value of the result cannot be represented: infinite, no number, or beyond the dtype."""

    kind = "number"


class VerificationError(MergeError):
    """What a check found: a file, a tensor or a tokenizer is not what it must be."""

    kind = "verification"


def as_merge_error(error: MergeError | OSError) -> MergeError:
    """The same as a ``MergeError``: what the operating system refused, in which function of this
    program, and to which file.
    """
    if isinstance(error, MergeError):
        return error
    operation = _find_operation(error)
    return MergeError(
        error.strerror or str(error),
        file=os.fsdecode(str(error.filename)) if error.filename else None,
        found=tr("it failed in {operation}", operation=operation) if operation else None,
    )


def _find_operation(error: OSError) -> str:
    """The function of this program that asked the system, by its name."""
    package = str(Path(__file__).parent)
    frames = reversed(traceback.extract_tb(error.__traceback__))
    names = (frame.name.strip("_") for frame in frames if frame.filename.startswith(package))
    return next(names, "")
