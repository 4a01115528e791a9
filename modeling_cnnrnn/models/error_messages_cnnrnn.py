"""Show values of strangers in error messages: short, on one line, and without control characters."""

import os
from typing import Any


MAX_SHOWN = 200


def shown(value: Any, limit: int = MAX_SHOWN) -> str:
    """
    Format a value for an error message.

    Args:
        value: text and paths are quoted, and their control, escape and direction characters written as `\\x1b`; bytes
            are counted; the message of an exception becomes one line without quotes; anything else is shown as `repr`
            shows it.
        limit: largest number of characters; the middle of a longer value is left out.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, BaseException):
        reason = value.strerror if isinstance(value, OSError) and value.strerror else str(value)
        # the first line says what happened; repr shows what a terminal would obey
        text = " ".join(_ends(str(reason or type(value).__name__), limit).split())
        return _cut(printable(text), limit)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return _cut(repr(_ends(value, limit)), limit)
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return _cut(printable(_ends(text, limit)), limit)


def printable(text: str) -> str:
    """Write control, escape and direction characters as `\\x1b`, and bytes that are not UTF-8 as `\\udce9`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _ends(text: str, limit: int) -> str:
    """Leave out the middle of a long text, before it is copied for each change of it."""
    return text if len(text) <= 2 * limit else text[:limit] + text[-limit:]


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    start = (limit - 3) // 2
    return text[:start] + "..." + text[len(text) - (limit - 3 - start) :]


__all__ = ["printable", "shown"]
