"""Files and folders that are written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator


@contextmanager
def whole_folder(path: str | os.PathLike, accelerator: Accelerator | None = None) -> Iterator[Path]:
    """
    A folder to write into, which takes the place of `path` when all went well.

    If the disk is full or the process is killed, what stood at `path` before still stands there.

    Args:
        accelerator: of a training on several processes, all of which write into the folder.
    """
    path = Path(path)
    partial, previous = (path.with_name(path.name + ending) for ending in (".partial", ".previous"))
    is_main = accelerator is None or accelerator.is_main_process
    wait = accelerator.wait_for_everyone if accelerator is not None else lambda: None
    if is_main:
        if previous.exists() and not path.exists():  # killed between the two renames below
            previous.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    wait()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    wait()
    if is_main:
        shutil.rmtree(previous, ignore_errors=True)
        if path.exists():
            path.rename(previous)
        partial.rename(path)
        shutil.rmtree(previous, ignore_errors=True)


def copy_files(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copy the files of a folder into another, each of them whole or not at all; what else is there stays."""
    for path in Path(source).rglob("*"):
        copy = Path(target) / path.relative_to(source)
        if path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_name(copy.name + ".partial")
            shutil.copy2(path, partial)
            os.replace(partial, copy)


def write_json(path: str | os.PathLike, content) -> None:
    """Write a JSON file whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
