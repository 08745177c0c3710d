"""The document about adapters says what the registry says."""

from __future__ import annotations

from docs.write_adapters import DOCUMENT, tables, written


def test_the_document_is_what_the_registry_writes() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert written(document) == document, "run python docs/write_adapters.py"
    assert all(table in document for table in tables().values())
