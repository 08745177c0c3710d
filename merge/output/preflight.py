"""What may stand in the output folder before a run, and what ``--overwrite`` replaces."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from ..errors import OutputError
from ..messages import tr
from ..storage.folder import Folder
from ..storage.offload import find_existing
from ..storage.remote_path import RemotePath
from ..tokenizers.sentencepiece_tokenizer import CLASS_FILE_NAME
from ..version import MANIFEST_NAME, REPORT_MARK, REPORT_NAMES
from .attempts import get_attempt_path
from .journal import JOURNAL_NAME, JournalState, get_partial_path, read_journal

# Files by which some reader takes a folder for a model, so that two models would be mixed up.
_MODEL_FILES = (
    "*.pth",
    "*.bin",
    "*.safetensors",
    "*.gguf",
    "*.index.json",
    "config.json",
    "generation_config.json",
    "params.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    CLASS_FILE_NAME,
    MANIFEST_NAME,
)
# By these a reader knows that a folder, or a file split into several, is a model at all.
_ENTRIES = ("*.index.json", "config.json", "params.json")
# Bytes at the beginning of a report in which its mark stands.
_MARK_WITHIN = 1024
_FIRST_OF_SEVERAL = re.compile(r"consolidated\.0+\.pth|.+-0*1-of-\d+\.\w+")


def sort_for_commit(names: Iterable[str]) -> list[str]:
    """The order in which files may get their names, so that nobody loads half of them.

    What readers open first comes last: the first of several weight files, from which llama.cpp and
    its converters find the others, then the documents without which there is no model, and at the
    very end the manifest.

    >>> names = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
    >>> sort_for_commit(names)
    ['consolidated.01.pth', 'tokenizer.model', 'consolidated.00.pth', 'params.json']
    """
    return sorted(names, key=_rank_by_reader)


def _rank_by_reader(name: str) -> int:
    """How near to a reader's beginning a file is."""
    if name == MANIFEST_NAME:
        return 3
    if any(Path(name).match(pattern) for pattern in _ENTRIES):
        return 2
    return 1 if _FIRST_OF_SEVERAL.fullmatch(name) else 0


def require_possible(folder: Path, inputs: Iterable[Path]) -> None:
    """Check what never changes: that ``folder`` takes files, and that none is read from there.

    Raises ``OutputError``.
    """
    if not isinstance(folder, RemotePath):
        _require_writable(folder)
    for source in inputs:
        if source.is_dir() and folder.exists() and folder.samefile(source):
            raise OutputError(
                tr("the output folder is one of the inputs, which would be overwritten"),
                file=folder,
                remedy=tr("choose another --output_dir"),
            )


class OutputFolder(Folder):
    """What is in the output folder before a run, as long as its lock keeps others out."""

    @cached_property
    def journal(self) -> JournalState | None:
        """The journal of an interrupted run, None if there is none that is of use."""
        return read_journal(self.path) if JOURNAL_NAME in self.entries else None

    @cached_property
    def leftovers(self) -> list[Path]:
        """What an interrupted run left: its journal, and files without a name yet.

        Links count, also those that lead nowhere, through which a file would be made elsewhere.
        """
        ours = (*_MODEL_FILES, *REPORT_NAMES)
        patterns = [get_partial_path(self.path, pattern).name for pattern in ours]
        patterns += [get_attempt_path(self.path, pattern, "*").name for pattern in _MODEL_FILES]
        names = {JOURNAL_NAME, *(path.name for path in self.matching(*patterns))}
        if self.journal:
            names |= {get_partial_path(self.path, name).name for name in self.journal.files}
        found = [path for name, path in self.entries.items() if name in names]
        return [path for path in found if path.is_symlink() or path.is_file()]

    @cached_property
    def names_of_interrupted_run(self) -> frozenset[str]:
        """Names that it was about to replace, and those that it has put in place."""
        known = self.journal
        return frozenset((*known.replaces, *known.committed) if known else ())

    @cached_property
    def names_of_earlier_run(self) -> frozenset[str]:
        """Names that the manifest of an earlier result lists."""
        if MANIFEST_NAME not in self.files:
            return frozenset()
        files = self.read_json(MANIFEST_NAME).get("files")
        named = files if isinstance(files, dict) else {}
        listed = {name for name in named if Path(name).name == name}
        return frozenset({MANIFEST_NAME, *listed, *self.report_names})

    @cached_property
    def report_names(self) -> frozenset[str]:
        """Names of the files here that are a report of this program, which no manifest lists."""
        return frozenset(
            name for name in REPORT_NAMES if name in self.files and is_report(self.files[name])
        )

    @cached_property
    def replaceable(self) -> list[Path]:
        """Files that a run may replace: of an earlier result, as its manifest lists them, and of an
        interrupted run.
        """
        names = self.names_of_earlier_run | self.names_of_interrupted_run
        return [path for name, path in self.files.items() if name in names]


