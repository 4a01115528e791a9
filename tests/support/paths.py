"""Where things are in the repository."""

import re
from pathlib import Path


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "modeling_cnnrnn"
EXAMPLES = ROOT / "examples"
HUB_FILES = sorted((PACKAGE / "models").glob("*_cnnrnn.py"))


def with_imports(*names: str) -> list[Path]:
    """The files of `models/` that those named import, and they themselves: a repository of these classes holds them."""
    found: list[Path] = []
    for name in names:
        path = PACKAGE / "models" / name
        imported = re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
        found += [path, *with_imports(*(f"{module}.py" for module in imported))]
    return sorted({*found})


# a captioner's tokenizer is in tokenizer.json: what builds it stays at home
TRAVELLING = with_imports("modeling_cnnrnn.py", "processing_cnnrnn.py", "pipeline_cnnrnn.py")
