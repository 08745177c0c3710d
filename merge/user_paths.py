"""Paths as users write them, with ``~`` for a home folder."""

from __future__ import annotations

from pathlib import Path

from .errors import UsageError
from .messages import tr


def expand_user(path: str | Path) -> Path:
    """The path with the home folder in place of ``~`` or ``~user``, as a shell expands it.

    Raises ``UsageError`` where there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            tr("there is no home folder of that name"),
            file=path,
            remedy=tr("write the folder out; for one that is called ~ put ./ in front"),
        ) from None
