"""Find, keep and remove the checkpoints of a training."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from accelerate.utils import load as load_weights_only
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import BaseImageProcessor, ProcessorMixin

from ..files import write_json
from ..models.error_messages_cnnrnn import shown
from .sharding import own_parts


SCHEDULE_FILE = "scheduler.json"


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


def check_checkpoint(
    checkpoint: Path,
    model: nn.Module,
    processing_class: ProcessorMixin | BaseImageProcessor | None,
    process_index: int = 0,
) -> None:
    """
    Compare a checkpoint with the model that is to be trained from it, and look for damage. Nothing is unpickled.

    Raises:
        ValueError: a file is damaged or foreign, or weights or vocabulary are of another model.
    """
    if foreign := sorted(path.name for path in checkpoint.glob("custom_checkpoint_*.pkl")):
        raise ValueError(
            f"{checkpoint} holds {foreign[0]}, which no training here writes and which may hold code: remove it."
        )
    for path in sorted(checkpoint.glob("*.bin")):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is damaged: resume from another checkpoint.")
    random_states = checkpoint / f"random_states_{process_index}.pkl"
    try:
        load_weights_only(random_states)  # accelerate goes on without a word where it cannot be read
    except Exception as error:
        raise ValueError(f"{random_states} cannot be read ({shown(error)}): resume from another checkpoint.") from error
    weights = checkpoint / "model.safetensors"
    if weights.is_file():
        _check_shapes(weights, model)
    best, tokenizer = checkpoint / "best" / "tokenizer.json", getattr(processing_class, "tokenizer", None)
    if best.is_file() and tokenizer is not None:
        vocabulary = json.loads(best.read_text(encoding="utf-8")).get("model", {}).get("vocab")
        if isinstance(vocabulary, dict) and not vocabulary.items() <= tokenizer.get_vocab().items():
            raise ValueError(
                f"{checkpoint} was trained with another vocabulary: resume with the captions and the options that the "
                "training was started with."
            )


def _check_shapes(weights: Path, model: nn.Module) -> None:
    """Compare the names and sizes in a safetensors file with those of a model."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        with safe_open(weights, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged ({shown(error)}): resume from another checkpoint.") from error
    for name, shape in found.items():
        if expected.get(name) != shape:
            here = f"{expected[name]}" if name in expected else "none"
            raise ValueError(
                f"{weights} has `{name}` of size {shape}, and the model to train has {here}: resume with the sizes and the "
                "captions that the training was started with."
            )


def save_schedule(folder: Path, scheduler: LRScheduler) -> None:
    """Write the state of a learning-rate schedule as JSON."""
    state = {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}  # functions
    write_json(folder / SCHEDULE_FILE, state)


def load_schedule(folder: Path, scheduler: LRScheduler) -> None:
    """
    Read what `save_schedule` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / SCHEDULE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        own = scheduler.state_dict()
        scheduler.load_state_dict({**own, **state})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({shown(error)}): resume from another checkpoint.") from error


def checkpoint_names(output_dir: str | os.PathLike) -> list[str]:
    """Name the checkpoints of a training, and after them those that were set aside, each oldest first."""
    folders = [Path(output_dir), *_earlier(output_dir)]
    return [path.relative_to(output_dir).as_posix() for folder in folders for path in checkpoints(folder)]


def set_aside(output_dir: str | os.PathLike, step: int = -1, with_best: bool = True) -> None:
    """
    Move the checkpoints after a step to a new folder `earlier-<number>`, before a training starts again from there.

    Args:
        with_best: whether to move the best model too.
    """
    later = [path for path in checkpoints(output_dir) if int(path.name.split("-")[1]) > step]
    best = Path(output_dir) / "best"
    later += [best] if with_best and best.is_dir() else []
    if later:
        folder = Path(output_dir) / f"earlier-{len(_earlier(output_dir)) + 1}"
        folder.mkdir()
        for path in later:
            path.rename(folder / path.name)


def _earlier(output_dir: str | os.PathLike) -> list[Path]:
    found = [path for path in Path(output_dir).glob("earlier-*") if re.fullmatch(r"earlier-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


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


def check_weights(model: nn.Module, output_dir: Path, step: int) -> None:
    """
    Refuse to save or to evaluate a model that has diverged.

    Args:
        output_dir: folder of the training, with its checkpoints.
        step: optimizer steps taken.

    Raises:
        ValueError: a weight is not finite; the sentence names the last good checkpoint.
    """
    if all(bool(tensor.isfinite().all()) for tensor in own_parts(model.parameters())):
        return
    good = checkpoints(output_dir)
    remedy = f"the last good checkpoint is {good[-1]}; " if good else ""
    raise ValueError(
        f"A weight is not finite after step {step}, and nothing of it is saved: {remedy}pass a smaller --learning_rate."
    )
