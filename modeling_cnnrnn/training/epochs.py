"""The batches of each epoch, in an order that depends on the seed and the epoch alone."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, RandomSampler

from .arguments import TrainingArguments
from .optimization import in_groups, without_repeats
from .state import TrainerState


class Epochs:
    """
    Make the batches of each epoch, and tell where in them a training stands.

    Epochs are counted from the origin in [`TrainerState`]: the batch size may change while a training runs, and then a new
    epoch begins.

    Attributes:
        steps: optimizer steps of an epoch with batches of the present size.

    Args:
        dataset: images in any order; its `epoch` is set before each epoch.
        data_collator: makes a batch of examples.
        args: options of the training, which are read again where they may have changed.
        accelerator: of the training.
    """

    def __init__(
        self,
        dataset: Dataset,
        data_collator: Callable[[list], dict[str, Any]],
        args: TrainingArguments,
        accelerator: Accelerator,
    ):
        self.dataset, self.data_collator, self.args, self.accelerator = dataset, data_collator, args, accelerator
        self.order = torch.Generator()
        self._cpu_clock = 0.0
        self._make_loader()

    def _make_loader(self) -> None:
        self.batch_size = self.args.per_device_train_batch_size
        loader: DataLoader = DataLoader(
            self.dataset,
            self.batch_size,
            sampler=RandomSampler(self.dataset, generator=self.order),  # type: ignore[arg-type]
            generator=self.order,  # else each new iterator would draw from the generator of the dropout
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        self.loader = self.accelerator.prepare(loader)
        self.steps = math.ceil(len(self.loader) / self.args.gradient_accumulation_steps)

    def fit_batch_size(self) -> None:
        """Make batches of the size that the options have now."""
        if self.batch_size != self.args.per_device_train_batch_size:
            self._make_loader()

    def batches(self, state: TrainerState) -> Iterator[list[dict[str, Any]]]:
        """Yield the micro-batches of each step that is left of the epoch."""
        epoch, done = self.at(state)
        self.dataset.epoch = epoch  # type: ignore[attr-defined]
        self.order.manual_seed(self.args.seed + epoch)
        size = self.args.gradient_accumulation_steps
        batches = self.accelerator.skip_first_batches(self.loader, done * size) if done else self.loader
        yield from in_groups(without_repeats(batches, self.accelerator, self.batch_size), size)

    def at(self, state: TrainerState) -> tuple[int, int]:
        """Return the epoch of the next step, and the steps of this epoch that have been taken."""
        epochs, done = divmod(state.step - state.epoch_origin["step"], self.steps)
        return state.epoch_origin["epoch"] + epochs, done

    def progress(self, state: TrainerState) -> dict[str, float]:
        """Return how much of the images a training has seen: `epoch` and `images_seen`."""
        epochs = (state.step - state.epoch_origin["step"]) / self.steps
        images = round(epochs * len(self.dataset))  # type: ignore[arg-type]
        return {"epoch": state.epoch_origin["epoch"] + epochs, "images_seen": state.epoch_origin["images"] + images}

    def cpu_seconds(self, state: TrainerState) -> float:
        """Return the CPU time of this process, over all resumed parts of the training; call it once for each log entry."""
        before = state.cpu_seconds[-1] if state.cpu_seconds else 0.0
        used, self._cpu_clock = time.process_time() - self._cpu_clock, time.process_time()
        return round(before + used, 2)

    def resize(self, state: TrainerState) -> None:
        """Begin a new epoch with batches of the size that the options have now."""
        epoch, done = self.at(state)
        images = int(self.progress(state)["images_seen"])
        state.epoch_origin = {"step": state.step, "epoch": epoch + (done > 0), "images": images}
        self._make_loader()
