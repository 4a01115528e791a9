"""The page as one file: its structure, style and script together, and if it is to be kept what it shows."""

import os
from pathlib import Path

from ..files import write_text


WEB = Path(__file__).with_name("web")


def build_page(state: str = "null") -> str:
    """
    Put the page together.

    Args:
        state: what it shows, as JSON; `null` for a page that asks its server.
    """
    page, style, script = ((WEB / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    # inside of a script no text may look like its end
    state = state.replace("<", "\\u003c")
    for mark, text in (("/* style */", style), ("/* script */", script), ("/* state */ null", state)):
        before, _, after = page.partition(mark)
        page = before + text + after
    return page


def write_page(path: str | os.PathLike, state: str) -> None:
    """Write the page with what it shows, whole or not at all: it opens from disk and asks for nothing."""
    write_text(path, build_page(state))
