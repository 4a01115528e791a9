"""Where a training stands."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_json
from ..models.error_messages_cnnrnn import shown


# options that may be others when a training is resumed: what is trained stays the same
FREE_OPTIONS = {
    *(
        "output_dir",
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "save_on_interrupt",
        "save_steps",
        "save_total_limit",
    ),
    *(
        "logging_steps",
        "report_to",
        "live_host",
        "live_port",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
        "hub_revision",
    ),
    *("per_device_eval_batch_size", "dataloader_num_workers", "preload_images", "features_cache_dir"),
}


@dataclass
class TrainerState:
    """
    Where a training stands: the content of `trainer_state.json`.

    Attributes:
        step: optimizer steps taken.
        stage: name of the stage of the last step.
        best: scores of the best evaluation, by the trainer's `metric_for_best_model`.
        steps: a row for each log entry: step, loss, epoch, learning rates, speeds.
        evaluations: a row for each evaluation: step and scores.
        broken_images: reason why an image could not be read, by image id.
        seconds: time that the training took, over all resumed parts.
        energy_kwh: energy that the machine used in that time; `None` where codecarbon is not installed.
        options: options that the training was started with, by name.
        cpu_seconds: CPU time of the main process at each row of `steps`, over all resumed parts.
        changes: what was changed on the page of the training: step, name, the value before, and the new one.
        network: the configuration of the network, where it was chosen on the page.
        epoch_origin: step and number of an epoch, and the images seen before it; the others are counted from there.
    """

    step: int = 0
    stage: str = ""
    best: dict[str, float] | None = None
    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    broken_images: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    energy_kwh: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    cpu_seconds: list[float] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    network: dict[str, Any] | None = None
    epoch_origin: dict[str, int] = field(default_factory=lambda: {"step": 0, "epoch": 0, "images": 0})

    def save_to_json(self, path: str | os.PathLike) -> None:
        """Write the state whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load_from_json(cls, path: str | os.PathLike) -> "TrainerState":
        """
        Read what `save_to_json` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({shown(error)}): resume from another checkpoint.") from error

    def changed_options(self, given: Mapping[str, Any]) -> list[str]:
        """Name the options that are not those of the checkpoint, but for those that do not change what is trained."""
        pairs = [
            (name, self.options.get(name, value), value) for name, value in given.items() if name not in FREE_OPTIONS
        ]
        return [f"{name} {before!r} -> {value!r}" for name, before, value in pairs if before != value]
