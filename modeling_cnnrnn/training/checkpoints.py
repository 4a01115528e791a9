"""Folders that are written whole or not at all, and the bookkeeping of checkpoints."""

import json
import os
import re
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


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The whole checkpoints `checkpoint-{step}` of a folder, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(output_dir: str | os.PathLike, resume_from_checkpoint: str | None) -> Path | None:
    """
    The checkpoint to go on from.

    Args:
        resume_from_checkpoint: a checkpoint's folder, "latest" for the newest in `output_dir` (`None` if there is none
            yet, so that the same command starts a training and goes on with it), or `None`.

    Raises:
        FileNotFoundError: the folder is no checkpoint.
    """
    if resume_from_checkpoint is None:
        return None
    if resume_from_checkpoint == "latest":
        return next(reversed(checkpoints(output_dir)), None)
    path = Path(resume_from_checkpoint)
    if not (path / "trainer_state.json").is_file():
        raise FileNotFoundError(
            f"`resume_from_checkpoint` is '{path}', which holds no trainer_state.json: pass a folder checkpoint-<step>, "
            "or 'latest'."
        )
    return path


def remove_old_checkpoints(output_dir: str | os.PathLike, save_total_limit: int | None) -> None:
    """Keep the newest `save_total_limit` checkpoints of a folder."""
    if save_total_limit is not None:
        for path in checkpoints(output_dir)[: -save_total_limit or None]:
            _remove(path)


def remove_later_checkpoints(output_dir: str | os.PathLike, step: int) -> None:
    """
    Remove the checkpoints after a step, which a training that goes on from there would mix with its own, and those that
    were not finished.
    """
    for path in checkpoints(output_dir):
        if int(path.name.split("-")[1]) > step:
            _remove(path)
    for path in Path(output_dir).glob("checkpoint-*.partial"):
        shutil.rmtree(path)


def _remove(checkpoint: Path) -> None:
    # killed in between, half of a checkpoint is not to be taken for the newest one
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(checkpoint.name + ".partial")))
