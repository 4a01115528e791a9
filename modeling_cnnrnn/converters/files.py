"""Open the files of an old checkpoint, whichever program wrote them."""

import json
import zipfile
from pathlib import Path
from typing import Any

from .torch7_files import FIRST_BYTES, load_torch7
from .torch_files import MAGIC_BYTES, TORCH_CLASSES, load_torch
from .unpickling import unpickle


def open_checkpoint(path: str, stand_ins: tuple[str, ...]) -> Any:
    """
    Read a file of a checkpoint: a file of torch or of Torch7, a pickle or JSON, told apart by how it begins.

    Args:
        path: the file.
        stand_ins: names of classes whose objects may be in it, beside the layers and optimizers of torch.

    Raises:
        ValueError: it is none of these, is damaged, or asks for a class or a function that no checkpoint needs.
        OSError: it cannot be read.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"`checkpoint` '{path}' is a folder: pass the files of one checkpoint in it.")
    with open(path, "rb") as file:
        start = file.read(64)
    if zipfile.is_zipfile(path) or MAGIC_BYTES in start:
        return load_torch(path, (*TORCH_CLASSES, *stand_ins))
    if start.startswith(FIRST_BYTES):
        return load_torch7(path)
    if start.lstrip()[:1] == b"{":
        with open(path, encoding="utf-8") as text:
            try:
                return json.load(text)
            except ValueError as error:
                raise ValueError(f"'{path}' is not JSON: {error}.") from error
    return unpickle(path, stand_ins)
