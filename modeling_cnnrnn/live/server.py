"""
The server of the page of a training: a thread beside the training, for this machine alone unless it is told otherwise.

Who wants in needs the key that is in the printed address, and must ask for the server by its own name: another site that
lets its name point here is refused.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ..models.error_messages_cnnrnn import shown
from ..models.image_loading_cnnrnn import load_image
from .board import Seen
from .page import build_page


if TYPE_CHECKING:
    from .tracker import LiveTracker


logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 8 * 2**20
MAX_WISH_BYTES = 2**16
MAX_SIDE = 1024  # of an own picture when it reaches the network
HEARTBEAT_SECONDS = 10.0
CLOSING_SECONDS = 2
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address holds the key
    "X-Content-Type-Options": "nosniff",
}


def is_server_available() -> bool:
    """Tell whether the libraries of the server are installed."""
    return all(find_spec(name) is not None for name in ("starlette", "uvicorn"))


class PageServer:
    """
    Serve the page of a tracker.

    Args:
        tracker: whose page it is.
        host: the address to listen at.
        port: the port, 0 for a free one.

    Raises:
        ImportError: Starlette or Uvicorn is not installed.
    """

    def __init__(self, tracker: "LiveTracker", host: str, port: int):
        if not is_server_available():
            raise ImportError(
                "`report_to` names live, which needs Starlette and Uvicorn: pip install 'modeling-cnnrnn[live]' brings them."
            )
        self.tracker, self.host, self.port = tracker, host, port
        self.key = secrets.token_urlsafe(16)
        self._socket: socket.socket | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address of the page, with its key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{host}:{self.port}/?key={self.key}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_running(self) -> bool:
        """Whether the page is served."""
        return self._thread is not None and self._thread.is_alive()

    def bind(self) -> None:
        """
        Take the port.

        Raises:
            ValueError: it is taken, or there is no such address.
        """
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            self._socket = socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError) as error:
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else error
            raise ValueError(
                f"The page of the training cannot be at {self.host}, `live_port` {self.port} ({reason}): pass another "
                "--live_port, or 0 for a free one."
            ) from error
        self.port = self._socket.getsockname()[1]
        if not self.is_local:
            logger.warning(
                "`live_host` is %s: whoever reaches this machine and has the address of the page can change and stop the "
                "training, and see its pictures. The connection is not encrypted.",
                self.host,
            )

    def start(self) -> None:
        """Serve in a thread."""
        import uvicorn

        if self._socket is None:
            self.bind()
        config = uvicorn.Config(
            create_app(self),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="live page", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Send the last state to those who watch, and end; who does not take it in time goes without."""
        self.tracker.board.close()
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(2 * CLOSING_SECONDS)
        elif self._socket is not None:
            self._socket.close()

    def is_own_name(self, host: str) -> bool:
        """Tell whether a `Host` header names this server: by a name that no other site can have."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower()
        if name in ("localhost", self.host.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not self.is_local and name in (socket.gethostname().lower(), socket.getfqdn().lower())
        return address.is_loopback or not self.is_local


class Guard:
    """Refuse all requests without the key, or by another name. (ASGI.)"""

    def __init__(self, app: Any, server: PageServer):
        self.app, self.server = app, server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        key = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("key", [""])[0]
        has_key = hmac.compare_digest(key.encode(), self.server.key.encode())
        if scope["type"] != "http" or not has_key or not self.server.is_own_name(headers.get("host", "")):
            sentence = "This page opens at the address, with its key, that the training has printed."
            await PlainTextResponse(sentence, 403, HEADERS)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def create_app(server: PageServer) -> Any:
    """Create the application: the page, the stream of what is new, wishes, and answers to pictures. (ASGI.)"""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    tracker = server.tracker

    async def page(request: Request) -> Response:
        return HTMLResponse(build_page(), headers=HEADERS)

    async def news(request: Request) -> Response:
        return StreamingResponse(_stream(tracker), media_type="text/event-stream", headers=HEADERS)

    async def wish(request: Request) -> Response:
        asked = json.loads(await _read(request, MAX_WISH_BYTES, "A wish"))
        if not isinstance(asked, dict):
            raise ValueError("A wish is a JSON object of names and values.")
        await asyncio.to_thread(tracker.wish, asked)
        return JSONResponse({}, headers=HEADERS)

    async def picture(request: Request) -> Response:
        content = await _read(request, MAX_PICTURE_BYTES, "The picture")
        return JSONResponse(await asyncio.to_thread(_answer, tracker, content), headers=HEADERS)

    async def refuse(request: Request, error: Exception) -> Response:
        status = 413 if isinstance(error, OverflowError) else 503 if isinstance(error, TimeoutError) else 400
        return PlainTextResponse(shown(error, 400), status, HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/news", news),
            Route("/wish", wish, methods=["POST"]),
            Route("/picture", picture, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, server=server)],
        exception_handlers=dict.fromkeys((ValueError, OverflowError, OSError, TimeoutError), refuse),
    )


async def _stream(tracker: "LiveTracker") -> AsyncIterator[str]:
    """Send what is new, as events, until the training ends; one who does not read gets all at once when he does."""
    board, watcher, seen = tracker.board, object(), Seen()
    event = board.enter(watcher)
    try:
        while True:
            event.clear()
            is_last = board.is_closed
            text = board.news(seen)
            if text is not None:
                yield f"data: {text}\n\n"
            if is_last:
                yield "event: end\ndata: {}\n\n"
                return
            try:
                await asyncio.wait_for(event.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield ": still here\n\n"
    finally:
        board.leave(watcher)


async def _read(request: Any, limit: int, what: str) -> bytes:
    """
    Read the body of a request.

    Raises:
        OverflowError: it is larger than `limit` bytes; no more than that is kept.
    """
    content = bytearray()
    is_larger = int(request.headers.get("content-length") or 0) > limit
    if not is_larger:
        async for chunk in request.stream():
            content += chunk
            if is_larger := len(content) > limit:
                break
    if is_larger:
        raise OverflowError(f"{what} has more than {limit / 2**20:g} MB: send a smaller one.")
    return bytes(content)


def _answer(tracker: "LiveTracker", content: bytes) -> dict[str, Any]:
    """Open a picture of a stranger, and let the network answer it."""
    image = load_image(content, name="your picture", min_side=MAX_SIDE)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return tracker.ask(lambda view: view.answer(image))
