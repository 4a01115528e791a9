"""Code of a card runs in a process of its own, with and without the package."""

import json
import subprocess
import sys

import pytest

from modeling_cnnrnn.hub import run_snippets


@pytest.fixture
def run(tmp_path):
    """`run(snippets)`, where the package that can be imported is a file of one line."""
    (tmp_path / "modeling_cnnrnn.py").write_text("name = 'installed'\n")

    def run(snippets: list) -> list:
        completed = subprocess.run(
            [sys.executable, "-P", run_snippets.__file__],
            env={"PYTHONPATH": str(tmp_path)},
            input=json.dumps(snippets),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(completed.stdout)

    return run


def test_code_is_run_with_and_without_the_package(run):
    code = "import modeling_cnnrnn; print(modeling_cnnrnn.name)"
    with_package, without, again = run([[code, True], [code, False], [code, True]])
    assert with_package == again == ["installed", None]
    assert without[0] is None
    assert without[1].startswith("ModuleNotFoundError: import of modeling_cnnrnn halted")


def test_code_sees_neither_the_names_nor_the_errors_of_other_code(run):
    answers = run([["x = 1; print('first\\nsecond')", False], ["print(x)", False], ["print(3)", False]])
    assert answers == [["first\nsecond", None], [None, "NameError: name 'x' is not defined"], ["3", None]]


def test_code_without_the_package_does_not_know_that_other_code_had_it(run):
    register = "import json, modeling_cnnrnn; json.registered = True; print(1)"
    ask = "import json; print(hasattr(json, 'registered'))"
    assert run([[register, True], [ask, False]]) == [["1", None], ["False", None]]
