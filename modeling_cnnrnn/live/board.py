"""What the page of a training shows, between the training, which writes it, and those who watch, each at their own pace."""

import asyncio
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


Point = Mapping[str, Any]


@dataclass
class Seen:
    """What a watcher has been sent: of each part its version, and how many points of which curves."""

    versions: dict[str, int] = field(default_factory=dict)
    curves: int = -1
    points: int = 0


class Board:
    """
    Keep what the page shows: named parts, each of which replaces its former self, and the points of the curves.

    A watcher asks for what is new since it asked last. Nothing is kept for one who does not ask, so that a watcher that
    hangs costs nothing; and who writes never waits for who reads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self._points: list[str] = []
        self._curves = 0
        self._watchers: dict[object, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self.is_closed = False

    @property
    def is_watched(self) -> bool:
        """Whether somebody has the page open."""
        return bool(self._watchers)

    def put(self, **parts: Any) -> None:
        """Show these parts, as JSON has them, in place of those before."""
        texts = {name: to_json(value) for name, value in parts.items()}
        with self._lock:
            for name, text in texts.items():
                if self._parts.get(name) != text:
                    self._parts[name] = text
                    self._versions[name] = self._versions.get(name, 0) + 1
        self._wake()

    def add_point(self, point: Point) -> None:
        """Add a point to the curves: its `step`, and values by name."""
        text = to_json(point)
        with self._lock:
            self._points.append(text)
        self._wake()

    def set_points(self, points: Sequence[Point]) -> None:
        """Begin the curves again, with these points."""
        texts = [to_json(point) for point in points]
        with self._lock:
            self._points, self._curves = texts, self._curves + 1
        self._wake()

    def close(self) -> None:
        """Let the watchers go, once they have what is new."""
        self.is_closed = True
        self._wake()

    def news(self, seen: Seen) -> str | None:
        """Return what is new for a watcher as a JSON object, and note that it has been seen; `None` if nothing is."""
        with self._lock:
            new = {name: text for name, text in self._parts.items() if self._versions[name] != seen.versions.get(name)}
            seen.versions = dict(self._versions)
            first = seen.points if seen.curves == self._curves else 0
            points = self._points[first:]
            if points or seen.curves != self._curves:
                new["points"] = f'{{"first": {first}, "points": [{", ".join(points)}]}}'
            seen.curves, seen.points = self._curves, len(self._points)
        return _object(new) if new else None

    def snapshot(self) -> str:
        """Return all that is shown as a JSON object."""
        return self.news(Seen()) or "{}"

    def enter(self, watcher: object) -> asyncio.Event:
        """Let somebody watch, from a coroutine; the event that is returned is set when there is news."""
        event = asyncio.Event()
        with self._lock:
            self._watchers[watcher] = (asyncio.get_running_loop(), event)
        return event

    def leave(self, watcher: object) -> None:
        """Forget somebody who watched."""
        with self._lock:
            self._watchers.pop(watcher, None)

    def _wake(self) -> None:
        with self._lock:
            watchers = list(self._watchers.values())
        for loop, event in watchers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)


def to_json(value: Any) -> str:
    """Write JSON as browsers read it: they know no NaN and no infinity, which become `null`."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _object(members: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in members.items()) + "}"
