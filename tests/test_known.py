"""Published adapters and the order in which they are merged."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from merge import merge_lora
from merge.errors import UsageError
from merge.known import BEFORE, Given, known_adapter, known_files, require_known_order
from tests.support import adapter_tensors, save_adapter, save_base


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
        for known in known_files().values()
        if not known.group.startswith("Tokenizer of the original")  # not in the authors' tables
    }


def test_every_published_chain_passes_and_every_other_order_does_not(real_data: Path) -> None:
    first = [c for c in facts(real_data, "known_chains.tsv") if "-2-" not in c["adapter"]]
    assert {c["adapter"]: c["adapters merged before it"] for c in first} == {
        c["adapter"]: BEFORE.get(c["adapter"], "") for c in first
    }
    for chain in first:
        name, below = chain["adapter"], chain["adapters merged before it"]
        named = [Given(f"dir of {n}", n) for n in (below, name) if n]
        require_known_order(32000, named)
        if below:
            require_known_order(49953, named[1:])
            for wrong in (named[1:], named[::-1]):
                with pytest.raises(UsageError) as caught:
                    require_known_order(32000, wrong)
            assert caught.value.facts["expected"] == f"--lora_model dir of {below},dir of {name}"
        else:
            for rows, before in ((49953, []), (32000, [Given("x", "Chinese-LLaMA-7B")])):
                with pytest.raises(UsageError, match="straight onto"):
                    require_known_order(rows, [*before, *named])


def test_published_adapters_have_names() -> None:
    names = {known_adapter(digest) for digest in known_files()} - {None}
    assert len(names) == 15
    assert names >= BEFORE.keys()
    assert known_adapter("0" * 64) is None


def test_unknown_adapters_are_nobodys_business() -> None:
    require_known_order(32000, [Given("a", None), Given("b", None)])
    require_known_order(32000, [Given("a", "Chinese-LLaMA-7B"), Given("b", None)])


@pytest.mark.parametrize("rows", [32000, 55296])
def test_second_generation_wants_llama_2_itself(rows: int) -> None:
    alpaca = Given("chinese-alpaca-2-lora-7b", None, "/Llama-2-7b-hf", 55296)
    if rows == 32000:
        require_known_order(rows, [alpaca])
    else:
        with pytest.raises(UsageError, match="Llama-2 itself"):
            require_known_order(rows, [alpaca])


def test_merge_refuses_an_unpublished_order_unless_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny adapter stands in for a published one: no digest of those can be made here."""
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "lora", adapter_tensors())
    monkeypatch.setattr("merge.known.known_adapter", lambda _: "Chinese-Alpaca-Plus-7B")
    with pytest.raises(UsageError, match="on top of Chinese-LLaMA-Plus-7B") as caught:
        merge_lora(base, adapter, tmp_path / "out")
    assert str(adapter) in caught.value.facts["expected"]
    assert "--allow_unknown_combination" in caught.value.facts["remedy"]
    merge_lora(base, adapter, tmp_path / "out", allow_unknown_combination=True)
