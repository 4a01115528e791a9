"""The scripts of `examples/`, as tests run them."""

import runpy
import sys

from support.paths import EXAMPLES


def command(script: str, *arguments: str, **options) -> list[str]:
    """`examples/{script}.py arguments --option value ...`; of a list, every item is a value."""
    words = [str(EXAMPLES / f"{script}.py"), *arguments]
    for name, value in options.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def run(script: str, *arguments: str, **options) -> None:
    """`python examples/{script}.py arguments --option value ...`, in this process."""
    before, sys.argv = sys.argv, command(script, *arguments, **options)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before
