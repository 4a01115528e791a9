"""Download what a URL holds, within a number of bytes and a time, and only from public addresses where this is asked."""

import ipaddress
import math
import socket
import threading
from http import HTTPStatus
from typing import Any

from .error_messages_cnnrnn import shown


try:
    from huggingface_hub.utils import httpx  # what transformers loads its images with
except ImportError:
    import httpx  # type: ignore[no-redef]


DEFAULT_TIMEOUT = 60.0  # seconds
MAX_BYTES = 2**26
MAX_REDIRECTS = 5
# a router passes on to the IPv4 address in the last bytes of these
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def download(
    url: str, timeout: float | None = None, allow_private_addresses: bool = True, max_bytes: int = MAX_BYTES
) -> bytes:
    """
    Download the content of a URL, following at most 5 redirects to other http and https URLs.

    Args:
        url: an http or https URL.
        timeout: seconds that all of it may take, however the server spends them; `None` is 60, and `math.inf` waits
            without a limit.
        allow_private_addresses: whether the URL, and those that it redirects to, may be at private, loopback,
            link-local and other addresses outside the public internet. If not, a host is resolved once, all of its
            addresses are checked, and the connection goes to a checked address.
        max_bytes: largest size of the content, which is not decompressed.

    Raises:
        OSError: the URL cannot be read, takes too long, holds too much, or is at a private address.
        ValueError: `timeout` is not a positive number.
    """
    seconds = DEFAULT_TIMEOUT if timeout is None else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"`timeout` is {shown(timeout)}: pass a positive number of seconds.")
    deadline = _Deadline(seconds)
    try:
        with deadline, httpx.Client(timeout=None if seconds == math.inf else seconds) as client:
            return _follow(client, url, deadline, allow_private_addresses, max_bytes)
    except Exception as error:
        if deadline.has_passed or isinstance(error, httpx.TimeoutException):
            raise OSError(f"it timed out after {seconds:g} seconds") from error
        raise


class _Deadline:
    """
    Shut the connections of a download down when its time is over.

    The timeouts of httpx count from byte to byte: a server that sends a byte now and then, of its headers perhaps, would
    be waited for without an end.
    """

    def __init__(self, seconds: float):
        self.has_passed = False
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._pass) if seconds < threading.TIMEOUT_MAX else None

    def watch(self, event: str, info: dict[str, Any]) -> None:
        """Take note of a new connection; httpx calls this as its `trace` extension."""
        if event.endswith("connect_tcp.complete"):
            # TLS will take the socket over; a duplicate stays a handle of the connection
            connection = info["return_value"].get_extra_info("socket").dup()
            with self._lock:
                self._connections.append(connection)
            if self.has_passed:
                self._pass()

    def _pass(self) -> None:
        with self._lock:
            self.has_passed = True
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # it has ended
                    continue

    def __enter__(self) -> "_Deadline":
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()


def _follow(client: Any, source: str, deadline: _Deadline, allow_private_addresses: bool, max_bytes: int) -> bytes:
    url = httpx.URL(source)
    for _ in range(MAX_REDIRECTS + 1):
        if url.scheme not in ("http", "https") or not url.host:
            raise OSError(f"it leads to {shown(str(url))}, which is not an http or https URL")
        response = _send(client, url, deadline, allow_private_addresses)
        try:
            if response.has_redirect_location:
                url = url.join(response.headers["location"])
                continue
            if not response.is_success:
                raise OSError(f"the server answers {_status(response.status_code)}")
            return _read(response, deadline, max_bytes)
        finally:
            response.close()
    raise OSError(f"it is redirected more than {MAX_REDIRECTS} times")


def _send(client: Any, url: Any, deadline: _Deadline, allow_private_addresses: bool) -> Any:
    """Send a request; returns a response whose body has not been read."""
    headers = {"Accept-Encoding": "identity"}  # a small answer may decompress to any size
    extensions: dict[str, Any] = {"trace": deadline.watch}
    if allow_private_addresses:
        return client.send(client.build_request("GET", url, headers=headers, extensions=extensions), stream=True)
    host = url.raw_host.decode("ascii")
    # another look-up of the name, by httpx, could give another address than the checked one
    headers["Host"] = url.netloc.decode("ascii")
    extensions["sni_hostname"] = host
    failure: Exception | None = None
    for address in _public_addresses(host, url.port or (443 if url.scheme == "https" else 80)):
        try:
            request = client.build_request("GET", url.copy_with(host=address), headers=headers, extensions=extensions)
            return client.send(request, stream=True)
        except httpx.ConnectError as error:
            failure = error
            if deadline.has_passed:
                break
    raise failure or OSError("its host has no address")


def _public_addresses(host: str, port: int) -> list[str]:
    """
    Resolve a host.

    Raises:
        OSError: it has no address, or one that is not public.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(map(_is_public, addresses)):
        raise OSError("its host is at a private address, pass a URL of the public internet")
    return addresses


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        # routers and systems pass these on to the IPv4 address in them, whatever the version of Python calls them
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if embedded is None and ip in NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return _is_public(str(embedded))
    return ip.is_global and not ip.is_multicast


def _read(response: Any, deadline: _Deadline, max_bytes: int) -> bytes:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise OSError(f"the server compresses it ({shown(encoding)}), which is not read")
    length = response.headers.get("content-length", "")
    content = bytearray()
    if not (length.isdecimal() and len(length) < 20 and int(length) > max_bytes):
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > max_bytes:
                break
            if deadline.has_passed:
                raise OSError("its time is over")
        else:
            if deadline.has_passed:  # without a length, a connection that is shut down looks like the end
                raise OSError("its time is over")
            return bytes(content)
    raise OSError(f"it holds more than {max_bytes} bytes, download it first and pass the path of the file")


def _status(code: int) -> str:
    """The number and the name of a status."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


__all__ = ["download"]
