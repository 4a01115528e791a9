"""
The engine of all trainings: optimizer steps in stages, evaluations, checkpoints from which a training resumes exactly.

What a model is trained for is in the methods that a subclass overrides; see [`Trainer`].
"""

import json
import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object, set_seed
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedModel, ProcessorMixin

from ..evaluation.provenance import EnergyMeter
from ..files import FolderLock, copy_files, link_files, whole_folder
from ..live.views import View
from ..models.error_messages_cnnrnn import shown
from ..models.loss_cnnrnn import IGNORE_INDEX
from .arguments import TrainingArguments
from .averaging import AveragedWeights
from .callbacks import TrainerCallback, random_state_kept, side_work
from .checkpoints import (
    check_checkpoint,
    check_weights,
    find_checkpoint,
    load_schedule,
    remove_later_checkpoints,
    remove_old_checkpoints,
    save_schedule,
)
from .epochs import Epochs
from .interruption import StopSignals
from .live_session import live_session, restore_changes
from .log import TrainingLog
from .networks import Networks
from .optimization import decay_groups, two_stage_scheduler
from .sharding import unsharded, whole_weights
from .state import TrainerState


logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
AVERAGE_FILE = "averaged_weights.safetensors"


class Trainer:
    """
    Train a model with accelerate, on one process or several, in stages.

    A training that was stopped resumes from its last checkpoint bit by bit. Several processes take the steps that one
    process takes with their batches together: the loss is divided by the items of all of them. After each evaluation the
    model is kept if it is the best so far; the output folder ends up with the best one.

    A subclass overrides what its model is trained for:
    - `evaluate`: the scores of the validation data, of which `metric_for_best_model` (larger is better) decides;
    - `prepare_inputs`: a batch of `data_collator` as keyword arguments of the model;
    - `count_items`: what a batch holds; the loss is divided by the first of these numbers;
    - `compute_loss`: the loss of a batch;
    - `create_optimizer`, `create_scheduler`: AdamW with one schedule by default;
    - `stage_at`, `begin_stage`, `end_stage`: the stages and what each trains; one stage by default;
    - `log_values`: further columns of the log, such as learning rates; `record` adds to the next log entry;
    - `curves`: the panels of `training_curves.png`;
    - `make_view`, `evaluation_details`: what the page of `--report_to live` shows besides the curves.

    Args:
        model: the model, not wrapped.
        args: options of the training.
        accelerator: as [`~modeling_cnnrnn.training.tracking.create_accelerator`] makes it.
        train_dataset: images in any order; its `epoch` is set before each epoch.
        data_collator: makes a batch of examples: tensors, among them `labels`, and if it likes `rows` and `broken` as
            [`~modeling_cnnrnn.data.batching.collate_captions`] does.
        processing_class: processor, tokenizer or image processor that is saved beside the model.
        callbacks: watch the training.
        options: options by group, written into `training_results.json` and to the trackers.
        networks: makes other networks, for those who start again with one on the page of `--report_to live`.
    """

    project_name = "training"  # of the trackers
    metric_for_best_model = "score"
    curves: Mapping[str, Sequence[str]] = {"loss": ["loss"], "score": ["score"]}

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        accelerator: Accelerator,
        train_dataset: Dataset,
        data_collator: Callable[[list], dict[str, Any]],
        processing_class: ProcessorMixin | BaseImageProcessor | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        networks: Networks | None = None,
    ):
        self.model, self.args, self.accelerator = model, args, accelerator
        self.train_dataset, self.processing_class, self.networks = train_dataset, processing_class, networks
        self.callbacks, self.options = list(callbacks), dict(options or {"training": asdict(args)})
        self.output_dir = Path(args.output_dir)
        self.epochs = Epochs(train_dataset, data_collator, args, accelerator)
        self.steps_per_epoch = self.epochs.steps  # as planned; the batch size may be changed while it runs
        self.num_steps = args.max_train_steps or self.steps_per_epoch * args.num_train_epochs
        self.eval_steps = max(1, round(self.steps_per_epoch * args.eval_epochs))
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        self.state = TrainerState()
        self.stage: Hashable = None
        self.network: dict[str, Any] | None = None  # as the options name it
        self._asked = False
        self.optimizer: Any = None  # what `create_optimizer` returns, then accelerate's wrapper around it
        self.log = TrainingLog(self)
        self.signals = StopSignals(save_on_interrupt=args.save_on_interrupt)
        self.live = live_session(self)
        self.callbacks.append(self.live)

    # what a subclass overrides

    def evaluate(self) -> dict[str, Any]:
        """Score the validation data, on all processes; the model has the averaged weights."""
        raise NotImplementedError(f"{type(self).__name__} has no `evaluate`: override it to return scores by name.")

    def prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Turn a batch of the loader into the inputs of `compute_loss`; images that cannot be read are noted."""
        batch.pop("rows", None)
        for row, reason in batch.pop("broken", ()):
            self.state.broken_images[self.train_dataset.image_ids[row]] = reason  # type: ignore[attr-defined]
        return batch

    def count_items(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Count what a batch holds, by name. The loss is divided by the first number; the log has the speed of each."""
        return {"items": (batch["labels"] != IGNORE_INDEX).sum()}

    def compute_loss(self, model: torch.nn.Module, batch: dict[str, Any], num_items: torch.Tensor) -> torch.Tensor:
        """Compute the sum of the losses of a batch, divided by `num_items`; `model` is wrapped for several processes."""
        return model(**batch, num_items_in_batch=num_items).loss

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Create the optimizer, of what is trained in any of the stages."""
        return torch.optim.AdamW(decay_groups(self.model, self.args.weight_decay), self.args.learning_rate)

    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Create the learning-rate schedule; it is stepped after each step of the optimizer."""
        args = self.args
        return two_stage_scheduler(args.lr_scheduler_type, optimizer, args.warmup_ratio, self.num_steps)

    def create_averaged_weights(self) -> AveragedWeights:
        """Create the moving average of the weights."""
        return AveragedWeights(self.model, self.args.ema_decay)

    def stage_at(self, step: int) -> Hashable:
        """Return the stage of a step, whose `str` is its name. It may depend on the step alone."""
        return "training"

    def begin_stage(self) -> bool:
        """Set what `self.stage` trains; return whether the loss may leave some of these weights without a gradient."""
        return False

    def end_stage(self, next_stage: Hashable) -> None:
        """Finish `self.stage`, after its last step and before this step is evaluated and saved."""

    def draw(self) -> None:
        """Show the last evaluation, on the main process, when its checkpoint is saved; a failure is a warning."""

    def log_values(self) -> dict[str, float]:
        """Return further columns of a log entry."""
        return {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    def make_view(self) -> View:
        """Make the view of the model for the page of the training."""
        return View(self.model, self.accelerator)

    def evaluation_details(self) -> dict[str, Any]:
        """Return what the page shows of the last evaluation besides its scores, as JSON has it."""
        return {}

    # the training

    def train(self) -> TrainerState:
        """
        Train up to the last step, from the checkpoint that the options name or from the start.

        Raises:
            ValueError: the loss or a weight is not finite; the checkpoint is not one of this training; another training
                writes to the output folder.
            SystemExit: a signal asked to stop, and a checkpoint was saved.
        """
        lock = FolderLock(self.output_dir, "training") if self.accelerator.is_main_process else nullcontext()
        with lock, self.signals:
            try:
                return self._train()
            except BaseException as error:
                self.live.end(error)
                raise

    def _train(self) -> TrainerState:
        self.begin(find_checkpoint(self.output_dir, self.args.resume_from_checkpoint))
        while self.state.step < self.num_steps:
            if self.stage_at(self.state.step) != self.stage:
                self.enter_stage()
                self._call("on_stage_begin")
            self.log.start_clock()
            for batches in self.epochs.batches(self.state):
                loss = self.train_step(batches)
                next_stage = self.stage_at(self.state.step)
                if next_stage != self.stage:
                    self.end_stage(next_stage)
                breaks = self.live.ends_epoch()
                self._end_step(loss)
                if self.state.step == self.num_steps or next_stage != self.stage or breaks:
                    break
            if self.live.restart is not None:
                self.live.start_again(self.live.restart)
        self._end()
        return self.state

    def train_step(self, batches: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Take one optimizer step on micro-batches; returns a loss whose mean over the processes is that of the step."""
        inputs = [self.prepare_inputs(batch) for batch in batches]
        counts = self._sum_counts(inputs)
        if self._asked:
            self.live.obey()
        # the loss is a sum over the items of all processes, and their gradients are averaged
        num_items = next(iter(counts.values())).clamp(min=1) / self.accelerator.num_processes
        loss = torch.zeros((), device=self.accelerator.device)
        for index, batch in enumerate(inputs):
            is_last = index == len(inputs) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                share = self.compute_loss(self.wrapped, batch, num_items)
                self.accelerator.backward(share)
            loss += share.detach()
        self._loss = loss
        self._clip_gradients()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.averaged.update()
        self.state.step += 1
        return loss

    def record(self, **values: float) -> None:
        """Add values to the next log entry, which has the mean of each over steps and processes."""
        self.log.add_values(values)

    def enter_stage(self) -> None:
        """Set what the stage of the next step trains, and wrap the model again: a wrapper sees that only once."""
        self.stage = self.stage_at(self.state.step)
        self.state.stage = str(self.stage)
        finds_unused = self.begin_stage()
        logger.info(
            "Stage: %s. %.1f million parameters, of which %.1f million are trained.",
            self.stage,
            sum(p.numel() for p in self.model.parameters()) / 1e6,
            sum(p.numel() for p in self.model.parameters() if p.requires_grad) / 1e6,
        )
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=finds_unused)
        self.accelerator.free_memory()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.wrapped.train()

    def save_checkpoint(self) -> None:
        """Write all that resuming needs to `checkpoint-<step>`, and remove the oldest checkpoints."""
        check_weights(self.model, self.output_dir, self.state.step)
        self.state.seconds = time.perf_counter() - self._started
        if self.energy is not None and (used := self.energy.read()) is not None:
            self.state.energy_kwh = (self.state.energy_kwh or 0.0) + used
        for found in gather_object([self.state.broken_images]):  # each process opens images of its own
            self.state.broken_images |= found
        path = self.output_dir / f"checkpoint-{self.state.step}"
        with whole_folder(path, self.accelerator) as folder:
            self.accelerator.save_state(str(folder))
            self.averaged.save(folder / AVERAGE_FILE, self.accelerator.is_main_process)
            if self.accelerator.is_main_process:
                save_schedule(folder, self.scheduler)
                self.state.save_to_json(folder / STATE_FILE)
                link_files(self.output_dir / "best", folder / "best")  # which a folder resumed elsewhere has too
        if self.accelerator.is_main_process:
            remove_old_checkpoints(self.output_dir, self.args.save_total_limit)
        self._call("on_save", path)

    def load_checkpoint(self, checkpoint: Path) -> None:
        """
        Read the weights, the optimizer, the schedule and the random state of a checkpoint.

        Raises:
            ValueError: a file is damaged or foreign.
        """
        try:
            self.accelerator.load_state(str(checkpoint))  # unpickles nothing but weights
            self.averaged.load(checkpoint / AVERAGE_FILE)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{checkpoint} cannot be loaded ({shown(error)}): resume from another checkpoint."
            ) from error
        load_schedule(checkpoint, self.scheduler)
        if self.accelerator.is_main_process and (checkpoint / "best").is_dir():
            with whole_folder(self.output_dir / "best") as folder:
                copy_files(checkpoint / "best", folder)
        logger.info("Resuming from %s, step %d.", checkpoint, self.state.step)

    def load_state(self, checkpoint: Path) -> None:
        """
        Read where the training stood when the checkpoint was saved.

        Raises:
            ValueError: it is damaged, is of another model, or was saved in another stage than its step has now.
        """
        state = TrainerState.load_from_json(checkpoint / STATE_FILE)
        if state.network != self.network:
            self.set_network(state.network)
        check_checkpoint(checkpoint, self.model, self.processing_class, self.accelerator.process_index)
        self.state = state
        restore_changes(self.args, state.changes)
        if changed := self.state.changed_options(self._options()):
            logger.warning("Resuming with other options than those of the checkpoint: %s.", ", ".join(changed))
        self.state.options |= self._options()
        stage = str(self.stage_at(max(0, self.state.step - 1)))
        if self.state.stage != stage:
            raise ValueError(
                f"{checkpoint} was saved in the stage '{self.state.stage}', but with these options step {self.state.step} "
                f"is in '{stage}': resume with the options that the training was started with."
            )

    def set_network(self, network: dict[str, Any] | None) -> None:
        """
        Put an untrained model of another network in the place of the model.

        Args:
            network: its configuration, as `networks` checks it; `None` for the network that the options name.

        Raises:
            ValueError: there are no `networks` to make it.
        """
        if self.networks is None:
            raise ValueError(
                "The checkpoint is of a network that was chosen on the page of the training: resume it with the script that "
                "it was started with."
            )
        set_seed(self.args.seed)
        self.model, self.network = self.networks.build(network), network

    def save_model(self, path: Path) -> None:
        """Write the model, and the processor beside it, as `from_pretrained` loads them."""
        whole = unsharded(self.model, self.accelerator)
        if self.accelerator.is_main_process:
            with whole_folder(path) as folder:
                whole.save_pretrained(folder)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)

    # the parts of `train`

    def begin(self, checkpoint: Path | None) -> None:
        """Make ready to take steps from a checkpoint, or else from the state and the model that there are."""
        accelerator = self.accelerator
        self.state.options = self._options()
        if checkpoint is not None:
            self.load_state(checkpoint)
        if accelerator.is_main_process:
            remove_later_checkpoints(self.output_dir, self.state.step)
        self.epochs.fit_batch_size()
        self.optimizer = self.create_optimizer()
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.scheduler = self.create_scheduler(self.optimizer)
        self.enter_stage()
        self.averaged = self.create_averaged_weights()
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        self.log.begin(self._options())
        if checkpoint is None:
            set_seed(self.args.seed, device_specific=True)
        self.energy = EnergyMeter() if accelerator.is_main_process else None
        self._started = time.perf_counter() - self.state.seconds
        self._loss = torch.zeros((), device=accelerator.device)
        self._call("on_train_begin")
        self._call("on_stage_begin")

    def leave_out(self, seconds: float) -> None:
        """Leave a pause of the training out of its time."""
        self.log.leave_out(seconds)
        self._started += seconds

    def _options(self) -> dict[str, Any]:
        """All options by name, as JSON has them."""
        flat = {name: value for group in self.options.values() for name, value in group.items()}
        return json.loads(json.dumps(flat, default=str))

    def _sum_counts(self, inputs: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Sum the counts of micro-batches over all processes, here and for the log."""
        counts = [self.count_items(batch) for batch in inputs]
        names = list(counts[0])
        total: Any = sum(torch.stack(list(count.values())) for count in counts)
        # what all processes must know at the same step travels with the counts: whether one was asked to stop, whether the
        # page was asked for something, whether the last loss of one was not finite
        flags = [self.signals.received is not None, self.live.is_asked]
        total = torch.cat([total, total.new_tensor(flags), (~self._loss.isfinite()).to(total)[None]])
        *sums, stops, asked, diverged = self.accelerator.reduce(total, reduction="sum")
        self.stops, self._asked = bool(stops), bool(asked)
        if diverged:
            self._check_loss(self.accelerator.reduce(self._loss, reduction="mean").item())
        summed = dict(zip(names, sums, strict=True))
        self.log.add_counts(summed)
        return summed

    def _check_loss(self, loss: float) -> None:
        """Refuse to go on from a loss that is not finite."""
        if not math.isfinite(loss):
            raise ValueError(f"The loss is {loss} at step {self.state.step}: pass a smaller --learning_rate.")

    def _clip_gradients(self) -> None:
        if self.is_sharded:
            # FSDP replaces the parameters, and its checkpoints need an optimizer state for every one
            self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            for parameter in self.trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if self.args.max_grad_value:
            self.accelerator.clip_grad_value_(self.trained, self.args.max_grad_value)
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.trained, self.args.max_grad_norm)

    def _end_step(self, loss: torch.Tensor) -> None:
        """Log, evaluate and save where it is time to."""
        step, args = self.state.step, self.args
        self.log.end_step()
        is_last = step == self.num_steps
        if step % args.logging_steps == 0 or is_last:
            mean = self.accelerator.reduce(loss, reduction="mean").item()
            self._check_loss(mean)
            self._call("on_log", self.log.add_row(mean))
        self._call("on_step_end", loss)
        evaluates = step % self.eval_steps == 0 or is_last
        if evaluates:
            check_weights(self.model, self.output_dir, step)
            with self.averaged.applied(), whole_weights(self.model):
                self._evaluate()
        if evaluates or self.stops or self.live.saves or (args.save_steps and step % args.save_steps == 0):
            self.save_checkpoint()
        self.live.saves = False
        if evaluates and self.accelerator.is_main_process:  # side work, after all that matters has been saved
            self.log.show_evaluation()
            with side_work("The evaluation could not be drawn"), random_state_kept(self.accelerator.device):
                self.draw()
        if self.stops and not is_last:
            self._stop()
        self.log.start_clock()

    def _evaluate(self) -> None:
        """Evaluate, and keep the model if it is the best so far."""
        self.live.say("evaluating")
        step, metric = self.state.step, self.metric_for_best_model
        scores = {"step": step} | self.evaluate()
        self.wrapped.train()
        self.state.evaluations.append(scores)
        logger.info("step %d: %s", step, " ".join(f"{n} {value:.4f}" for n, value in scores.items() if n != "step"))
        # a tie goes to the later step: where every score is 0, the first checkpoint is the least trained one
        if self.state.best is None or scores[metric] >= self.state.best[metric]:
            self.state.best = scores
            self.save_model(self.output_dir / "best")
        self._call("on_evaluate", scores)
        self.accelerator.wait_for_everyone()

    def _stop(self) -> None:
        """End the process after the checkpoint of a training that was asked to stop."""
        self.log.bar.close()
        path = self.output_dir / f"checkpoint-{self.state.step}"
        sentence = f"Stopped by {self.signals}: {path} is saved; resume with --resume_from_checkpoint latest."
        logger.warning(sentence)
        self.live.say("stopped", sentence)
        self.accelerator.end_training()
        raise SystemExit(self.signals.exit_status)

    def _end(self) -> None:
        """Leave the best model and the results in the output folder."""
        if self.accelerator.is_main_process:
            if not (self.output_dir / "best" / "config.json").is_file():
                raise OSError(f"{self.output_dir / 'best'} holds no model: it was removed while the training ran.")
            copy_files(self.output_dir / "best", self.output_dir)
        self.log.end()
        self._call("on_train_end")
        self.accelerator.end_training()

    def _call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks, and go on as if nothing had been called."""
        callbacks = [callback for callback in self.callbacks if callback.attends(hook)]
        if callbacks and self.accelerator.is_main_process:
            with random_state_kept(self.accelerator.device):
                for callback in callbacks:
                    with side_work(f"{type(callback).__name__}.{hook} failed"):
                        getattr(callback, hook)(self, *arguments)
            self.wrapped.train()
