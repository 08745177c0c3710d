"""One table of options: settings, Python keywords, command line, docs and READMEs agree."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

from docs.write_options import COMMANDS, DOCUMENT, build_page, get_parser, list_options
from merge import (
    apply_delta,
    convert_checkpoint,
    keywords,
    make_delta,
    merge_lora,
    resize_vocabulary,
)
from merge import job_settings as table
from merge.errors import UsageError
from merge.options import options_of
from tests.kit.run import ROOT

PAIRS = {
    keywords.OutputOptions: table.OutputSettings,
    keywords.EngineOptions: table.EngineSettings,
    keywords.MergeOptions: table.MergeSettings,
    keywords.ConvertOptions: table.ConvertSettings,
    keywords.ResizeOptions: table.ResizeSettings,
    keywords.MakeDeltaOptions: table.MakeDeltaSettings,
    keywords.ApplyDeltaOptions: table.ApplyDeltaSettings,
}
JOBS = {
    merge_lora: table.MergeSettings,
    convert_checkpoint: table.ConvertSettings,
    resize_vocabulary: table.ResizeSettings,
    apply_delta: table.ApplyDeltaSettings,
    make_delta: table.MakeDeltaSettings,
}


@pytest.mark.parametrize("options", PAIRS, ids=lambda options: str(options.__name__))
def test_keywords_for_type_checkers_are_those_of_the_settings(options: type) -> None:
    named = {}
    for one in (*options.__mro__, *getattr(options, "__orig_bases__", ())):
        named |= getattr(one, "__annotations__", {})
    kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in named.items()}
    assert kinds == {one.name: one.type for one in fields(PAIRS[options])}


@pytest.mark.parametrize(("job", "kind"), JOBS.items(), ids=lambda one: str(one.__name__))
def test_signature_of_a_job_shows_its_options_and_their_defaults(
    job: Callable[..., object], kind: type
) -> None:
    shown = signature(job).parameters
    options = {one.name: one.default for one in fields(kind)}
    assert options.items() <= {name: one.default for name, one in shown.items()}.items()
    assert "options" not in shown


@pytest.mark.parametrize("kind", JOBS.values(), ids=lambda kind: str(kind.__name__))
def test_values_that_mean_nothing_are_refused_by_the_table(
    kind: type[table.OutputSettings],
) -> None:
    """Every option has a check of its own, for values of Python as well."""
    for name in options_of(kind):
        with pytest.raises(UsageError, match=rf"--{name}\b"):
            kind(**{name: object()})  # type: ignore[arg-type]


def test_whole_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(UsageError, match="--expect_sum must be a finite number"):
        table.ApplyDeltaSettings(expect_sum=10**400)


def test_options_of_the_run_are_not_part_of_the_result() -> None:
    run = {"max_memory": "1MB", "num_workers": 3, "io": "direct", "offload_dir": "there"}
    run |= {"resume": True, "overwrite": True, "dry_run": True, "verify_base": True, "report": True}
    run |= {"engine": "ray", "ray_address": "10.0.0.1:6379", "task_size": "1GB"}
    values = table.MergeSettings().result_values()
    assert table.MergeSettings(**run).result_values() == values  # type: ignore[arg-type]
    by_content = {"imatrix"}  # whose digest counts, wherever the file is
    assert (
        values.keys() == table.MergeSettings.__dataclass_fields__.keys() - run.keys() - by_content
    )


@pytest.mark.parametrize("script", COMMANDS)
def test_every_option_of_a_command_has_a_help_text(script: str) -> None:
    for action in get_parser(COMMANDS[script])._actions:
        assert action.help, action.dest
        assert "None" not in action.help, action.dest


@pytest.mark.parametrize("script", COMMANDS)
def test_no_command_takes_abbreviated_options(script: str) -> None:
    assert not get_parser(COMMANDS[script]).allow_abbrev


# What a command needs for itself, or takes without effect.
OWN = {
    "help",
    "verbose",
    "quiet",
    "lang",
    "config",
    "from_manifest",
    "allow_changed_inputs",
    "as_json",
    "verify",
    "low_cpu_mem",
    "model_size",
    "model_type",
}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: str(job.__name__))
def test_command_passes_each_of_its_options_to_its_job(job: Callable[..., object]) -> None:
    options = {action.dest for action in get_parser(job.__name__)._actions} - OWN
    own_keywords = {"on_progress", "on_verify", "same_inputs_as", "model_name"}
    assert options == signature(job).parameters.keys() - own_keywords


def test_the_page_of_options_is_made_of_todays_parsers() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    assert page == build_page(), "run python docs/write_options.py"


@pytest.mark.parametrize("name", ["README.md", "README_ZH.md"])
def test_options_in_a_readme_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    known = {o for m in COMMANDS.values() for a in get_parser(m)._actions for o in a.option_strings}
    options = set(re.findall(r"`(--[\w-]+)", text)) | set(re.findall(r"^ +(--[\w-]+)", text, re.M))
    assert options - known == set()


@pytest.mark.parametrize("name", ["README.md", "README_ZH.md"])
def test_defaults_in_a_readme_are_those_of_the_table(name: str) -> None:
    table_rows = {row.names: row.default for row in list_options(get_parser("merge_lora"))}
    named = re.findall(r"^\| (`--.*?) \| (.*?) ?\|", (ROOT / name).read_text("utf-8"), re.M)
    assert len(named) >= 8
    for names, default in named:
        for option in re.split("[,、] ?", names):
            right = table_rows[option]
            if right in ("required", "off"):
                assert default in {"required": [""], "off": ["off", "关"]}[right], option
            elif "`" in default:
                assert default.strip("`") == right.strip("`").partition(";")[0], option
            else:
                assert default, option


@pytest.mark.parametrize(
    ("job", "wrong", "right"),
    [
        (merge_lora, "output_typ", "output_type"),
        (merge_lora, "tokeniser", "tokenizer"),
        (convert_checkpoint, "max_shards_size", "max_shard_size"),
        (resize_vocabulary, "pad_to_multiple", "pad_to_multiple_of"),
        (apply_delta, "expected_sum", "expect_sum"),
        (make_delta, "delta_embedding", "delta_embeddings"),
    ],
)
def test_a_misspelt_keyword_names_the_nearest_right_one(
    job: object, wrong: str, right: str, tmp_path: Path
) -> None:
    assert callable(job)
    inputs = [tmp_path / "a", tmp_path] if job is convert_checkpoint else [tmp_path / "a"] * 3
    with pytest.raises(UsageError, match=f"{wrong}(.|\n)*did you mean {right}"):
        job(*inputs, **{wrong: 1})
