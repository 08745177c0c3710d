"""Published adapters and the order in which they are merged."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
from pathlib import Path

import pytest

from merge import merge_lora
from merge.checksums.adapter_order import (
    PREREQUISITES,
    AdapterInput,
    find_adapter_chain,
    require_known_order,
)
from merge.checksums.known_files import identify_adapter, load_known_files
from merge.errors import UsageError
from tests.kit.fixtures import PublishFiles
from tests.kit.models import adapter_tensors, base_tensors, save_adapter, save_base
from tests.kit.run import MERGE, ROOT, run_merge
from tests.kit.tokenizer_models import write_tokenizer


def facts(real_data: Path, name: str) -> list[dict[str, str]]:
    path = real_data.parent / "facts" / name
    if not path.is_file():
        pytest.skip(f"needs the published table {name} beside the real data")
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_every_published_checksum_is_read(real_data: Path) -> None:
    published = facts(real_data, "known_sha256.tsv")
    assert {(r["model"], r["part"], r["sha256"]) for r in published} == {
        (known.model, known.part, known.sha256)
        for known in load_known_files().values()
        if not known.group.startswith("Tokenizer of the original")  # not in the authors' tables
    }


def test_every_published_chain_passes_and_every_other_order_does_not(real_data: Path) -> None:
    first = [c for c in facts(real_data, "known_chains.tsv") if "-2-" not in c["adapter"]]
    assert {c["adapter"]: c["adapters merged before it"] for c in first} == {
        c["adapter"]: PREREQUISITES.get(c["adapter"], "") for c in first
    }
    for chain in first:
        name, below = chain["adapter"], chain["adapters merged before it"]
        named = [AdapterInput(f"dir of {n}", n) for n in (below, name) if n]
        require_known_order(32000, named)
        if below:
            require_known_order(49953, named[1:])
            for wrong in (named[1:], named[::-1]):
                with pytest.raises(UsageError) as caught:
                    require_known_order(32000, wrong)
            assert caught.value.facts["expected"] == f"--lora_model dir of {below},dir of {name}"
        else:
            for rows, before in ((49953, []), (32000, [AdapterInput("x", "Chinese-LLaMA-7B")])):
                with pytest.raises(UsageError, match="straight onto"):
                    require_known_order(rows, [*before, *named])


def test_published_adapters_have_names() -> None:
    names = {identify_adapter(digest) for digest in load_known_files()} - {None}
    assert len(names) == 15
    assert names >= PREREQUISITES.keys()
    assert identify_adapter("0" * 64) is None


def test_unknown_adapters_are_nobodys_business() -> None:
    require_known_order(32000, [AdapterInput("a", None), AdapterInput("b", None)])
    require_known_order(32000, [AdapterInput("a", "Chinese-LLaMA-7B"), AdapterInput("b", None)])


@pytest.mark.parametrize("rows", [32000, 55296])
def test_second_generation_wants_llama_2_itself(rows: int) -> None:
    alpaca = AdapterInput("chinese-alpaca-2-lora-7b", None, "/Llama-2-7b-hf", 55296)
    if rows == 32000:
        require_known_order(rows, [alpaca])
    else:
        with pytest.raises(UsageError, match="Llama-2 itself"):
            require_known_order(rows, [alpaca])


PLUS, ALPACA_PLUS = "Chinese-LLaMA-Plus-7B", "Chinese-Alpaca-Plus-7B"
# Rows of the base, then name, what the configuration calls its base, and rows of each adapter.
REFUSED: dict[str, tuple[int, list[tuple[str | None, str | None, int | None]]]] = {
    "something unknown below one that goes straight on": (
        32000,
        [(None, None, 49953), ("Chinese-LLaMA-7B", None, 49953)],
    ),
    "a LoRA without vocabulary below one that goes straight on": (
        32000,
        [(None, None, None), ("Chinese-Alpaca-7B", None, 49954)],
    ),
    "something unknown between the two": (
        32000,
        [(PLUS, None, 49953), (None, None, None), (ALPACA_PLUS, None, 49954)],
    ),
    "Pro after Plus": (
        32000,
        [(PLUS, None, 49953), (ALPACA_PLUS, None, 49954), ("Chinese-Alpaca-Pro-7B", None, 49954)],
    ),
    "Alpaca-Plus alone on the original": (32000, [(ALPACA_PLUS, None, 49954)]),
    "second generation twice": (
        32000,
        [(None, "/x/Llama-2-7b-hf", 55296), (None, "/x/Llama-2-7b-hf", 55296)],
    ),
    "second generation after the first": (
        32000,
        [(PLUS, None, 49953), (None, "/x/Llama-2-7b-hf", 55296)],
    ),
}
REFUSED |= {
    f"second generation of {name} on {rows} rows": (rows, [(None, name, 55296)])
    for name in (
        "/models/llama-2-7b",
        "meta-llama/Llama-2-7b-chat-hf",
        "decapoda-research/llama-7b-hf",
        None,
    )
    for rows in (49953, 49954, 55296)
}


@pytest.mark.parametrize(("rows", "chain"), REFUSED.values(), ids=REFUSED)
def test_chain_whose_sizes_do_not_fit_is_refused(
    rows: int, chain: list[tuple[str | None, str | None, int | None]]
) -> None:
    with pytest.raises(UsageError) as caught:
        require_known_order(rows, [AdapterInput(f"dir {n}", *it) for n, it in enumerate(chain)])
    assert "--allow_unknown_combination" in caught.value.facts["remedy"]
    assert {"file", "expected", "found"} <= caught.value.facts.keys()


@pytest.mark.parametrize(
    ("rows", "chain"),
    [
        (32000, [(None, "decapoda-research/llama-7b-hf", 55296)]),
        (55296, [(None, "hfl/chinese-alpaca-2-7b", 55296)]),
        (55296, [(None, "/models/llama-2-7b", None)]),
        (32000, [(None, "/Llama-2-7b-hf", 55296), (None, "hfl/chinese-llama-2-7b", 55296)]),
        (32016, [(None, "codellama/CodeLlama-7b-hf", 55296)]),
    ],
)
def test_chain_whose_sizes_fit_passes(
    rows: int, chain: list[tuple[str | None, str | None, int | None]]
) -> None:
    assert require_known_order(rows, [AdapterInput("dir", *it) for it in chain]) == ()


def test_what_is_in_a_base_of_chinese_rows_is_told_by_its_manifest_or_not_at_all() -> None:
    alone = [AdapterInput("dir", ALPACA_PLUS, None, 49954)]
    assert require_known_order(49953, alone, [PLUS]) == ()
    for unknown in (None, [None], []):
        (note,) = require_known_order(49953, alone, unknown)
        assert f"belongs on top of {PLUS}" in note
    with pytest.raises(UsageError, match="something else is in this base") as caught:
        require_known_order(49953, alone, ["Chinese-LLaMA-7B"])
    assert "Chinese-LLaMA-7B" in caught.value.facts["found"]
    assert require_known_order(32000, [AdapterInput("below", PLUS, None, 49953), *alone]) == ()


@pytest.mark.parametrize(
    ("below", "told"), [(PLUS, None), ("Chinese-LLaMA-7B", "refused"), (None, "note")]
)
def test_manifest_of_the_base_names_what_was_merged(
    tmp_path: Path, publish_files: PublishFiles, below: str | None, told: str | None
) -> None:
    """No published adapter fits a tiny base, so two tiny ones are given published names."""
    rows = 49953
    first = save_adapter(tmp_path / "first", adapter_tensors(rows))
    merged = tmp_path / "merged"
    tokens = tmp_path / "tokenizer"
    tokens.mkdir()
    write_tokenizer(tokens, rows)
    base = save_base(tmp_path / "base")
    merge_lora(base, first, merged, output_type="huggingface", tokenizer=tokens)
    second = save_adapter(tmp_path / "second", adapter_tensors(rows, seed=3))
    published = [(ALPACA_PLUS, second / "adapter_model.bin")]
    published += [(below, first / "adapter_model.bin")] if below else []
    publish_files("LoRA adapters (adapter_model.bin)", published)
    if told == "refused":
        with pytest.raises(UsageError, match="something else is in this base"):
            merge_lora(merged, second, tmp_path / "out", tokenizer=tokens, dry_run=True)
        return
    report = merge_lora(merged, second, tmp_path / "out", tokenizer=tokens, dry_run=True)
    assert ("is unknown" in report.summary()) == (told == "note")


@pytest.mark.slow
def test_published_adapter_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    """No digest of a published adapter can be made here, so a copy of the program is told that a
    tiny one is published.
    """
    base, output = save_base(tmp_path / "base"), tmp_path / "out"
    adapter = save_adapter(tmp_path / "lora", adapter_tensors(49954))
    program = tmp_path / "program"
    for part in ("merge", "tokenizer_tools", "scripts"):
        shutil.copytree(ROOT / part, program / part, ignore=shutil.ignore_patterns("__pycache__"))
    digest = hashlib.sha256((adapter / "adapter_model.bin").read_bytes()).hexdigest()
    published = (ROOT / "SHA256.md").read_text(encoding="utf-8")
    row = re.search(r"\| Chinese-Alpaca-Plus-7B \| \d+ \| `(\w{64})` \|", published)
    assert row is not None
    (program / "SHA256.md").write_text(published.replace(row[1], digest), encoding="utf-8")
    words = ("--base_model", base, "--lora_model", adapter, "--output_dir", output)
    script = program / "scripts" / MERGE.name
    done = run_merge(*words, script=script)
    assert done.returncode == 2
    assert "Chinese-Alpaca-Plus-7B was trained on top of Chinese-LLaMA-Plus-7B" in done.stderr
    assert f"--lora_model Chinese-LLaMA-Plus-7B,{adapter}" in done.stderr
    assert "--allow_unknown_combination" in done.stderr
    inspected = run_merge(
        adapter, "--base_model", base, script=program / "scripts" / "inspect_adapter.py"
    )
    assert inspected.returncode == 1
    assert "published  Chinese-Alpaca-Plus-7B, after Chinese-LLaMA-Plus-7B" in inspected.stdout
    assert "was trained on top of Chinese-LLaMA-Plus-7B" in inspected.stdout


def test_merge_refuses_an_unpublished_order_unless_it_is_allowed(tmp_path: Path) -> None:
    """The second generation is known by its rows and by the base that its configuration names."""
    base = save_base(tmp_path / "base", base_tensors(55296))
    named = {"base_model_name_or_path": "/data/Llama-2-7b-hf"}
    tokens = tmp_path / "tokenizer"
    tokens.mkdir()
    write_tokenizer(tokens, 55296)
    adapter = save_adapter(tmp_path / "lora", adapter_tensors(55296), **named)
    with pytest.raises(UsageError, match="Llama-2 itself") as caught:
        merge_lora(base, adapter, tmp_path / "out", tokenizer=tokens)
    assert "--allow_unknown_combination" in caught.value.facts["remedy"]
    allowed = {"tokenizer": tokens, "allow_unknown_combination": True}
    merge_lora(base, adapter, tmp_path / "out", **allowed)


CHAINS = {
    "ziqingyang/chinese-alpaca-plus-7b": ("Chinese-LLaMA-Plus-7B", "Chinese-Alpaca-Plus-7B"),
    "/data/chinese_alpaca_pro_33b_hf": ("Chinese-LLaMA-Plus-33B", "Chinese-Alpaca-Pro-33B"),
    "chinese-llama-lora-13b-merged": ("Chinese-LLaMA-13B",),
    "Chinese-Alpaca-LoRA-7B": ("Chinese-Alpaca-7B",),
    "hfl/chinese-alpaca-2-7b": (),
    "decapoda-research/llama-7b-hf": (),
    None: (),
}


@pytest.mark.parametrize(("name", "chain"), CHAINS.items())
def test_configurations_name_chains(name: str | None, chain: tuple[str, ...]) -> None:
    assert find_adapter_chain(name) == chain


def test_missing_link_is_named() -> None:
    own = AdapterInput("mine", None, "chinese-alpaca-plus-7b", None)
    plus = AdapterInput("plus", "Chinese-LLaMA-Plus-7B")
    alpaca = AdapterInput("alpaca", "Chinese-Alpaca-Plus-7B")
    with pytest.raises(UsageError, match="not what lies below it") as caught:
        require_known_order(32000, [plus, own])
    assert "add Chinese-Alpaca-Plus-7B" in caught.value.facts["remedy"]
    with pytest.raises(UsageError, match="not what lies below it") as caught:
        require_known_order(32000, [own])
    assert caught.value.facts["found"] == "the plain base"
    with pytest.raises(UsageError, match="not what lies below it"):
        require_known_order(49954, [own], ["Chinese-LLaMA-Plus-7B", "Chinese-Alpaca-Pro-7B"])
    # Right, or not to be told.
    require_known_order(32000, [plus, alpaca, own])
    require_known_order(49954, [own])
    require_known_order(49954, [own], ["Chinese-LLaMA-Plus-7B", "Chinese-Alpaca-Plus-7B"])
    require_known_order(32000, [AdapterInput("other", None), own])