def require_free(folder: OutputFolder, overwrite: bool, resume: bool = False) -> None:
    """Check that a model may be written to ``folder``.

    The caller has locked the folder, or writes nothing: otherwise another run may change it. With
    ``resume`` a result with a manifest passes too: whether it is this run's can only be told from
    the plan (``complete.py``). Raises ``OutputError`` for what an interrupted run left unless with
    ``resume`` or ``overwrite``, for model files without ``overwrite``, and with it for model files
    that are not ``replaceable``.
    """
    left = folder.leftovers
    if left and not (overwrite or resume):
        raise OutputError(
            tr("an earlier run was interrupted here, and what it wrote is still there"),
            file=folder.path,
            found=_list_names(left),
            remedy=tr(
                "resume with the same command and --resume, or start over with "
                "--overwrite, which removes these files"
            ),
        )
    present = sorted(path for path in folder.matching(*_MODEL_FILES) if path.is_file())
    interrupted = folder.names_of_interrupted_run
    may_replace = overwrite or (resume and interrupted.issuperset(path.name for path in present))
    may_be_complete = resume and not left and MANIFEST_NAME in folder.files
    if present and not (may_replace or may_be_complete):
        raise existing_model_error(folder.path, present)
    if foreign := [path for path in present if path not in folder.replaceable]:
        raise OutputError(
            tr("the output folder holds model files that no earlier merge wrote"),
            file=folder.path,
            found=_list_names(foreign),
            remedy=tr("choose another --output_dir, or move these files away"),
        )


def existing_model_error(folder: Path, present: Sequence[Path]) -> OutputError:
    """The refusal of a folder in which there is another model."""
    return OutputError(
        tr("the output folder holds a model already"),
        file=folder,
        expected=tr("a folder without model files"),
        found=_list_names(present),
        remedy=tr("choose another --output_dir, or replace an earlier result with --overwrite"),
    )


def _require_writable(folder: Path) -> None:
    """The folder, or the nearest one above it that exists, must be one that takes files."""
    present = find_existing(folder)
    if not present.is_dir():
        raise OutputError(
            tr("the output folder is a file")
            if present == folder.absolute()
            else tr("no folder can be made there"),
            file=folder,
            found=tr("{present} is a file", present=present),
            remedy=tr("choose another --output_dir"),
        )
    if not os.access(present, os.W_OK | os.X_OK):
        raise OutputError(
            tr("the output folder may not be written to"),
            file=folder,
            found=tr("no permission to write in {present}", present=present),
            remedy=tr("choose another --output_dir, or change its permissions"),
        )


def require_names_free(folder: OutputFolder, names: Iterable[str], overwrite: bool) -> None:
    """Raise ``OutputError`` where small files of the result would replace somebody else's.

    A model may bring files of any name, such as its own modeling code.
    """
    earlier = folder.names_of_earlier_run if overwrite else frozenset()
    ours = folder.names_of_interrupted_run | earlier
    taken = [path for name in names if name not in ours and (path := folder.path / name).exists()]
    if taken:
        raise OutputError(
            tr("the output folder holds files that those of the model would replace"),
            file=folder.path,
            found=_list_names(taken),
            remedy=tr("choose another --output_dir, or move these files away"),
        )


def is_report(path: Path) -> bool:
    """Whether a file is one of a report that this program wrote."""
    try:
        with path.open("rb") as stream:
            return REPORT_MARK.encode() in stream.read(_MARK_WITHIN)
    except OSError:
        return False


def _list_names(paths: Sequence[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:6]) + (
        tr(" and {n_names} more", n_names=len(names) - 6) if len(names) > 6 else ""
    )
