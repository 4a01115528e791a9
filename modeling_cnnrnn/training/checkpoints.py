"""Find, keep and remove the checkpoints of a training."""

import os
import re
import shutil
from pathlib import Path


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """List the complete checkpoints `checkpoint-<step>` of a folder, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(output_dir: str | os.PathLike, resume_from_checkpoint: str | None) -> Path | None:
    """
    Find the checkpoint to resume from.

    Args:
        resume_from_checkpoint: a checkpoint's folder, "latest" for the newest in `output_dir`, or `None`.

    Returns:
        The checkpoint's folder. `None` for `None`, and for "latest" where there is no checkpoint yet, so that the same
        command starts a training and resumes it.

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


def check_output_dir(
    output_dir: str | os.PathLike, resume_from_checkpoint: str | None, overwrite_output_dir: bool
) -> None:
    """
    Refuse to mix a new training with an earlier one.

    Raises:
        FileNotFoundError: `resume_from_checkpoint` is no checkpoint.
        ValueError: `output_dir` holds checkpoints that are neither resumed from nor overwritten.
    """
    find_checkpoint(output_dir, resume_from_checkpoint)
    existing = find_checkpoint(output_dir, "latest")
    if resume_from_checkpoint is None and existing is not None and not overwrite_output_dir:
        raise ValueError(
            f"`output_dir` holds {existing.name} of an earlier training: resume it with --resume_from_checkpoint latest, "
            "remove it with --overwrite_output_dir true, or pass another folder."
        )


def remove_old_checkpoints(output_dir: str | os.PathLike, save_total_limit: int | None) -> None:
    """Keep the newest `save_total_limit` checkpoints of a folder."""
    if save_total_limit is not None:
        for path in checkpoints(output_dir)[: -save_total_limit or None]:
            _remove(path)


def remove_later_checkpoints(output_dir: str | os.PathLike, step: int) -> None:
    """Remove unfinished checkpoints and those after a step, which a training from there would mix with its own."""
    for path in checkpoints(output_dir):
        if int(path.name.split("-")[1]) > step:
            _remove(path)
    for path in Path(output_dir).glob("checkpoint-*.partial"):
        shutil.rmtree(path)


def _remove(checkpoint: Path) -> None:
    # if the process is killed in between, half of a checkpoint must not be taken for the newest one
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(checkpoint.name + ".partial")))
