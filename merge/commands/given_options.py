"""Options from files: ``--config`` has them by name, ``--from`` takes them from a manifest.

Their values go through the parser as words of a command line would, so they are checked alike. What
stands on the command line itself wins.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..messages import tr
from ..options import require_known
from ..user_paths import expand_user
from .machine import FLAG

CONFIG, FROM, CHANGED = "--config", "--from", "--allow_changed_inputs"
_NOT_IN_FILES = ("help", "config", "from_manifest", "allow_changed_inputs", "lang")


def add_file_options(parser: argparse.ArgumentParser, job: str) -> None:
    """Add ``--config`` and ``--from``; ``job`` is what the manifests of this command record."""
    group = parser.add_argument_group(tr("options from files"))
    group.add_argument(
        CONFIG,
        metavar="FILE",
        help=tr("YAML or JSON file of options by their names; those of the command line win"),
    )
    group.add_argument(
        FROM,
        dest="from_manifest",
        metavar="MANIFEST",
        help=tr(
            "make the result of a manifest (or of a folder with one) again: with "
            "the inputs and options that it records, unless others are given"
        ),
    )
    group.add_argument(
        CHANGED,
        action="store_true",
        help=tr(
            "with {from_}: accept inputs of other content than the manifest records", from_=FROM
        ),
    )
    parser.set_defaults(job_of_manifest=job)


def read_given(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace | None:
    """The values of the command line and of the files that it names; None where it names none.

    Raises ``UsageError`` for a file that cannot be used.
    """
    if not any(word.partition("=")[0] in (CONFIG, FROM) for word in words):
        return None
    given = _parse_alone(parser, words)
    values: dict[str, Any] = {}
    if path := given.get("from_manifest"):
        values |= _read_manifest(parser, Path(path))
    if path := given.get("config"):
        values |= _read_config(parser, Path(path))
    return argparse.Namespace(**{**_defaults(parser), **values, **given})


def _defaults(parser: argparse.ArgumentParser) -> dict[str, Any]:
    unset = (argparse.SUPPRESS, None)
    own = {one.dest: one.default for one in parser._actions if one.default != argparse.SUPPRESS}
    return {**own, **{k: v for k, v in parser._defaults.items() if v not in unset}}


def require_all(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End with the parser's own error where a required option is nowhere."""
    missing = [
        "/".join(one.option_strings) or str(one.metavar or one.dest)
        for one in parser._actions
        if one.required and getattr(given, one.dest, None) is None
    ]
    if missing:
        parser.error(
            tr("the following arguments are required: {missing}", missing=", ".join(missing))
        )


def _parse_alone(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """The values that the words themselves give, without defaults."""
    kept = [(one, one.default, one.required) for one in parser._actions]
    defaults, parser._defaults = parser._defaults, {}
    try:
        for one, _, _ in kept:
            one.default, one.required = argparse.SUPPRESS, False
        return vars(argparse.ArgumentParser.parse_args(parser, list(words)))
    finally:
        parser._defaults = defaults
        for one, default, required in kept:
            one.default, one.required = default, required


def _read_config(parser: argparse.ArgumentParser, file: Path) -> dict[str, Any]:
    from ..untrusted.strict_json import read_json
    from ..untrusted.strict_yaml import read_yaml

    file = expand_user(file)
    if not file.is_file():
        raise UsageError(
            tr("the file of options does not exist"),
            file=file,
            expected=tr("a YAML or JSON file"),
            remedy=tr("check the spelling"),
        )
    content = read_json(file) if file.suffix.lower() == ".json" else read_yaml(file)
    try:
        require_known(content, _find_actions(parser))
        return _parse_values(parser, content)
    except UsageError as error:
        error.facts = {"file": str(file), **error.facts}
        raise


def _read_manifest(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    from ..output.repeated import read_recipe

    recipe = read_recipe(expand_user(path))
    wanted = parser.get_default("job_of_manifest")
    if recipe.job != wanted:
        raise UsageError(
            tr("the manifest is that of another command"),
            file=recipe.file,
            expected=wanted,
            found=recipe.job,
            remedy=tr("give it to that command"),
        )
    known = _find_actions(parser)
    values = _parse_values(parser, {k: v for k, v in recipe.values.items() if k in known})
    # No option, but what a GGUF file is called in it.
    names = {key: recipe.values[key] for key in ("model_name",) if key in recipe.values}
    return values | names


def _find_actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options by every name that they have in files."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        named = bool(action.option_strings) and FLAG not in action.option_strings
        if named and action.dest not in _NOT_IN_FILES:
            names = (option.lstrip("-").replace("-", "_") for option in action.option_strings)
            found |= dict.fromkeys([action.dest, *names], action)
    return found


def _parse_values(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the parser reads them; null stands for the option's own default."""
    actions = _find_actions(parser)
    words: list[str] = []
    switches: dict[str, Any] = {}
    for name, value in values.items():
        action = actions[name]
        if value is None:
            continue
        _require_kind(name, action, value)
        if action.nargs == 0:
            switches[action.dest] = value
        else:
            words += _spell(action, value if isinstance(value, list) else [value])
    return {**_parse_alone(parser, words), **switches}


def _require_kind(name: str, action: argparse.Action, value: Any) -> None:
    is_switch = action.nargs == 0
    takes_many = action.nargs == "+" or isinstance(action, argparse._AppendAction)
    items = value if isinstance(value, list) else [value]
    if is_switch != isinstance(value, bool):
        raise _value_error(
            name, tr("true or false") if is_switch else tr("text or a number"), value
        )
    if isinstance(value, list) and not takes_many:
        raise _value_error(name, tr("one value"), value)
    if not all(isinstance(item, (str, int, float)) for item in items):
        raise _value_error(name, tr("text or numbers"), value)


def _spell(action: argparse.Action, items: Sequence[Any]) -> list[str]:
    """The words that give an option these values."""
    option = action.option_strings[-1]
    if action.nargs == "+" and len(items) > 1 and not isinstance(action, argparse._AppendAction):
        return [option, *map(str, items)]
    return [f"{option}={item}" for item in items]


def _value_error(name: str, expected: str, found: object) -> UsageError:
    return UsageError(
        tr("the value of {name} is of another kind", name=name),
        expected=expected,
        found=repr(found),
        remedy=tr("see {name} in docs/options.md", name=name),
    )
