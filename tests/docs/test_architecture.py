"""The order of packages: nothing imports from above, and the drawing is of today."""

from __future__ import annotations

from docs.draw_packages import (
    DOCUMENT,
    PACKAGES,
    find_dependencies,
    find_imports,
    find_modules,
    get_package,
    insert_tables,
)

ORDER = list(PACKAGES)
# The commands of tokenizer_tools are beside all others.
ALLOWED = {("commands", "tokenizer_tools")}


def test_every_module_is_in_a_package_of_the_table() -> None:
    assert {get_package(name) for name in find_modules()} == set(PACKAGES)


def test_nothing_imports_from_a_package_above_it() -> None:
    upward = [
        f"{one}, line {line}: {other}"
        for one, other, line in find_imports()
        if one != "merge" and ORDER.index(get_package(other)) < ORDER.index(get_package(one))
    ]
    assert not upward


def test_only_commands_import_the_tokenizer_tools() -> None:
    into = {(one, other) for one, other in find_dependencies() if other == "tokenizer_tools"}
    assert into == ALLOWED


def test_the_drawing_is_made_of_todays_imports() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert insert_tables(document) == document, "run python docs.draw_packages.py"
