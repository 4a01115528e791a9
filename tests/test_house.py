"""The rules of the house: which room may import which, and how long files and functions are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import EXAMPLES, PACKAGE, ROOT


# each room may import from itself and from the rooms before it
ROOMS = [
    {"files", "pretrained"},
    {"models", "metrics"},
    {"data"},
    {"evaluation"},
    {"retrieval"},
    {"hub"},
    {"export"},
    {"converters"},
    {"live"},
    {"training"},
    {"cli"},
    {"registration", "__main__"},
    {"__init__"},
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted(EXAMPLES.glob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[str]:
    """The rooms of the package that a file imports from, wherever in it."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            place = folder[: len(folder) + 1 - node.level] if node.level else ()
            parts = [*place, *(node.module.split(".") if node.module else [])]
            names = [parts] if len(parts) > 1 else [[*parts, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == PACKAGE.name and len(name) > 1)


def lengths(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file with the number of their lines, those of the docstring left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            documented = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            yield f"{path.name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1 - documented


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_nothing_from_above(path):
    room = room_of(path)
    assert {other for other in imported_rooms(path) if other != room and RANK[other] >= RANK[room]} == set()


def test_what_travels_uses_nothing_of_the_rest_of_the_house():
    assert {room for path in (PACKAGE / "models").glob("*.py") for room in imported_rooms(path)} <= {"models"}


@pytest.mark.parametrize("path", FILES + PAGES, ids=lambda path: path.relative_to(PACKAGE.parent).as_posix())
def test_a_function_fits_on_a_screen(path):
    assert [name for name, length in lengths(path) if length > 60] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_an_example_is_a_page(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 200
