"""Stop a training by a signal without losing its last steps."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopSignals:
    """
    Note, within this context, the signals that ask a process to stop: SIGTERM and SIGHUP (SLURM, spot machines, a closed
    terminal), and if asked Ctrl-C, of which a second one stops at once.

    Attributes:
        received: the signal, or `None`.
        asked_by: what else has asked to stop, or `None`.
    """

    def __init__(self, save_on_interrupt: bool = False):
        names = ["SIGTERM", "SIGHUP", *(["SIGINT"] if save_on_interrupt else [])]
        self.watched = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
        self.received: int | None = None
        self.asked_by: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others may not handle signals
            self._before = {number: signal.signal(number, self._note) for number in self.watched}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ask(self, name: str) -> None:
        """Ask to stop, as a signal would; `name` is who asks."""
        self.asked_by = name

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __str__(self) -> str:
        if self.asked_by is not None:
            return self.asked_by
        return "another process" if self.received is None else signal.Signals(self.received).name

    @property
    def exit_status(self) -> int:
        """The exit status that a shell gives to a process that a signal ended; 0 where somebody has asked for it."""
        if self.asked_by is not None:
            return 0
        return 128 + (self.received or signal.SIGTERM)
