"""The tracker that shows a training on a page, and takes the wishes of those who watch it."""

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from .board import Board
from .page import write_page
from .server import PageServer
from .views import View


logger = logging.getLogger(__name__)

PAGE_FILE = "training.html"
MAX_STEP_SECONDS = 60.0  # that a question waits for the training


@dataclass(frozen=True)
class Control:
    """
    An option of the training that may be changed while it runs.

    Attributes:
        value: what it is now.
        low, high: the smallest and the largest value.
        is_open: whether the two themselves are excluded.
        is_integer: whether it must be a whole number.
    """

    value: float
    low: float
    high: float
    is_open: bool = False
    is_integer: bool = False

    def check(self, name: str, value: Any) -> float:
        """
        Return a value as the training takes it.

        Raises:
            ValueError: it is no number, or out of range.
        """
        try:
            number = float(value)
            is_number = not self.is_integer or number == int(number)
        except (TypeError, ValueError, OverflowError):
            is_number, number = False, math.nan
        inside = self.low < number < self.high if self.is_open else self.low <= number <= self.high
        if not is_number or not inside:
            kind = "a whole number" if self.is_integer else "a number"
            between = "between" if self.is_open else "from"
            link = "and" if self.is_open else "to"
            raise ValueError(
                f"`{name}` is {str(value)[:40]!r}: pass {kind} {between} {self.low:g} {link} {self.high:g}."
            )
        return int(number) if self.is_integer else number


@dataclass
class Wishes:
    """
    What a watcher has asked the training for; the same on all processes, once it has been handed out.

    Attributes:
        options: new values of options by name.
        paused: whether to wait or to go on; `None` for neither.
        save, stop: save a checkpoint, and with `stop` end there.
        network: configuration of a new network to start again with.
        checkpoint: name of a checkpoint to go back to.
    """

    options: dict[str, float] = field(default_factory=dict)
    paused: bool | None = None
    save: bool = False
    stop: bool = False
    network: dict[str, Any] | None = None
    checkpoint: str | None = None


class LiveTracker(GeneralTracker):
    """
    Show a training on a page that this process serves, and write it to `training.html` at each evaluation.

    As a tracker of accelerate it receives what the training logs; [`~modeling_cnnrnn.training.live_session.LiveSession`]
    gives it the rest. Only the main process has a server.

    Args:
        output_dir: folder of `training.html`.
        host: the address to listen at. Others than this machine's own should be of a network that can be trusted: who
            knows the key may change and stop the training.
        port: the port, 0 for a free one.

    Raises:
        ImportError: Starlette or Uvicorn is not installed.
    """

    name = "live"
    requires_logging_directory = False

    def __init__(self, output_dir: str | os.PathLike, host: str = "127.0.0.1", port: int = 0):
        super().__init__()
        self.path = Path(output_dir) / PAGE_FILE
        self.board = Board()
        self.server = PageServer(self, host, port)
        self.controls: dict[str, Control] = {}
        self.checkpoints: list[str] = []
        self.check_network: Callable[[Any], dict[str, Any]] | None = None
        self.questions: queue.SimpleQueue[tuple[Callable[[View], Any], Future]] = queue.SimpleQueue()
        self._wishes = Wishes()
        self._changed = threading.Condition()

    @property
    def tracker(self) -> "LiveTracker":
        return self

    @on_main_process
    def bind(self) -> None:
        """
        Take the port, before the work.

        Raises:
            ValueError: it is taken, or there is no such address.
        """
        self.server.bind()

    @on_main_process
    def start(self) -> None:
        """Serve the page, and say where."""
        self.server.start()
        logger.info("Watch the training at %s", self.server.url)

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Add a point to the curves; one of an evaluation is also written to the file."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if not numbers:
            return
        self.board.add_point({"step": step, **numbers})
        if any(name.startswith("eval/") for name in numbers):
            self.write()

    @on_main_process
    def finish(self) -> None:
        """Write the last state, send it to those who watch, and end the server."""
        if self.server.is_running:  # what ends before it begins leaves the file of an earlier part
            self.write()
        self.server.stop()

    def write(self) -> None:
        """Write the page with what it shows now as a file that needs no server."""
        write_page(self.path, self.board.snapshot())

    # what a watcher asks for, from the thread of the server

    def wish(self, asked: Mapping[str, Any]) -> None:
        """
        Ask the training for something before its next step.

        Args:
            asked: names of `controls` with their new values, `paused`, `save`, `stop`, `network` or `checkpoint`.

        Raises:
            ValueError: there is no such control, or a value is refused; nothing is done then.
        """
        wishes = Wishes()
        for name, value in asked.items():
            if name in self.controls:
                wishes.options[name] = self.controls[name].check(name, value)
            elif name == "network":
                wishes.network = self.ask(partial(self._check_network, value))
            elif name == "checkpoint":
                if value not in self.checkpoints:
                    raise ValueError(
                        f"`checkpoint` is {str(value)[:80]!r}: choose one of {', '.join(self.checkpoints) or 'none'}."
                    )
                wishes.checkpoint = value
            elif name in ("paused", "save", "stop") and isinstance(value, bool):
                setattr(wishes, name, value)
            else:
                raise ValueError(
                    f"The training has no control {str(name)[:40]!r}: choose one of {', '.join(self.controls)}."
                )
        with self._changed:
            mine = self._wishes
            mine.options |= wishes.options
            for name in ("paused", "network", "checkpoint"):
                value = getattr(wishes, name)
                setattr(mine, name, getattr(mine, name) if value is None else value)
            mine.save, mine.stop = mine.save or wishes.save, mine.stop or wishes.stop
            self._changed.notify_all()

    def _check_network(self, text: Any, view: View) -> dict[str, Any]:
        if self.check_network is None:
            raise ValueError("This training cannot start again with another network.")
        return self.check_network(text)

    def ask(self, question: Callable[[View], Any]) -> Any:
        """
        Ask something that the training answers in its own thread, with the model as it is between two steps.

        Raises:
            ValueError: the question cannot be answered.
            TimeoutError: the training takes no step, as while it evaluates.
        """
        answer: Future[Any] = Future()
        self.questions.put((question, answer))
        with self._changed:
            self._changed.notify_all()
        try:
            return answer.result(MAX_STEP_SECONDS)
        except TimeoutError as error:
            raise TimeoutError("The training takes no step at present, as while it evaluates: try again.") from error

    # what the training takes, from its own thread

    @property
    def has_wishes(self) -> bool:
        """Whether something has been asked for and not yet taken."""
        return self._wishes != Wishes()

    def take_wishes(self) -> Wishes:
        """Return what has been asked for since the last call."""
        with self._changed:
            wishes, self._wishes = self._wishes, Wishes()
        return wishes

    def wait(self, seconds: float) -> None:
        """Wait while the training is paused: until somebody asks for something, and this long at most."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self.has_wishes and self.questions.empty() and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
