"""
Write files and folders whole or not at all.

If the disk is full or the process is killed, the old content is still there. New files have the permissions that the umask
gives, also those that a library has written with permissions of its own (safetensors 0.8: 0600).
"""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout


if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """
    Yield a temporary path to write a file to, which replaces the file at `path` when all went well.

    Folders that `path` needs are made. The temporary file is beside `path`, `<name>.partial`; an error removes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # of a process that was killed, perhaps with other permissions
    try:
        partial.touch()
        mode = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        partial.chmod(mode)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any, indent: int = 2) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(path: str | os.PathLike, accelerator: "Accelerator | None" = None) -> Iterator[Path]:
    """
    Yield a temporary folder to write into, which replaces the folder at `path` when all went well.

    A process that is killed while the two change places leaves the old folder as `<name>.previous`; the next call
    puts it back first.

    Args:
        accelerator: of a training on several processes, all of which write into the folder.
    """
    path = Path(path)
    partial, previous = (path.with_name(path.name + ending) for ending in (".partial", ".previous"))
    is_main = accelerator is None or accelerator.is_main_process
    wait = accelerator.wait_for_everyone if accelerator is not None else lambda: None
    if is_main:
        if previous.exists() and not path.exists():
            previous.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    wait()
    try:
        yield partial
        wait()
        if is_main:
            mode = partial.stat().st_mode & 0o666  # of the folder, which is new: what the umask gives to a file
            for file in partial.rglob("*"):
                if file.is_file():
                    file.chmod(mode)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if is_main:
        shutil.rmtree(previous, ignore_errors=True)
        if path.exists():
            path.rename(previous)
        partial.rename(path)
        shutil.rmtree(previous, ignore_errors=True)


def check_writable(folder: str | os.PathLike, make: bool = True) -> None:
    """
    Find out before the work whether files can be written to a folder.

    Args:
        folder: which need not be there yet.
        make: make the folder; or else leave it to the work, which a mistake may still end.

    Raises:
        OSError: they cannot.
    """
    place = Path(folder)
    try:
        if make:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place = next(path for path in (place, *place.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=str(place)) as file:  # of no name: the processes of a training check at once
            file.write(b"test")
    except OSError as error:
        raise OSError(
            f"Nothing can be written to '{folder}' ({error.strerror or error}): pass another folder."
        ) from error


def check_file_writable(path: str | os.PathLike) -> None:
    """
    Make the folder of a file, and find out before the work whether the file can be written.

    Raises:
        OSError: it cannot.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"'{path}' is a folder: pass the name of a file.")
    check_writable(Path(path).parent)


def link_files(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copy the files of a folder into a new one, as hard links where the disk has them: they take no further space."""
    for path in Path(source).rglob("*"):
        if path.is_file():
            copy = Path(target) / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)
            except OSError:
                shutil.copyfile(path, copy)


def copy_files(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copy the files of a folder into another, each of them whole or not at all; other files there stay."""
    for path in Path(source).rglob("*"):
        if path.is_file():
            with atomic_path(Path(target) / path.relative_to(source)) as partial:
                shutil.copyfile(path, partial)


class FolderLock:
    """
    Hold a folder for one process within this context; the lock ends with the process, however that ends.

    Args:
        folder: the folder, which is made.
        work: what the process does, such as "training"; other work may go on in the folder.

    Raises:
        ValueError: another process holds it.
    """

    def __init__(self, folder: str | os.PathLike, work: str):
        self.folder, self.work = Path(folder), work
        self.lock = FileLock(self.folder / f".{work}.lock", timeout=0)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"Another {self.work} writes to '{self.folder}': wait for it, or pass another --output_dir."
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()
