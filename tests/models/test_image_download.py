"""Downloads: bounded in bytes and time, and only from public addresses where this is asked."""

import contextlib
import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from support.images import encoded, rgb

from modeling_cnnrnn import load_image
from modeling_cnnrnn.models import image_download_cnnrnn


class Hostile(BaseHTTPRequestHandler):
    """Answers that no client should wait for or keep."""

    picture = b""

    def log_message(self, *args):
        pass

    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        with contextlib.suppress(OSError):  # the client has gone
            getattr(self, f"send_{kind}")(rest)

    def begin(self, status: int = 200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_picture(self, rest):
        self.server.hosts.append(self.headers["Host"])
        assert self.headers["Accept-Encoding"] == "identity"  # or else no picture comes
        self.begin()
        self.wfile.write(self.picture)

    def send_endless(self, rest):
        self.begin()
        while True:
            self.wfile.write(bytes(2**16))

    def send_large(self, rest):
        self.begin(Content_Length=str(10**10))
        self.wfile.write(bytes(2**16))

    def send_drips(self, rest):
        self.begin()
        for _ in range(200):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def send_headers_in_drips(self, rest):
        for _ in range(200):
            self.wfile.write(b"H")
            self.wfile.flush()
            time.sleep(0.1)

    def send_silence(self, rest):
        time.sleep(5)

    def send_gzip(self, rest):
        self.begin(Content_Encoding="gzip")
        self.wfile.write(gzip.compress(bytes(10**6)))

    def send_loop(self, rest):
        self.begin(302, Location=f"/loop/{rest}x")

    def send_to(self, rest):
        self.begin(302, Location=rest)


@pytest.fixture
def hostile(pixels, monkeypatch):
    monkeypatch.setattr(Hostile, "picture", encoded(Image.fromarray(pixels), "PNG"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        server.hosts = []
        server.daemon_threads = True
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("kind", ["endless", "large"])
def test_a_download_has_a_limit_of_bytes(hostile, kind):
    with pytest.raises(OSError, match=rf"{kind}'\) cannot be downloaded: it holds more than 67108864 bytes"):
        load_image(f"{hostile.url}/{kind}")


@pytest.mark.parametrize("kind", ["drips", "headers_in_drips", "silence"])
def test_a_download_has_a_limit_of_time_however_it_is_spent(hostile, kind):
    start = time.monotonic()
    with pytest.raises(OSError, match=r"cannot be downloaded: it timed out after 0\.5 seconds"):
        load_image(f"{hostile.url}/{kind}", timeout=0.5)
    assert time.monotonic() - start < 3


def test_a_download_without_a_timeout_has_one(hostile, monkeypatch):
    monkeypatch.setattr(image_download_cnnrnn, "DEFAULT_TIMEOUT", 0.3)
    with pytest.raises(OSError, match=r"it timed out after 0\.3 seconds"):
        load_image(f"{hostile.url}/drips")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "3", True])
def test_a_timeout_is_a_positive_number(timeout):
    with pytest.raises(ValueError, match=r"`timeout` is .*: pass a positive number of seconds"):
        load_image("http://127.0.0.1:1/a.jpg", timeout=timeout)


def test_a_compressed_answer_is_not_unpacked(hostile):
    with pytest.raises(OSError, match=r"cannot be downloaded: the server compresses it \('gzip'\)"):
        load_image(f"{hostile.url}/gzip")


def test_redirects_are_followed_a_few_times_and_to_web_pages_only(hostile, pixels):
    assert (rgb(f"{hostile.url}/to//to//picture") == pixels).all()
    with pytest.raises(OSError, match="it is redirected more than 5 times"):
        load_image(f"{hostile.url}/loop/")
    for target in ("file:///etc/hostname", "ftp://127.0.0.1/a.png"):
        with pytest.raises(OSError, match="which is not an http or https URL"):
            load_image(f"{hostile.url}/to/{target}")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1",
     "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_private_addresses_are_refused_where_it_is_asked(address, monkeypatch):
    entry = (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [public, entry])
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("it connects"))
    with pytest.raises(OSError, match="cannot be downloaded: its host is at a private address"):
        load_image("http://pictures.example/a.png", allow_private_addresses=False)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_reached(hostile, pixels, address, monkeypatch):
    entry = (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [entry])
    reached = []

    def redirected(target, *args, **options):
        reached.append(target[0])
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.connect(("127.0.0.1", hostile.server_port))
        return server

    monkeypatch.setattr(socket, "create_connection", redirected)
    assert (rgb("http://pictures.example/picture", allow_private_addresses=False) == pixels).all()
    assert reached == [address]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:7f00:1]"])
def test_no_spelling_of_this_machine_is_reached(host):
    with pytest.raises(OSError, match="cannot be downloaded"):
        load_image(f"http://{host}:9/a.png", allow_private_addresses=False)


def resolve(monkeypatch, addresses: dict[str, list[str]]) -> list[str]:
    """Let names have these addresses, a new one at each look-up; returns the names that were looked up."""
    asked: list[str] = []

    def getaddrinfo(host, port, *args, **options):
        host = host.decode() if isinstance(host, bytes) else host
        asked.append(host)
        found = addresses[host].pop(0) if host in addresses else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_the_connection_goes_to_the_checked_address(hostile, pixels, monkeypatch):
    # this machine plays the public host, and any other look-up of the name finds a private one
    asked = resolve(monkeypatch, {"pictures.example": ["127.0.0.1", "10.0.0.1"]})
    monkeypatch.setattr(image_download_cnnrnn, "_is_public", lambda address: address == "127.0.0.1")
    host = f"pictures.example:{hostile.server_port}"
    assert (rgb(f"http://{host}/picture", allow_private_addresses=False) == pixels).all()
    assert hostile.hosts == [host]
    assert asked.count("pictures.example") == 1


def test_a_redirect_to_a_private_address_is_refused(hostile, monkeypatch):
    resolve(monkeypatch, {"pictures.example": ["127.0.0.1"], "inside.example": ["10.0.0.1"]})
    monkeypatch.setattr(image_download_cnnrnn, "_is_public", lambda address: address == "127.0.0.1")
    url = f"http://pictures.example:{hostile.server_port}/to/http://inside.example/picture"
    with pytest.raises(OSError, match="its host is at a private address"):
        load_image(url, allow_private_addresses=False)
