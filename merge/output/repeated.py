"""A manifest as the recipe of its result: the options that it records, and its inputs' digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, MergeError, VerificationError
from ..messages import tr
from ..options import options_of
from ..settings import OutputSettings
from ..untrusted.strict_json import read_json
from ..version import MANIFEST_NAME

JOB, OPTIONS = "job", "options"
_MODELS = ("base_model", "delta_model", "target_model", "model")
# What these name is an input, and is recorded there.
_INPUTS = ("lora_weights", "imatrix")
_SAME = tr(
    "give the input that the result was made of, or --allow_changed_inputs to make another result"
)


def record_options(job: str, settings: OutputSettings) -> dict[str, Any]:
    """What a manifest records of a job beside its inputs: its name, and every value that shapes
    the result.

    Options of other types of output are left out. The name of a model stands in GGUF files alone;
    elsewhere it would be that of the folder.
    """
    left_out = {*_INPUTS, *(() if settings.output_type == "gguf" else ("model_name",))}
    for name, one in options_of(type(settings)).items():
        if one.only_for not in (None, settings.output_type):
            left_out.add(name)
    values = settings.result_values()
    values["max_shard_size"] = settings.shard_bytes
    values["split_max_size"] = settings.split_bytes or None
    return {JOB: job, OPTIONS: {name: v for name, v in values.items() if name not in left_out}}


@dataclass(frozen=True)
class Recipe:
    """What a manifest says of how to make its result again.

    ``values`` are those of the options by name, inputs among them, as they were named.
    """

    file: Path
    job: str
    values: Mapping[str, Any]
    inputs: Mapping[str, Any]

    def require_same_inputs(self, found: Mapping[str, Any]) -> None:
        """Raise ``VerificationError`` for the first input whose content is another one.

        ``found`` are the inputs of a manifest. What has not been read yet is not compared. Raises
        ``FormatError`` where the manifest does not describe its inputs.
        """
        try:
            first = next(self._compare(found), None)
        except (AttributeError, KeyError, TypeError):
            raise _no_recipe_error(self.file) from None
        if first is not None:
            raise first

    def _compare(self, found: Mapping[str, Any]) -> Iterator[MergeError]:
        for role in _MODELS:
            then, now = self.inputs.get(role), found.get(role)
            if then and now:
                yield from _compare_tensors(then, now)
        adapters = found.get("adapters", [])
        for then, now in zip(self.inputs.get("adapters", []), adapters, strict=False):
            yield from _compare_files(then, now)
        for kind in ("tokenizer", "imatrix"):
            before, after = (one.get(kind, {}).get("sha256") for one in (self.inputs, found))
            if before != after:
                yield _changed_error(f"--{kind}", None, before or tr("none"), after or tr("none"))


def read_recipe(path: Path) -> Recipe:
    """Read a manifest, or that of a folder.

    Raises ``FormatError`` for a file that is none, or of a release that recorded no options.
    """
    file = path / MANIFEST_NAME if path.is_dir() else path
    if not file.is_file():
        raise FormatError(
            tr("there is no manifest"),
            file=file,
            expected=tr(
                "{manifest_name}, or the folder that holds it", manifest_name=MANIFEST_NAME
            ),
            remedy=tr("check the spelling"),
        )
    content = read_json(file)
    try:
        named = _name_inputs(content["inputs"])
        return Recipe(file, str(content[JOB]), {**content[OPTIONS], **named}, content["inputs"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _no_recipe_error(file) from None


def _no_recipe_error(file: Path) -> FormatError:
    return FormatError(
        tr("the manifest does not say how its result was made"),
        file=file,
        expected=tr(
            'inputs, "{job}" and "{options}", as this release records them',
            job=JOB,
            options=OPTIONS,
        ),
        remedy=tr("give the options themselves"),
    )


def _name_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs by the names of their options."""
    named = {role: inputs[role]["source"] for role in _MODELS if role in inputs}
    if adapters := inputs.get("adapters"):
        named["lora_model"] = [adapter["source"] for adapter in adapters]
        named["lora_weights"] = [float(adapter["weight"]) for adapter in adapters]
    if source := inputs.get("tokenizer", {}).get("source"):
        named["tokenizer"] = source
    return named


def _compare_tensors(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[MergeError]:
    from ..tensors.digests import DIGEST_KEYS, DIGEST_VERSION

    key = DIGEST_KEYS[DIGEST_VERSION]
    before, after = then["tensors"], now["tensors"]
    for name in before:
        if name not in after:
            yield _changed_error(now["source"], name, tr("a tensor of this name"), tr("none"))
    for name, entry in after.items():
        expected = before.get(name, {key: tr("no tensor of this name")}).get(key, f"{key}: ...")
        digest = entry[key]
        if None not in (expected, digest) and expected != digest:
            yield _changed_error(now["source"], name, expected, digest)


def _compare_files(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[MergeError]:
    before, after = ({one["file"]: one["sha256"] for one in a["files"]} for a in (then, now))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            place = Path(now["source"]) / name
            yield _changed_error(place, None, before.get(name), after.get(name))


def _changed_error(
    file: object, tensor: str | None, expected: object, found: object
) -> VerificationError:
    return VerificationError(
        tr("an input is not the one that the manifest records"),
        file=file,
        tensor=tensor,
        expected=expected,
        found=found,
        remedy=_SAME,
    )
