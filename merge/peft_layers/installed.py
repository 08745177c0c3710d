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
from ..messages import tr

_INSTALL = tr('pip install "chinese-llama-merge[peft]"')
# The oldest release whose merges were compared with its own merge_and_unload: 0.19 loads some
# methods (VeRA, AdaMSS) in other ways.
_OLDEST = (0, 21)
# The last release that knows a method, and what became of it.
UNTIL = {"BONE": ("0.18", tr("MiSS has taken its place"))}


def require_peft(method: str, path: Path) -> None:
    """Raise ``UsageError`` unless PEFT and transformers are installed."""
    for package in ("peft", "transformers"):
        found = find_spec(package)
        if found is None or found.origin is None:  # a folder of that name is none
            raise UsageError(
                tr(
                    "an adapter of {method} is merged by the package {package}, which is "
                    "not installed",
                    method=method,
                    package=package,
                ),
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
            tr(
                "an adapter of {name} is merged by PEFT, and the installed one is too old",
                name=name,
            ),
            expected=tr("PEFT ") + ".".join(map(str, _OLDEST)) + tr(" or later"),
            found=tr("PEFT {version}", version=__version__),
            remedy=_INSTALL,
        )
    if name in {method.value for method in METHODS}:
        return
    expected, remedy = tr("a method of ") + _listed(METHODS), tr("pip install -U peft")
    if name in UNTIL:
        last, became = UNTIL[name]
        expected = tr("PEFT {last} or earlier; {became}", last=last, became=became)
        remedy = tr(
            'merge it with PEFT\'s own merge_and_unload: pip install "peft=={last}.*"', last=last
        )
    elif isinstance(saved_by := fields.get("peft_version"), str):
        expected = tr("PEFT {saved_by}, which saved it, or later", saved_by=saved_by[:20])
    raise AdapterError(
        tr("the installed PEFT does not know the method {name} of this adapter", name=name),
        file=path,
        expected=expected,
        found=tr("PEFT {version}", version=__version__),
        remedy=remedy,
    )


def _listed(methods: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(method.value for method in methods))


def get_versions() -> str:
    """The releases whose arithmetic a merge by PEFT is."""
    from peft import __version__ as peft_version
    from transformers import __version__ as transformers_version

    return tr(
        "PEFT {peft_version}, transformers {transformers_version}",
        peft_version=peft_version,
        transformers_version=transformers_version,
    )
