"""The command `cnnrnn`, run in the process of the tests."""

import sys

import pytest

from modeling_cnnrnn.cli.main import app


def cnnrnn(*words: object) -> int:
    """`cnnrnn words...` in this process; returns its exit status, and prints the message that Python would print."""
    with pytest.raises(SystemExit) as stop:
        app([str(word) for word in words], prog_name="cnnrnn")
    if isinstance(stop.value.code, str):
        print(stop.value.code, file=sys.stderr)
        return 1
    return stop.value.code or 0
