"""Brings the catalogues of ``merge/locale`` up to date with the messages in the code.

``python docs/update_translations.py`` extracts every message with Babel, merges them into the
catalogues (``.po``), and compiles these (``.mo``), which is what the commands read. Translations
themselves are written into the ``.po`` file; run it again afterwards. With ``--check`` nothing is
written, and the exit code is 1 where something is missing.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parent.parent
PACKAGES = ("merge", "tokenizer_tools")
LOCALE_DIR = ROOT / "merge" / "locale"
LANGUAGES = ("zh_CN",)
DOMAIN = "chinese_llama_merge"
_METHODS = [("**.py", "python"), ("**.html.jinja", "jinja2")]
_KEYWORDS = {"tr": None, "_": None}
# Dates would change with every run.
_DATE = datetime(2026, 1, 1, tzinfo=timezone.utc)


def extract_messages() -> Catalog:
    """Every message in the code, with the files that it stands in."""
    catalog = Catalog(project="Chinese LLaMA Merge", charset="utf-8")
    for package in PACKAGES:
        for name, _, message, comments, _ in extract_from_dir(
            ROOT / package, _METHODS, keywords=_KEYWORDS
        ):
            catalog.add(message, locations=[(f"{package}/{name}", 0)], auto_comments=comments)
    return catalog


def get_path(language: str, suffix: str) -> Path:
    """A catalogue's file."""
    return LOCALE_DIR / language / "LC_MESSAGES" / f"{DOMAIN}{suffix}"


def read_catalog(language: str) -> Catalog:
    """A catalogue as it is in the tree."""
    path = get_path(language, ".po")
    if not path.exists():
        return Catalog(locale=language, domain=DOMAIN)
    return read_po(io.BytesIO(path.read_bytes()), locale=language, domain=DOMAIN)


def update_catalog(language: str) -> Catalog:
    """A catalogue with the messages that the code has now; those that are gone are dropped."""
    catalog, template = read_catalog(language), extract_messages()
    catalog.update(template, no_fuzzy_matching=True, update_header_comment=False)
    catalog.obsolete.clear()
    return catalog


def dump_po(catalog: Catalog) -> bytes:
    """The text of a catalogue, without dates and line numbers, which change all the time."""
    out = io.BytesIO()
    catalog.revision_date = catalog.creation_date = _DATE
    write_po(out, catalog, sort_by_file=True, include_lineno=False, omit_header=False, width=100)
    return out.getvalue()


def dump_mo(catalog: Catalog) -> bytes:
    """The compiled catalogue."""
    out = io.BytesIO()
    write_mo(out, catalog)
    return out.getvalue()


def find_untranslated(catalog: Catalog) -> Iterator[str]:
    """Messages without a translation."""
    yield from (str(message.id) for message in catalog if message.id and not message.string)


def main() -> int:
    """Write or check every catalogue."""
    parser = argparse.ArgumentParser(description="Bring the catalogues up to date.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    args = parser.parse_args()
    outdated = False
    for language in LANGUAGES:
        catalog = update_catalog(language)
        missing = list(find_untranslated(catalog))
        for text in missing:
            print(f"{language}: not translated: {text!r}", file=sys.stderr)
        outdated |= bool(missing)
        for suffix, data in ((".po", dump_po(catalog)), (".mo", dump_mo(catalog))):
            path = get_path(language, suffix)
            if path.exists() and path.read_bytes() == data:
                continue
            outdated |= args.check
            if not args.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    return int(outdated)


if __name__ == "__main__":
    sys.exit(main())
