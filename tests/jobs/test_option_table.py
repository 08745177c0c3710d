"""One table of options: settings, Python keywords, command line, docs and READMEs agree."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from docs.write_options import COMMANDS, DOCUMENT, parser_of, written
from merge import apply_delta, convert_checkpoint, make_delta, merge_lora, resize_vocabulary
from merge import settings as table
from merge.errors import UsageError
from tests.kit.run import ROOT

PAIRS = {
    table.OutputOptions: table.OutputSettings,
    table.MergeOptions: table.MergeSettings,
    table.ConvertOptions: table.ConvertSettings,
    table.ResizeOptions: table.ResizeSettings,
    table.MakeDeltaOptions: table.MakeDeltaSettings,
    table.ApplyDeltaOptions: table.ApplyDeltaSettings,
}


@pytest.mark.parametrize("options", PAIRS, ids=lambda options: str(options.__name__))
def test_keywords_for_type_checkers_are_those_of_the_settings(options: type) -> None:
    named = {}
    for one in (*options.__mro__, *getattr(options, "__orig_bases__", ())):
        named |= getattr(one, "__annotations__", {})
    kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in named.items()}
    assert kinds == {one.name: one.type for one in fields(PAIRS[options])}


@pytest.mark.parametrize("script", COMMANDS)
def test_every_option_of_a_command_has_a_help_text(script: str) -> None:
    for action in parser_of(COMMANDS[script])._actions:
        assert action.help, action.dest


def test_the_page_of_options_is_made_of_todays_parsers() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    assert page == written(), "run python docs/write_options.py"


@pytest.mark.parametrize("name", ["README.md", "README_ZH.md"])
def test_options_in_a_readme_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    known = {o for m in COMMANDS.values() for a in parser_of(m)._actions for o in a.option_strings}
    options = set(re.findall(r"`(--[\w-]+)", text)) | set(re.findall(r"^ +(--[\w-]+)", text, re.M))
    assert options - known == set()


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
    with pytest.raises(UsageError, match=f"{wrong}(.|\n)*{right} is perhaps meant"):
        job(*inputs, **{wrong: 1})
