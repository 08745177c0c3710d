"""``CITATION.cff`` can be read by those who cite, and is of the version that is built."""

from __future__ import annotations

from typing import Any

import yaml

from tests.kit.run import ROOT
from tests.packaging.built import PROJECT

# https://github.com/citation-file-format/citation-file-format, schema guide of 1.2.0.
_REQUIRED = {"cff-version", "message", "authors", "title"}
_TEXTS = {"cff-version", "message", "title", "type", "abstract", "version", "license"}


def read() -> dict[str, Any]:
    fields = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert isinstance(fields, dict)
    return fields


def test_version_and_license_are_those_of_the_package() -> None:
    fields = read()
    assert fields["version"] == PROJECT["version"]
    assert fields["license"] == PROJECT["license"]


def test_fields_are_those_of_the_format() -> None:
    """``make package`` has the format's own validator check all of it."""
    fields = read()
    assert set(fields) >= _REQUIRED
    assert fields["cff-version"] == "1.2.0"
    assert fields["type"] in ("software", "dataset")
    assert all(isinstance(fields[name], str) and fields[name] for name in _TEXTS & set(fields))
    assert all(isinstance(word, str) for word in fields["keywords"])
    assert len(set(fields["keywords"])) == len(fields["keywords"])
    assert fields["authors"]
    for author in fields["authors"]:
        assert "name" in author or {"family-names", "given-names"} & set(author)
