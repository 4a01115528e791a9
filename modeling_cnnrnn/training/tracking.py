"""Experiment trackers: those that are installed, and the sentences of an evaluation with their pictures."""

import os
from collections.abc import Mapping

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from PIL import Image


def find_trackers(report_to: str) -> list[str] | None:
    """
    What `report_to` means: names separated by commas, "all" that is installed, or "none".

    Raises:
        ImportError: a tracker that is not installed, which accelerate would leave out without a word.
    """
    if report_to == "none":
        return None
    installed = [str(name) for name in get_available_trackers()]
    if report_to == "all":
        return installed
    names = [name.strip() for name in report_to.split(",")]
    for name in names:
        if name not in installed:
            raise ImportError(
                f"`report_to` is '{report_to}', but there is no tracker '{name}' (there is {', '.join(installed)}): "
                "install it with pip, or pass 'none'."
            )
    return names


def log_samples(accelerator: Accelerator, sheet: str | os.PathLike, captions: Mapping[str, str], step: int) -> None:
    """
    Send sentences to the trackers, and to those that show pictures the sheet of `save_caption_sheet`.

    Args:
        captions: sentences by image id.
    """
    accelerator.log({"captions": "\n".join(f"{name}: {text}  " for name, text in captions.items())}, step=step)
    for tracker in accelerator.trackers:
        if tracker.name == "trackio":  # for which accelerate has no `log_images`
            import trackio

            tracker.tracker.log({"samples": trackio.Image(str(sheet))}, step=step)
        elif hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": np.asarray(Image.open(sheet).convert("RGB"))[None]}, step=step, **options)
