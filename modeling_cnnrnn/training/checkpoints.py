"""The bookkeeping of checkpoints."""

import os
import re
import shutil
from pathlib import Path


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
