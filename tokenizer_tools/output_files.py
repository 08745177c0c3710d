"""The output folder of the tokenizer commands: what may be in it when they write."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from merge.errors import OutputError
from merge.messages import tr
from merge.storage.folder import Folder
from merge.tokenizers.opaque_tokenizer import list_tokenizer_files


def require_free(folder: Path, names: Collection[str], overwrite: bool, content: str) -> None:
    """Require that ``folder`` holds none of the files ``names``, unless ``overwrite``.

    ``content`` says for people what they are, such as "a tokenizer". Raises ``OutputError``.
    """
    there = next((name for name in names if (folder / name).exists()), None)
    if there is not None and not overwrite:
        raise OutputError(
            tr("the output folder already holds {content}", content=content),
            file=folder / there,
            expected=tr("a folder without {there}", there=there),
            remedy=tr("choose another --output_dir, or replace it with --overwrite"),
        )


def require_room_for_tokenizer(folder: Path, names: Collection[str], overwrite: bool) -> None:
    """Require that a tokenizer of the files ``names`` can be written into ``folder``.

    A file of an earlier tokenizer that is not among them would be read as part of the new one, so
    it is refused with ``overwrite`` too. Raises ``OutputError``.
    """
    require_free(folder, names, overwrite, tr("a tokenizer"))
    others = [path for path in list_tokenizer_files(Folder(folder)) if path.name not in names]
    if others:
        raise OutputError(
            tr(
                "the output folder holds a file of another tokenizer, which would be "
                "read with the new"
            ),
            file=others[0],
            expected=tr("none but {names}", names=", ".join(sorted(names))),
            remedy=tr("remove it, or choose another --output_dir"),
        )
