"""The file of many merges: its jobs, checked as far as the file alone tells."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from ..errors import MergeError, UsageError, as_merge_error, shown
from ..job_settings import MergeSettings
from ..messages import Message, compose, tr
from ..options import options_of, require_known
from ..plan.inputs import split_list
from ..settings import make_settings
from ..storage.urls import is_url
from ..untrusted.strict_json import read_json
from ..user_paths import expand_user
from .merge_lora import merge_lora

_JOBS, _VERIFY = "jobs", "verify"
_REQUIRED = ("base_model", "lora_model", "output_dir")
_INPUTS = ("base_model", "delta_model", "lora_model", "tokenizer")
_PATHS = (*_INPUTS, "output_dir", "offload_dir")
_OF_THE_RUN = ("dry_run", "resume")
_CALLBACKS = ("on_progress", "on_verify", "same_inputs_as")
_TAKES_LISTS = (
    "lora_model",
    *(
        name
        for name, one in options_of(MergeSettings).items()
        if "nargs" in one.arguments or one.arguments.get("action") == "append"
    ),
)


@dataclass(frozen=True)
class MergeRequest:
    """A job of the file: its number, from 1, and the keywords of ``merge_lora``.

    ``verify`` asks for a check of the result, as the option of that name does for one merge.
    """

    file: Path
    number: int
    keywords: Mapping[str, Any]
    verify: bool

    @property
    def output_dir(self) -> Path:
        """The output folder as it is named."""
        return expand_user(self.keywords["output_dir"])

    @property
    def input_paths(self) -> Iterator[tuple[str, str]]:
        """Each input as it is named, with its key."""
        for key in _INPUTS:
            named = self.keywords.get(key) or []
            for one in split_list(_as_list(named)) if key == "lora_model" else _as_list(named):
                yield key, one

    def located(self) -> AbstractContextManager[None]:
        """A block whose errors say that they are about this job."""
        return located(
            self.file,
            tr(
                "{number} of {name}, {output_dir}",
                number=self.number,
                name=self.file.name,
                output_dir=self.output_dir,
            ),
        )


@contextmanager
def located(file: Path, job: str | None = None) -> Iterator[None]:
    """Let errors in the block name the ``file`` of jobs, unless they name another, and the job."""
    try:
        yield
    except (MergeError, OSError) as error:
        mistake = as_merge_error(error)
        where = {"file": shown(str(file)), **({"job": shown(job)} if job else {})}
        mistake.facts = where | mistake.facts
        if mistake is error:
            raise
        raise mistake from error


def read_jobs(file: Path) -> tuple[MergeRequest, ...]:
    """Read the file and check its names and values, and that no job touches another's output.

    Raises ``MergeError``, which names file and job; inputs are not opened.
    """
    if not file.is_file():
        raise UsageError(
            tr("the file of jobs does not exist")
            if not file.exists()
            else tr("this is no file of jobs"),
            file=file,
            expected=tr("a YAML or JSON file"),
            remedy=tr("check the spelling"),
        )
    with located(file):
        document = _read_document(file)
        defaults = {key: value for key, value in document.items() if key != _JOBS}
        _require_keys(document, [_JOBS, *_known_keys()])
        jobs = document.get(_JOBS)
        if not isinstance(jobs, list) or not jobs:
            raise UsageError(
                tr("the file names no jobs"),
                expected=tr("jobs: and a list of them, each with output_dir"),
                found=tr("nothing") if not jobs else type(jobs).__name__,
                remedy=tr("write each merge as an entry of jobs"),
            )
    requests = [_make_request(file, n, job, defaults) for n, job in enumerate(jobs, start=1)]
    _require_separate(requests)
    return tuple(requests)


def _read_document(file: Path) -> dict[str, Any]:
    if file.suffix.lower() == ".json":  # which may have tabs, unlike YAML
        return read_json(file)
    from ..untrusted.strict_yaml import read_yaml

    return read_yaml(file)


def _make_request(
    file: Path, number: int, job: object, defaults: Mapping[str, Any]
) -> MergeRequest:
    """Make a job of its entry and the ``defaults``; None stands for the option's own default."""
    with located(file, tr("{number} of {name}", number=number, name=file.name)):
        if not isinstance(job, dict):
            raise UsageError(
                tr("an entry of jobs is no mapping of options"),
                expected=tr("lines such as output_dir: merged"),
                found=repr(job),
                remedy=tr("write the options as name: value"),
            )
        _require_keys(job, _known_keys())
        given = {key: value for key, value in {**defaults, **job}.items() if value is not None}
        for key in _REQUIRED:
            if key not in given:
                raise UsageError(
                    tr("the job has no {key}", key=key),
                    expected=", ".join(_REQUIRED),
                    remedy=tr("add {key} to the job", key=key)
                    + ("" if key == "output_dir" else tr(", or above jobs if it is that of all")),
                )
        keywords = {key: _require_value(key, value) for key, value in given.items()}
        request = MergeRequest(file, number, keywords, keywords.pop(_VERIFY, False))
    with request.located():
        options = {key: keywords[key] for key in keywords if key in options_of(MergeSettings)}
        make_settings(MergeSettings, options, request.output_dir, merge_lora)
    return request


