"""The files that travel to the Hub with a captioner stand alone: what they import is there for everybody."""

import ast
import sys
from pathlib import Path

import pytest
from support.paths import HUB_FILES
from transformers.dynamic_module_utils import get_imports, get_relative_imports


# what everybody has who has transformers and torch
AVAILABLE = {
    "huggingface_hub",
    "numpy",
    "PIL",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    *sys.stdlib_module_names,
}


def forbidden_imports(path: Path) -> list[str]:
    """What would break saving or loading of a file as remote code (see DESIGN.md)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    relative, wrong = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wrong += [alias.name for alias in node.names if alias.name.partition(".")[0] == "modeling_cnnrnn"]
        if not isinstance(node, ast.ImportFrom):
            continue
        module = node.module or ""
        if node.level == 0:
            wrong += [module] if module.partition(".")[0] == "modeling_cnnrnn" else []
        elif node.level > 1 or not (path.parent / f"{module}.py").is_file() or not module.endswith("_cnnrnn"):
            wrong.append("." * node.level + module)
        else:
            relative.add(module)
    # transformers finds imports by reading lines, those of docstrings too
    wrong += set(get_relative_imports(path)) - relative
    return wrong + [name for name in get_imports(path) if name not in AVAILABLE]


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_a_hub_file_imports_only_what_can_be_loaded(path):
    assert forbidden_imports(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "from . import a_cnnrnn",
        "from .. import a_cnnrnn",
        "from .data.tokenizer import build_tokenizer",
        "from .data import tokenizer",
        "from .helper import help",
        "from .b_cnnrnn import Absent",
        "import modeling_cnnrnn",
        "from modeling_cnnrnn.a_cnnrnn import A",
        "import pandas",
        '"""\nfrom .nothere import z\n"""',
    ],
)
def test_forbidden_imports_are_found(line, tmp_path):
    for name in ("a_cnnrnn", "helper"):
        (tmp_path / f"{name}.py").touch()
    path = tmp_path / "code_cnnrnn.py"
    path.write_text("import torch\nfrom .a_cnnrnn import A\n")
    assert forbidden_imports(path) == []
    path.write_text(path.read_text() + line + "\n")
    assert forbidden_imports(path) != []
