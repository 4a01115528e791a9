"""Examples are pages to read."""

import ast

import pytest
from support.paths import EXAMPLES


PAGES = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_at_most_200_lines_and_begins_with_its_command(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert f"examples/{page.name}" in (ast.get_docstring(ast.parse(text)) or "")
