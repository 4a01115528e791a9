"""What a training tells of itself while it runs: its progress bar, the rows of its log, its trackers, its curves and its results."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..evaluation.provenance import peak_memory, provenance
from ..files import write_json
from .callbacks import side_work
from .curves import save_training_curves


if TYPE_CHECKING:
    from .trainer import Trainer


logger = logging.getLogger(__name__)


class TrainingLog:
    """
    Sum up the steps of a training to rows, and report rows and evaluations.

    All processes sum up, the main process reports. Rows go to `state.steps`, to the progress bar and to the trackers.

    Args:
        trainer: the training.
    """

    def __init__(self, trainer: "Trainer"):
        self.trainer = trainer
        self._clear()

    def _clear(self) -> None:
        self._counts: dict[str, torch.Tensor] = {}
        self._values: dict[str, list[float]] = defaultdict(list)
        self._seconds = 0.0

    def begin(self, options: Mapping[str, Any]) -> None:
        """Show the progress bar, and send the options to the trackers if nothing was sent before."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        self._clear()
        if accelerator.log_with and not accelerator.trackers:
            given = {name: value for name, value in options.items() if value is not None}
            accelerator.init_trackers(trainer.project_name, given)
        self.bar = tqdm(
            total=trainer.num_steps,
            initial=trainer.state.step,
            desc="Training",
            unit="step",
            disable=not accelerator.is_main_process,
        )

    def start_clock(self) -> None:
        """Let the time of the next step begin now."""
        self._clock = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Leave a pause out of the time of the present step."""
        self._clock += seconds

    def add_counts(self, counts: Mapping[str, torch.Tensor]) -> None:
        """Add what the batches of the present step hold, of all processes; a row has the speed of each."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + count

    def add_values(self, values: Mapping[str, float]) -> None:
        """Add values of this process; a row has the mean of each over steps and processes."""
        for name, value in values.items():
            self._values[name].append(value)

    def end_step(self) -> None:
        """Count the present step and its time."""
        self.bar.update()
        self._seconds += time.perf_counter() - self._clock

    def add_row(self, loss: float) -> dict[str, float]:
        """
        Report the steps since the last row.

        Args:
            loss: mean of the last step over all processes.

        Returns:
            the row: step, loss, epoch, learning rates, values and speeds.
        """
        trainer, accelerator = self.trainer, self.trainer.accelerator
        state, epochs = trainer.state, trainer.epochs
        state.cpu_seconds.append(epochs.cpu_seconds(state))
        row = {"step": state.step, "loss": loss, **epochs.progress(state), **trainer.log_values()}
        for name, values in self._values.items():
            mean = torch.tensor(values, device=accelerator.device).mean()
            row[name] = accelerator.reduce(mean, reduction="mean").item()
        speeds = {f"{name}_per_second": round(count.item() / self._seconds, 1) for name, count in self._counts.items()}
        row |= speeds
        state.steps.append(row)
        speed = dict(list(speeds.items())[-1:])
        self.bar.set_postfix(loss=f"{loss:.3f}", epoch=(state.step - 1) // trainer.steps_per_epoch, **speed)
        self._track("train", row | {"cpu_seconds": state.cpu_seconds[-1]})
        self._clear()
        return row

    def show_evaluation(self) -> None:
        """Draw the curves with the last evaluation, and send it to the trackers; only the main process calls this."""
        trainer, state = self.trainer, self.trainer.state
        with side_work("The curves could not be drawn"):
            path = trainer.output_dir / "training_curves.png"
            save_training_curves(path, state.steps, state.evaluations, trainer.curves)
        self._track("eval", state.evaluations[-1])

    def end(self) -> None:
        """Write `training_results.json`, and say what was left out and where everything is."""
        self.bar.close()
        trainer, accelerator, state = self.trainer, self.trainer.accelerator, self.trainer.state
        if state.broken_images:
            logger.warning("%d images could not be read and were left out:", len(state.broken_images))
            for image_id, reason in sorted(state.broken_images.items()):
                logger.warning("    %s: %s", image_id, reason)
        if accelerator.is_main_process:
            results: dict[str, Any] = {"best": state.best, "evaluations": state.evaluations, "seconds": state.seconds}
            results |= {"energy_kwh": state.energy_kwh, **peak_memory(accelerator), **provenance(accelerator)}
            results |= {"broken_images": state.broken_images, "changes": state.changes, **trainer.options}
            results |= {"network": state.network} if state.network is not None else {}
            write_json(trainer.output_dir / "training_results.json", results)
        metric = trainer.metric_for_best_model
        best = state.best[metric] if state.best is not None else math.nan
        logger.info("The model with the best %s (%.4f) is in %s", metric, best, trainer.output_dir)
        logger.info("Curves: %s", trainer.output_dir / "training_curves.png")

    def _track(self, split: str, row: Mapping[str, float]) -> None:
        accelerator = self.trainer.accelerator
        if accelerator.log_with:
            with side_work("A tracker failed"):
                values = {f"{split}/{name}": value for name, value in row.items() if name != "step"}
                accelerator.log(values, step=self.trainer.state.step)
