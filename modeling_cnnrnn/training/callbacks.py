"""Hooks into a training, for those who watch it: a page, a notebook, a logger."""

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..models.error_messages_cnnrnn import shown


if TYPE_CHECKING:
    from .trainer import Trainer


logger = logging.getLogger(__name__)


class TrainerCallback:
    """
    What [`Trainer`] calls as it goes on, on the main process; the names are those of transformers' callbacks.

    A callback may draw random numbers, generate, and set the model to evaluation mode: [`Trainer`] restores the random
    state and the mode, so that a training that is watched gives the same weights, bit for bit, as one that is not. It
    must not change weights, gradients or the state, nor call what all processes must call together.
    """

    def attends(self, hook: str) -> bool:
        """Tell whether a hook has anything to do now; where it has not, the training loses no time to it."""
        return True

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Before the first step of a new or a resumed training."""

    def on_stage_begin(self, trainer: "Trainer") -> None:
        """When `trainer.stage` has begun: what it trains is set, and the model is wrapped."""

    def on_step_end(self, trainer: "Trainer", loss: torch.Tensor) -> None:
        """After each optimizer step; `loss` is that of the main process, not yet read from its device."""

    def on_log(self, trainer: "Trainer", logs: Mapping[str, float]) -> None:
        """After a row was added to `trainer.state.steps`."""

    def on_evaluate(self, trainer: "Trainer", metrics: Mapping[str, float]) -> None:
        """After an evaluation, while the model still has the averaged weights that were evaluated."""

    def on_save(self, trainer: "Trainer", checkpoint: Path) -> None:
        """After a checkpoint was written."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """When the output folder holds the trained model."""


@contextmanager
def side_work(failure: str) -> Iterator[None]:
    """Make a warning of any error in this context: pictures, pages and trackers must not end a training."""
    try:
        yield
    except Exception as error:
        logger.warning("%s, the training goes on: %s", failure, shown(error))


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore the random state of Python, numpy and torch at the end of this context."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
