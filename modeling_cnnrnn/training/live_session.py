"""What passes between a training and its page: what the page shows, and what its watchers ask for."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from ..live.tracker import Control, LiveTracker, Wishes
from ..live.views import View
from ..models.error_messages_cnnrnn import shown
from .callbacks import TrainerCallback, random_state_kept, side_work
from .checkpoints import checkpoint_names, set_aside
from .state import TrainerState


if TYPE_CHECKING:
    import torch

    from .trainer import Trainer


LOOK_SECONDS = 5.0  # between two looks inside, at least
LOOK_SHARE = 0.005  # of the time of a training, and of its CPU time, that looks may take
PAUSE_SECONDS = 0.5  # between two signs of life of the main process while the training is paused
BATCH_SIZE = "per_device_train_batch_size"
# entries of parameter groups, by the control that sets them
ENTRIES = {
    "learning_rate": ("lr",),
    "weight_decay": ("weight_decay",),
    "momentum": ("momentum", "betas", "rho"),
    BATCH_SIZE: ("lr",),  # Muon's rates grow with it
}


def live_session(trainer: "Trainer") -> "NoSession":
    """Make the session of a training: with its page, if it reports to one."""
    trackers = [tracker for tracker in trainer.accelerator.log_with if isinstance(tracker, LiveTracker)]
    return LiveSession(trainer, trackers[0]) if trackers else NoSession()


class NoSession(TrainerCallback):
    """
    What a training without a page has: nothing is shown, nothing is asked for.

    Attributes:
        is_asked: whether this process knows of something that has been asked for.
        saves: whether to save a checkpoint after this step.
        restart: what to start again with after this step: a network or a checkpoint.
    """

    is_asked = saves = False
    restart: Wishes | None = None

    def attends(self, hook: str) -> bool:
        """Tell whether there is anything to do."""
        return False

    def say(self, state: str, sentence: str = "") -> None:
        """Show what the training does at present: training, evaluating, paused, finished, stopped or failed."""

    def end(self, error: BaseException) -> None:
        """Show on the page why the training ends before its last step."""

    def obey(self) -> None:
        """Do what has been asked for, and wait while the training is paused; all processes call it together."""

    def ends_epoch(self) -> bool:
        """Tell whether an epoch ends with this step; where the batch size was changed in it, a new one begins."""
        return False

    def start_again(self, restart: Wishes) -> None:
        """Start again with another network, or go back to a checkpoint; what there is of the training is set aside."""


class LiveSession(NoSession):
    """
    Connect a training with its page.

    The page and its server are on the main process. What a watcher asks for is taken by all processes at the same step:
    that there is something travels with the counts of each step, what it is is broadcast then.

    Args:
        trainer: the training.
        tracker: its page.
    """

    def __init__(self, trainer: "Trainer", tracker: LiveTracker):
        self.trainer, self.tracker, self.board = trainer, tracker, tracker.board
        self.is_paused = self.saves = self._resized = False
        self.restart: Wishes | None = None
        self._next_look, self._last_look = (0.0, 0.0), -LOOK_SECONDS
        self._turn = 0
        self._has_ended = False

    # what the page shows: hooks on the main process

    def attends(self, hook: str) -> bool:
        """Tell whether there is anything to do: log entries come by the tracker."""
        if hook == "on_log":
            return False
        return hook != "on_step_end" or not self.tracker.questions.empty() or self._is_due()

    def on_train_begin(self, trainer: "Trainer") -> None:
        # weights that are on several processes cannot be looked at by one
        self.view = View(trainer.model, trainer.accelerator) if trainer.is_sharded else trainer.make_view()
        state = trainer.state
        rows = [row | {"cpu_seconds": used} for row, used in zip(state.steps, state.cpu_seconds, strict=False)]
        self.board.set_points(
            [_point("train", row) for row in rows] + [_point("eval", row) for row in state.evaluations]
        )
        plan: dict[str, Any] = {"title": trainer.project_name, "num_steps": trainer.num_steps}
        plan |= {"metric": trainer.metric_for_best_model, "output_dir": trainer.output_dir.name}
        if trainer.networks is not None and not trainer.is_sharded:
            self.tracker.check_network = trainer.networks.check
            plan["network"] = trainer.networks.describe(trainer.model)
        self.board.put(plan=plan, layers=[], predictions=[], confusion={}, best=state.best)
        self._next_look, self._last_look = (0.0, 0.0), -LOOK_SECONDS
        self._show_controls()
        self._show_checkpoints()
        self.say("training")

    def on_step_end(self, trainer: "Trainer", loss: "torch.Tensor | None") -> None:
        while not self.tracker.questions.empty():
            question, answer = self.tracker.questions.get()
            try:
                answer.set_result(question(self.view))
            except Exception as error:
                answer.set_exception(ValueError(shown(error, 400)))
        if self._is_due():
            self._look()

    def on_evaluate(self, trainer: "Trainer", metrics: Mapping[str, float]) -> None:
        is_last = trainer.state.step == trainer.num_steps
        if is_last or _clocks()[0] >= self._last_look + LOOK_SECONDS:  # for the file, if nobody watches
            self._look()
        self.board.put(best=trainer.state.best, **trainer.evaluation_details())
        self.say("training")

    def on_save(self, trainer: "Trainer", checkpoint: Path) -> None:
        self._show_checkpoints()

    def on_train_end(self, trainer: "Trainer") -> None:
        self.say("finished", "The training has ended.")

    def say(self, state: str, sentence: str = "") -> None:
        self.board.put(status={"state": state, "sentence": sentence, "step": self.trainer.state.step})

    def end(self, error: BaseException) -> None:
        if self._has_ended or not self.trainer.accelerator.is_main_process:
            return
        self._has_ended = True
        if isinstance(error, SystemExit):  # after a checkpoint
            return
        sentence = "Stopped." if isinstance(error, KeyboardInterrupt) else shown(error, 600)
        self.say("failed", sentence)
        with side_work("The page could not be written"):
            self.tracker.finish()

    def _is_due(self) -> bool:
        if not self.board.is_watched:
            return False
        return all(now >= due for now, due in zip(_clocks(), self._next_look, strict=True))

    def _look(self) -> None:
        """Look inside, and at some answers; the more that takes, the longer until the next time."""
        started = _clocks()
        with side_work("The page does not show the inside"):
            predictions = self.view.predictions(self._turn)
            self.board.put(layers=self.view.layers(self._turn), predictions=predictions, look=self.trainer.state.step)
        self._turn += 1
        self._last_look, used = ended = _clocks()
        rests = [(end - start) / LOOK_SHARE for start, end in zip(started, ended, strict=True)]
        self._next_look = (self._last_look + max(LOOK_SECONDS, rests[0]), used + rests[1])

    def _show_controls(self) -> None:
        args = self.trainer.args
        size, momentum = len(self.trainer.train_dataset), _momentum(self.trainer.optimizer.param_groups[0])  # type: ignore[arg-type]
        controls = {
            "learning_rate": Control(args.learning_rate, 0, 1000),
            "momentum": Control(momentum, 0, 1, is_open=True) if momentum is not None else None,
            "weight_decay": Control(args.weight_decay, 0, 1000),
            BATCH_SIZE: Control(args.per_device_train_batch_size, min(2, size), size, is_integer=True),
        }
        self.tracker.controls = {name: control for name, control in controls.items() if control is not None}
        values = {name: control.value for name, control in self.tracker.controls.items()}
        self.board.put(controls=values, changes=self.trainer.state.changes)

    def _show_checkpoints(self) -> None:
        self.tracker.checkpoints = checkpoint_names(self.trainer.output_dir)
        self.board.put(checkpoints=self.tracker.checkpoints)

    # what its watchers ask for: on all processes

    @property
    def is_asked(self) -> bool:  # type: ignore[override]
        return self.trainer.accelerator.is_main_process and self.tracker.has_wishes

    def obey(self) -> None:
        self._take()
        if not self.is_paused:
            return
        started, is_main = time.perf_counter(), self.trainer.accelerator.is_main_process
        self.say("paused")
        while self.is_paused:
            if is_main:
                self.tracker.wait(PAUSE_SECONDS)
                with side_work("The page failed"), random_state_kept(self.trainer.accelerator.device):
                    self.on_step_end(self.trainer, None)
            self._take()
        self.trainer.leave_out(time.perf_counter() - started)
        self.say("training")

    def _take(self) -> None:
        """Take what has been asked for at the main process."""
        trainer = self.trainer
        is_main = trainer.accelerator.is_main_process
        message = [self.tracker.take_wishes(), trainer.signals.received is not None] if is_main else [None, None]
        wishes, is_stopped = broadcast_object_list(message)
        if wishes.paused is not None:
            self.is_paused = wishes.paused
        for name, value in wishes.options.items():
            self.change(name, value)
        if wishes.options and is_main:
            self._show_controls()
        self.saves |= wishes.save
        if wishes.stop:
            trainer.signals.ask("the page")
        if wishes.stop or is_stopped:
            trainer.stops = True
        if wishes.network is not None or wishes.checkpoint is not None:
            self.restart, self.saves = wishes, True
        if self.restart is not None or trainer.stops:
            self.is_paused = False

    def change(self, name: str, value: float) -> None:
        """Give an option another value from this step on, and note it in the record of the run."""
        trainer = self.trainer
        args, groups = trainer.args, trainer.optimizer.param_groups
        before = getattr(args, name, None)
        before = _momentum(groups[0]) if before is None else before
        if before == value:
            return
        trainer.state.changes.append({"step": trainer.state.step, "name": name, "before": before, "value": value})
        if not hasattr(args, name):  # the momentum of AdamW, which is no option
            for group in groups:
                group["betas"] = (value, *group["betas"][1:])
            return
        setattr(args, name, value)
        fresh = self._fresh_groups()
        for group, new in zip(groups, fresh, strict=True):
            group.update({entry: new[entry] for entry in ENTRIES[name] if entry in new})
        if "lr" in ENTRIES[name]:
            self._set_learning_rates([group["lr"] for group in fresh])
        self._resized |= name == BATCH_SIZE

    def _fresh_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of a new optimizer, of what is trained in any of the stages as the present one is."""
        flags = [parameter.requires_grad for parameter in self.trainer.trained]
        try:
            for parameter in self.trainer.trained:
                parameter.requires_grad_(True)
            return self.trainer.create_optimizer().param_groups
        finally:
            for parameter, flag in zip(self.trainer.trained, flags, strict=True):
                parameter.requires_grad_(flag)

    def _set_learning_rates(self, rates: list[float]) -> None:
        """Set the highest learning rate of each parameter group; the schedule goes on from where it is."""
        scheduler: Any = self.trainer.scheduler
        scheduler.base_lrs = rates
        for group, rate, factor in zip(self.trainer.optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor(scheduler.last_epoch)

    def ends_epoch(self) -> bool:
        resized, self._resized = self._resized, False
        if resized:
            self.trainer.epochs.resize(self.trainer.state)
        return resized or self.restart is not None

    def start_again(self, restart: Wishes) -> None:
        trainer, self.restart = self.trainer, None
        trainer.log.bar.close()
        changes = [change for change in trainer.state.changes if hasattr(trainer.args, change["name"])]
        checkpoint = None
        if restart.checkpoint is not None:
            checkpoint = trainer.output_dir / restart.checkpoint
            for change in reversed(changes):  # the checkpoint knows the changes up to it
                setattr(trainer.args, change["name"], change["before"])
        is_own = checkpoint is not None and checkpoint.parent == trainer.output_dir
        if trainer.accelerator.is_main_process:
            step = int(checkpoint.name.split("-")[1]) if checkpoint is not None and is_own else -1
            set_aside(trainer.output_dir, step, with_best=not is_own)
        trainer.accelerator.wait_for_everyone()
        trainer.state = TrainerState(network=restart.network, changes=[{**change, "step": 0} for change in changes])
        if checkpoint is None:
            trainer.set_network(restart.network)
        trainer.begin(checkpoint)
        if not is_own:
            trainer.save_checkpoint()  # which a resumed training finds


def restore_changes(args: Any, changes: list[dict[str, Any]]) -> None:
    """Give options the values that they were changed to while the training ran, but for those that are given anew."""
    first = {change["name"]: change["before"] for change in reversed(changes)}
    last = {change["name"]: change["value"] for change in changes}
    for name, value in last.items():
        if hasattr(args, name) and getattr(args, name) == first[name]:
            setattr(args, name, value)


def _clocks() -> tuple[float, float]:
    """The time, and the CPU time of this process: a look that waits for nothing has more of the one than of the other."""
    return time.monotonic(), time.process_time()


def _momentum(group: Mapping[str, Any]) -> float | None:
    """The momentum of a parameter group, whatever its optimizer calls it; `None` if it has none."""
    return group.get("momentum", group.get("rho", group.get("betas", (None,))[0]))


def _point(split: str, row: Mapping[str, Any]) -> dict[str, Any]:
    values = {f"{split}/{name}": value for name, value in row.items() if name != "step"}
    return {"step": row["step"], **values}