def _known_keys() -> list[str]:
    """The keywords of a merge that may stand in the file."""
    left_out = (*_OF_THE_RUN, *_CALLBACKS)
    return [*(key for key in signature(merge_lora).parameters if key not in left_out), _VERIFY]


def _require_keys(given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in _OF_THE_RUN:
        if key in given:
            raise UsageError(
                tr("{key} is for all jobs together", key=key),
                found=tr("{key} in the file", key=key),
                remedy=tr("leave it out, and give --{key} on the command line", key=key),
            )
    require_known(given, known)


def _require_value(key: str, value: Any) -> Any:
    """Return the value of an option, as far as YAML's types need a check.

    ``MergeSettings`` checks what it means.
    """
    option = options_of(MergeSettings).get(key)
    is_switch = key == _VERIFY or (option is not None and isinstance(option.default, bool))
    is_text = (
        key in _PATHS or key == "model_name" or bool(option and option.arguments.get("choices"))
    )
    if isinstance(value, list) and key not in _TAKES_LISTS:
        raise _value_error(key, tr("one value"), value)
    items = _as_list(value)
    for item in items:
        if is_switch and not isinstance(item, bool):
            raise _value_error(key, tr("true or false"), item)
        if is_text and not (isinstance(item, str) and item.strip()):
            raise _value_error(
                key, tr("text; what YAML takes for something else needs quotes"), item
            )
        if not is_switch and (isinstance(item, bool) or not isinstance(item, (str, int, float))):
            raise _value_error(key, tr("text or a number"), item)
        if key in _PATHS and (fault := _find_path_fault(item)):
            found = compose("{item} ({fault})", item=item, fault=fault)
            raise _value_error(key, tr("a path"), found)
    return items if key in _TAKES_LISTS and not isinstance(value, str) else value


def _value_error(key: str, expected: str, found: object) -> UsageError:
    return UsageError(
        tr("the value of {key} is of another kind", key=key),
        expected=expected,
        found=found if isinstance(found, Message) else repr(found),
        remedy=tr("see {key} in docs/options.md", key=key),
    )


def _find_path_fault(text: str) -> str | None:
    """Why text can be no path on this system."""
    if "\0" in text:
        return tr("it has a zero byte")
    try:
        os.fsencode(text)
        expand_user(text)
    except ValueError as error:
        return str(error)
    except UsageError as error:
        return error.sentence
    return None


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _require_separate(requests: Sequence[MergeRequest]) -> None:
    """Require output folders apart from each other, none of which is an input of any job."""
    outputs: dict[Path, MergeRequest] = {}
    for request in requests:
        if is_url(str(request.keywords["output_dir"])):
            with request.located():
                raise UsageError(
                    tr("the jobs of a file write to local folders"),
                    expected=tr("output_dir: a folder"),
                    found=tr("a URL"),
                    remedy=tr("run this merge by itself, or copy its folder afterwards"),
                )
        other = outputs.setdefault(_resolve(request.output_dir), request)
        if other is not request:
            with request.located():
                raise _shared_error(tr("the output folder of the job is that of another"), other)
    for folder, request in outputs.items():
        if above := next((outputs[one] for one in folder.parents if one in outputs), None):
            with request.located():
                raise _shared_error(tr("the output folder of the job is inside another's"), above)
    for request in requests:
        for key, named in request.input_paths:
            path = _resolve(expand_user(named))
            writer = outputs.get(path.parent if path.suffix == ".gguf" else path)
            if writer is not None:
                with request.located():
                    raise UsageError(
                        tr("the job reads what a job of the same file writes"),
                        expected=tr("inputs that are there before the first job begins"),
                        found=tr(
                            "{key} {named} is the output folder of job {number}",
                            key=key,
                            named=named,
                            number=writer.number,
                        ),
                        remedy=tr(
                            "give the jobs that read it a file of their own, and run it after "
                            "this one"
                        ),
                    )


def _shared_error(sentence: str, other: MergeRequest) -> UsageError:
    return UsageError(
        sentence,
        expected=tr("a folder of its own for each job"),
        found=tr(
            "job {number} writes to {output_dir}", number=other.number, output_dir=other.output_dir
        ),
        remedy=tr("give one of the two another output_dir"),
    )


def _resolve(path: Path) -> Path:
    """The folder itself, by which two names of it are equal, on systems that ignore case too."""
    real = os.path.realpath(path)
    return Path(real.casefold() if sys.platform in ("win32", "darwin") else real)
