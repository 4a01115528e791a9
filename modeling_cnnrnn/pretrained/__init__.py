"""
The captioners that come with the package: a folder each, with its card and a licence of its own.

Wherever this package loads a captioner, it takes the name of such a folder too. transformers' Auto classes take the folder:

    from modeling_cnnrnn.pretrained import FOLDERS

    AutoModelForImageTextToText.from_pretrained(FOLDERS["flickr8k-mobilenet"])
"""

from pathlib import Path


# what describes photographs where no captioner is named
DEFAULT_CAPTIONER = "flickr8k-mobilenet"
FOLDERS = {name: Path(__file__).parent / name for name in (DEFAULT_CAPTIONER,)}
