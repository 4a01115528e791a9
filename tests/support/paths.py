"""Where things are in the repository."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "modeling_cnnrnn"
EXAMPLES = ROOT / "examples"
HUB_FILES = sorted((PACKAGE / "models").glob("*_cnnrnn.py"))
# a captioner's tokenizer is in tokenizer.json: what builds it stays at home
TRAVELLING = [path for path in HUB_FILES if path.name != "tokenization_cnnrnn.py"]
