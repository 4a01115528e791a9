"""Create the accelerator of a training with its trackers, and send them what an evaluation has to show."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, ProjectConfiguration
from PIL import Image

from ..evaluation import processes
from ..live.server import is_server_available
from ..live.tracker import LiveTracker
from .arguments import TrainingArguments
from .checkpoints import check_output_dir


def create_accelerator(args: TrainingArguments) -> Accelerator:
    """
    Create the accelerator of a training, and let only the main process log.

    Raises:
        ValueError: the output folder holds an earlier training, or FSDP is of version 1.
        FileNotFoundError: `resume_from_checkpoint` is no checkpoint.
        ImportError: a tracker is not installed.
        ValueError: the page of the training cannot be at the address that the options name.
    """
    check_output_dir(args.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir)
    output_dir = Path(args.output_dir)
    accelerator = processes.create_accelerator(
        args.mixed_precision,
        gradient_accumulation_steps=1,  # the trainer divides by the items of all micro-batches itself
        log_with=find_trackers(args),
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("FSDP is of version 1: pass `--fsdp_version 2` to `accelerate launch`.")
    for tracker in accelerator.log_with:
        if isinstance(tracker, LiveTracker):
            tracker.bind()
    return accelerator


def find_trackers(args: TrainingArguments) -> list[str | LiveTracker] | None:
    """
    List the trackers to report to.

    Args:
        args: options of the training. `report_to` is names separated by commas, "all" for those that are installed, or
            "none".

    Raises:
        ImportError: a tracker is not installed; accelerate would leave it out without a word.
        ValueError: "all" or "none" are not alone, or there are options of the page, and no page.
    """
    given = [name.strip() for name in args.report_to.split(",")]
    if len(given) > 1 and (alone := {"all", "none"} & {*given}):
        raise ValueError(
            f"`report_to` is '{args.report_to}': '{min(alone)}' stands alone, pass it or names of trackers."
        )
    installed = [str(name) for name in get_available_trackers()]
    has_page = LiveTracker.name in given or (given == ["all"] and is_server_available())
    if not has_page:
        for name in ("live_host", "live_port"):
            if (value := getattr(args, name)) != TrainingArguments.__dataclass_fields__[name].default:
                raise ValueError(f"`{name}` is {value!r}, which has no effect without --report_to live: leave it out.")
    if args.report_to == "none":
        return None
    names = installed if given == ["all"] else [name for name in given if name != LiveTracker.name]
    for name in names:
        if name not in installed:
            raise ImportError(
                f"`report_to` is '{args.report_to}', but there is no tracker '{name}' (there is {', '.join(installed)}, "
                "live): install it with pip, or pass 'none'."
            )
    return [*names, *([LiveTracker(args.output_dir, args.live_host, args.live_port)] if has_page else [])]


def log_samples(accelerator: Accelerator, sheet: str | os.PathLike, captions: Mapping[str, str], step: int) -> None:
    """
    Send captions to the trackers, and the sheet of `save_caption_sheet` to those that show pictures.

    Args:
        sheet: file of the picture.
        captions: captions by image id.
        step: optimizer steps taken.
    """
    accelerator.log({"captions": "\n".join(f"{name}: {text}  " for name, text in captions.items())}, step=step)
    log_picture(accelerator, "samples", sheet, step)


def log_picture(accelerator: Accelerator, name: str, path: str | os.PathLike, step: int) -> None:
    """Send a picture to the trackers that show pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":  # for which accelerate has no `log_images`
            import trackio

            tracker.tracker.log({name: trackio.Image(str(path))}, step=step)
        elif hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: np.asarray(Image.open(path).convert("RGB"))[None]}, step=step, **options)
