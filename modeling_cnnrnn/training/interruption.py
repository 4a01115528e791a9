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
    """

    def __init__(self, save_on_interrupt: bool = False):
        names = ["SIGTERM", "SIGHUP", *(["SIGINT"] if save_on_interrupt else [])]
        self.watched = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others may not handle signals
            self._before = {number: signal.signal(number, self._note) for number in self.watched}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __str__(self) -> str:
        return "another process" if self.received is None else signal.Signals(self.received).name

    @property
    def exit_status(self) -> int:
        """The exit status that a shell gives to a process that a signal ended."""
        return 128 + (self.received or signal.SIGTERM)
