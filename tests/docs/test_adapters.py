"""The document about adapters says what the registry says, and names tests that exist."""

from __future__ import annotations

import subprocess
import sys

from docs.write_adapters import (
    BASES,
    BY_FIELD,
    DOCUMENT,
    ROOT,
    build_tables,
    insert_tables,
    name_test_of_kind,
    name_test_of_refusal,
)
from merge.deltas.kinds import HANDLED
from merge.deltas.refusals import REFUSED


def test_the_document_is_what_the_registry_writes() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert insert_tables(document) == document, "run python docs/write_adapters.py"
    assert all(table in document for table in build_tables().values())


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
