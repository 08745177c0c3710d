"""The document about adapters says what the registry says, and names tests that exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from docs.write_adapters import (
    BASES,
    BY_FIELD,
    DOCUMENTS,
    ROOT,
    build_tables,
    insert_tables,
    name_test_of_kind,
    name_test_of_refusal,
)
from merge.deltas.adapter_files import FOREIGN, READ
from merge.deltas.kinds import HANDLED
from merge.deltas.peft_methods import VARIANTS
from merge.deltas.refusals import REFUSED
from merge.messages import load_catalogue


@pytest.mark.parametrize("language", DOCUMENTS)
def test_the_document_is_what_the_registry_writes(language: str) -> None:
    document = DOCUMENTS[language].read_text(encoding="utf-8")
    assert insert_tables(document, language) == document, "run python docs/write_adapters.py"
    assert all(table in document for table in build_tables(language).values())


def test_texts_of_the_registry_are_translated() -> None:
    """A text without a translation would stand in the Chinese page in English."""
    chinese = load_catalogue("zh")
    texts = [*READ.values(), *(kind.result for kind in HANDLED), *(v.result for v in VARIANTS)]
    texts += [text for refusal in REFUSED for text in (refusal.reason, refusal.remedy)]
    texts += [text for foreign in FOREIGN for text in (foreign.what, foreign.remedy)]
    with_words = (text for text in texts if re.search("[a-z]{2}", re.sub("`[^`]*`", "", text)))
    assert [text for text in with_words if chinese.gettext(text) == text] == []


def test_every_row_names_a_test_that_exists() -> None:
    """By pytest's own list of tests."""
    named = {test for base in BASES for test in base.tests}
    named |= {name_test_of_kind(kind.name) for kind in HANDLED}
    named |= {name_test_of_refusal(refusal.name) for refusal in REFUSED}
    assert {refusal.name for refusal in REFUSED} >= set(BY_FIELD)
    files = sorted({test.partition("::")[0] for test in named})
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*words, *files], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    ids = [readable(line) for line in done.stdout.splitlines()]
    for test in named:
        begins, is_group, _ = test.partition("...]")
        assert any(one.startswith(begins) if is_group else one == test for one in ids), test


def readable(test: str) -> str:
    """A test's id as it was written: pytest escapes what is not ASCII."""
    return test.encode("ascii", "backslashreplace").decode("unicode_escape")
