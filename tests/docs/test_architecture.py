"""The order of packages: nothing imports from above, and the drawing is of today."""

from __future__ import annotations

from docs.draw_rooms import DOCUMENT, ROOMS, arrows, imports, modules, room_of, written

ORDER = list(ROOMS)
# The words of commands of the workshop are beside all others.
ALLOWED = {("commands", "tokenizer_tools")}


def test_every_module_is_in_a_room() -> None:
    assert {room_of(name) for name in modules()} == set(ROOMS)


def test_nothing_imports_from_a_package_above_it() -> None:
    upward = [
        f"{one}, line {line}: {other}"
        for one, other, line in imports()
        if one != "merge" and ORDER.index(room_of(other)) < ORDER.index(room_of(one))
    ]
    assert not upward


def test_merge_and_the_workshop_depend_in_one_direction_only() -> None:
    into = {(one, other) for one, other in arrows() if other == "tokenizer_tools"}
    assert into == ALLOWED


def test_the_drawing_is_made_of_todays_imports() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert written(document) == document, "run python docs/draw_rooms.py"
