"""Convert the checkpoint of another program to a captioner of this package."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..files import whole_folder
from . import neuraltalk, neuraltalk2, pytorch_tutorial, self_critical, show_attend_tell
from .converted import Converted
from .files import open_checkpoint


# each has the `FILES` of a checkpoint with what tells them, `STAND_INS` for the classes in them, and `convert`
FORMATS: dict[str, ModuleType] = {
    "neuraltalk": neuraltalk,
    "neuraltalk2": neuraltalk2,
    "pytorch_tutorial": pytorch_tutorial,
    "self_critical": self_critical,
    "show_attend_tell": show_attend_tell,
}


def convert_checkpoint(checkpoint: Sequence[str], output_dir: str | Path, format: str | None = None) -> Path:
    """
    Write an old checkpoint as a captioner that `from_pretrained` loads.

    Args:
        checkpoint: the files of the checkpoint, in any order.
        output_dir: a folder that is new or empty.
        format: a name in `FORMATS`; `None` guesses it.

    Returns:
        The folder.

    Raises:
        ValueError: a file is refused or missing, the checkpoint is of no known format, or the folder holds something.
        OSError: a file cannot be read, or the folder not be written.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"`output_dir` '{output_dir}' holds something already: pass a new folder.")
    model, processor = read_checkpoint(checkpoint, format).make_captioner()
    with whole_folder(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return output_dir


def read_checkpoint(checkpoint: Sequence[str], format: str | None = None) -> Converted:
    """Read and convert a checkpoint, see [`convert_checkpoint`]."""
    formats = FORMATS if format is None else {format: FORMATS[format]}
    stand_ins = tuple(name for module in formats.values() for name in module.STAND_INS)
    contents = {path: open_checkpoint(path, stand_ins) for path in checkpoint}
    found = {name: _find_files(module.FILES, contents) for name, module in formats.items()}
    for name, files in found.items():
        if len(files) == len(formats[name].FILES) == len(contents):
            with torch.no_grad():
                return _convert(name, formats[name], files)
    names = ", ".join(f"'{path}'" for path in checkpoint)
    name = max(found, key=lambda name: len(found[name]))
    if not found[name]:
        raise ValueError(f"`checkpoint` {names} is of none of the known programs: {', '.join(formats)}.")
    needed = " and ".join(formats[name].FILES)
    raise ValueError(
        f"`checkpoint` {names} is of {name}, which has {needed}, and {' and '.join(found[name])} were found: pass one "
        "file of each."
    )


def _find_files(kinds: Mapping[str, Callable[[Any], bool]], contents: Mapping[str, Any]) -> dict[str, Any]:
    """Find which content is which file of a format."""
    return {kind: content for kind, is_kind in kinds.items() for content in contents.values() if is_kind(content)}


def _convert(name: str, module: ModuleType, files: Mapping[str, Any]) -> Converted:
    try:
        return module.convert(**files)
    except (KeyError, IndexError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint looks like one of {name}, but {error} is missing or of another shape: it is of a changed "
            "program, or damaged."
        ) from error
