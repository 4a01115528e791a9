"""
Run pieces of code with and without this package, and report what they print or raise.

A script of its own, for a process that has imported nothing yet: it reads a JSON list of `[code, needs_package]` from
the standard input and writes a JSON list of `[output, error]`.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterable


PACKAGE = "modeling_cnnrnn"


def run(code: str, needs_package: bool) -> tuple[str | None, str | None]:
    """
    Run a piece of code in a namespace of its own.

    Args:
        needs_package: whether the code may import this package; if not, importing it fails as if it were not installed.

    Returns:
        The printed text and `None`, or `None` and the error, as its type and message.
    """
    if needs_package:
        sys.modules.pop(PACKAGE, None)
    else:
        sys.modules[PACKAGE] = None  # type: ignore[assignment]  # Python's mark of a module that cannot be imported
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(code, {})
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return output.getvalue().strip(), None


def run_all(snippets: Iterable[tuple[str, bool]]) -> list[tuple[str | None, str | None]]:
    """Run the pieces of code, those without the package first: once imported, it serves code that should do without."""
    numbered = sorted(enumerate(snippets), key=lambda item: item[1][1])
    answers = {number: run(code, needs_package) for number, (code, needs_package) in numbered}
    return [answers[number] for number in sorted(answers)]


if __name__ == "__main__":
    print(json.dumps(run_all(json.load(sys.stdin))))
