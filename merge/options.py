"""What an option is: a field of the settings that knows its help, its values and its check.

``settings.py`` and ``job_settings.py`` hold these fields. Commands make their parsers of them
(``commands/common.py``), jobs their keywords (``takes_options``), and docs/options.md its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import partial
from inspect import Parameter, signature
from typing import Any, TypeVar

from .errors import UsageError
from .messages import tr
from .option_checks import require_bool, require_one_of

INPUTS, VOCABULARY, OUTPUT = tr("inputs"), tr("vocabulary"), tr("what is written")
ARITHMETIC, RESOURCES = tr("arithmetic"), tr("memory, disk and processors")
ANSWERS = tr("answers")
GROUPS = (INPUTS, VOCABULARY, OUTPUT, ARITHMETIC, RESOURCES, ANSWERS)
"""Groups of options, in the order in which help lists them."""

Job = TypeVar("Job", bound=Callable[..., object])


@dataclass(frozen=True)
class Option:
    """What help, parsers and checks need to know about a field.

    ``default_text`` is what help says where the default's own text says too little; ``arguments``
    are argparse's. ``check(name, value)`` raises ``UsageError`` for a value that means nothing.
    An option that is ``only_for`` one output type is refused with another. One ``of_run`` changes
    no byte of the result by its value; a file that it names may, by its content.
    """

    default: Any
    group: str
    description: str
    default_text: str = ""
    only_for: str | None = None
    of_run: bool = False
    check: Callable[[str, Any], object] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        """The line of help, with the default of everything but switches."""
        if isinstance(self.default, bool):
            return self.description
        default = self.default_text or str(self.default)
        return tr(
            "{description} (default: {default})", description=self.description, default=default
        )


def option(
    default: Any,
    group: str,
    description: str,
    *,
    default_text: str = "",
    only_for: str | None = None,
    of_run: bool = False,
    check: Callable[[str, Any], object] | None = None,
    **arguments: Any,
) -> Any:
    """Make a field of a dataclass that is an option; see ``Option``.

    A field whose default is ``False`` is a switch. Switches and ``choices`` have their own checks.
    """
    if isinstance(default, bool):
        check, arguments = require_bool, {"action": "store_true"}
    elif choices := arguments.get("choices"):
        check = partial(require_one_of, choices=choices)
    about = (default, group, description, default_text, only_for, of_run, check, arguments)
    return field(default=default, metadata={"option": Option(*about)})


def copy_option(kind: type, name: str, **changes: Any) -> Any:
    """Make the same field as ``kind`` has; ``changes`` replace attributes of its ``Option``."""
    if "default" in changes:
        changes = {"default_text": "", **changes}
    changed = replace(options_of(kind)[name], **changes)
    return field(default=changed.default, metadata={"option": changed})


def options_of(kind: type) -> dict[str, Option]:
    """Return the options among the fields of a dataclass, by name."""
    return {one.name: one.metadata["option"] for one in fields(kind) if one.metadata}


def check_values(settings: object) -> None:
    """Raise ``UsageError`` for the first option whose value means nothing."""
    for name, one in options_of(type(settings)).items():
        value = getattr(settings, name)
        if one.check is not None and value is not one.default:
            one.check(name, value)


def takes_options(kind: type) -> Callable[[Job], Job]:
    """Make a decorator that shows the fields of ``kind`` in a function's signature.

    ``help`` and ``inspect.signature`` then list them in place of ``**options``.
    """

    def with_signature(job: Job) -> Job:
        plain = signature(job)
        own = [one for one in plain.parameters.values() if one.kind != Parameter.VAR_KEYWORD]
        more = [
            Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
            for one in fields(kind)
        ]
        vars(job)["__signature__"] = plain.replace(parameters=[*own, *more])
        return job

    return with_signature


def require_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UsageError`` for an unknown keyword, with the nearest known one as the remedy."""
    known = list(known)
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, 1)
            raise UsageError(
                tr("there is no option {name}", name=name),
                expected=", ".join(known),
                found=name,
                remedy=tr("did you mean {name}?", name=close[0]) if close else tr("leave it out"),
            )
