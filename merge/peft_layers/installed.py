"""The installed PEFT: whether it is there, which methods it knows, which release it is.

PEFT is imported for the adapters that it merges, and for no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import AdapterError, UsageError

_INSTALL = 'pip install "chinese-llama-merge[peft]"'
# The oldest release whose merges were compared with its own merge_and_unload: 0.19 loads some
# methods (VeRA, AdaMSS) in other ways.
_OLDEST = (0, 21)
# The last release that knows a method, and what became of it.
UNTIL = {"BONE": ("0.18", "MiSS has taken its place")}


def require_peft(method: str, path: Path) -> None:
    """Raise ``UsageError`` unless PEFT and transformers are installed."""
    for package in ("peft", "transformers"):
        found = find_spec(package)
        if found is None or found.origin is None:  # a folder of that name is none
            raise UsageError(
                f"an adapter of {method} is merged by the package {package}, which is not "
                "installed",
                file=path,
                remedy=_INSTALL,
            )


def require_known_method(fields: Mapping[str, Any], path: Path) -> None:
    """Raise ``AdapterError`` for a method that the installed PEFT does not know.

    Raises ``UsageError`` where PEFT is not installed, or too old.
    """
    name = str(fields.get("peft_type", "LORA"))[:40]
    require_peft(name, path)
    from peft import __version__
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as METHODS

    if tuple(map(int, re.findall(r"\d+", __version__)[:2])) < _OLDEST:
        raise UsageError(
            f"an adapter of {name} is merged by PEFT, and the installed one is too old",
            expected="PEFT " + ".".join(map(str, _OLDEST)) + " or later",
            found=f"PEFT {__version__}",
            remedy=_INSTALL,
        )
    if name in {method.value for method in METHODS}:
        return
    expected, remedy = "a method of " + _listed(METHODS), "pip install -U peft"
    if name in UNTIL:
        last, became = UNTIL[name]
        expected = f"PEFT {last} or earlier; {became}"
        remedy = f'merge it with PEFT\'s own merge_and_unload: pip install "peft=={last}.*"'
    elif isinstance(saved_by := fields.get("peft_version"), str):
        expected = f"PEFT {saved_by[:20]}, which saved it, or later"
    raise AdapterError(
        f"the installed PEFT does not know the method {name} of this adapter",
        file=path,
        expected=expected,
        found=f"PEFT {__version__}",
        remedy=remedy,
    )


def _listed(methods: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(method.value for method in methods))


def get_versions() -> str:
    """The releases whose arithmetic a merge by PEFT is."""
    from peft import __version__ as peft_version
    from transformers import __version__ as transformers_version

    return f"PEFT {peft_version}, transformers {transformers_version}"
