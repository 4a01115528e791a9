"""The server of the page: whom it lets in, what it takes, and that nobody who watches can hold up the training."""

import io
import json
import logging
import socket
import struct
import threading
import time
import urllib.request
import zlib

import numpy as np
import pytest
from PIL import Image
from support.live_training import request

from modeling_cnnrnn.live import server as server_module
from modeling_cnnrnn.live.page import build_page
from modeling_cnnrnn.live.tracker import Control, LiveTracker
from modeling_cnnrnn.live.views import View


class Echo(View):
    """Answers a picture with its size."""

    def __init__(self):
        pass

    def answer(self, image):
        return {"top": [[f"{image.width} x {image.height}", 1.0]]}


@pytest.fixture
def tracker(tmp_path):
    """A page that is served, and a thread that answers its questions as a training does between two steps."""
    tracker = LiveTracker(tmp_path)
    tracker.controls = {"learning_rate": Control(0.1, 0, 10), "batch_size": Control(4, 1, 8, is_integer=True)}
    tracker.server.bind()
    tracker.server.start()
    ended = threading.Event()

    def answer_questions():
        while not ended.is_set():
            tracker.wait(0.01)
            while not tracker.questions.empty():
                question, answer = tracker.questions.get()
                try:
                    answer.set_result(question(Echo()))
                except ValueError as error:
                    answer.set_exception(error)

    thread = threading.Thread(target=answer_questions)
    thread.start()
    yield tracker
    ended.set()
    thread.join()
    tracker.server.stop()


def test_the_page_is_for_this_machine_and_for_those_with_the_key(tracker):
    url = tracker.server.url
    assert url.startswith("http://127.0.0.1:")
    assert len(tracker.server.key) >= 20
    status, page = request(url)
    assert status == 200
    assert page == build_page()
    for path in ("", "news", "wish", "picture", "elsewhere"):
        assert request(url[:-1] + ("a" if url[-1] != "a" else "b"), path)[0] == 403
        assert request(url.partition("key=")[0], path)[0] == 403
        assert request(url, path, Host="example.org")[0] == 403
        assert request(url, path, Host="127.0.0.1.example.org:80")[0] == 403
    assert request(url, Host=f"localhost:{tracker.server.port}")[0] == 200


def test_a_page_asks_nobody_but_its_server(tracker):
    with urllib.request.urlopen(tracker.server.url) as response:
        policy = response.headers["Content-Security-Policy"]
        assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    assert "://" not in build_page()


def test_wishes_are_checked_and_kept_for_the_training(tracker):
    url = tracker.server.url
    for asked, sentence in [
        ({"learning_rate": -3}, "`learning_rate` is '-3': pass a number from 0 to 10."),
        ({"learning_rate": float("nan")}, "`learning_rate` is 'nan': pass a number from 0 to 10."),
        ({"batch_size": 2.5}, "`batch_size` is '2.5': pass a whole number from 1 to 8."),
        ({"learning_rate": 1, "lr": 1}, "The training has no control 'lr': choose one of learning_rate, batch_size."),
        ({"paused": "yes"}, "The training has no control 'paused'"),
        ({"checkpoint": "../../etc"}, "`checkpoint` is '../../etc': choose one of none."),
        ({"network": "{}"}, "This training cannot start again with another network."),
        ([1], "A wish is a JSON object of names and values."),
    ]:
        status, text = request(url, "wish", json.dumps(asked).encode())
        assert (status, text[: len(sentence)]) == (400, sentence)
    assert not tracker.has_wishes  # a refused value takes nothing with it
    for asked in ({"learning_rate": "0.5"}, {"batch_size": 8}, {"paused": True}, {"save": True}):
        assert request(url, "wish", json.dumps(asked).encode())[0] == 200
    wishes = tracker.take_wishes()
    assert wishes.options == {"learning_rate": 0.5, "batch_size": 8}
    assert (wishes.paused, wishes.save, wishes.stop) == (True, True, False)
    assert not tracker.has_wishes


def test_pictures_are_answered_and_what_is_none_is_one_sentence(tracker):
    url, data = tracker.server.url, io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(data, "PNG")
    assert json.loads(request(url, "picture", data.getvalue())[1]) == {"top": [["30 x 20", 1.0]]}
    status, text = request(url, "picture", b"Dear mother")
    assert status == 400
    assert text.startswith("`your picture` (11 bytes) is not an image that can be read")
    assert "\n" not in text
    bomb = data.getvalue().replace(struct.pack(">II", 30, 20), struct.pack(">II", 30_000, 30_000))
    head = bomb[12:29]
    bomb = bomb.replace(bomb[29:33], struct.pack(">I", zlib.crc32(head)), 1)
    status, text = request(url, "picture", bomb)
    assert status == 400
    assert "is too large: Image size (900000000 pixels)" in text


@pytest.mark.parametrize("says_its_length", [True, False])
def test_a_picture_of_more_than_8_mb_is_refused_before_it_is_kept(tracker, says_its_length):
    server = tracker.server
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        length = "Content-Length: 9000000" if says_its_length else "Transfer-Encoding: chunked"
        head = f"POST /picture?key={server.key} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n\r\n"
        client.sendall(head.encode())
        if not says_its_length:
            for _ in range(9):
                client.sendall(b"f4240\r\n" + bytes(1_000_000) + b"\r\n")
        answer = b""
        while b"smaller one." not in answer:
            answer += client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"The picture has more than 8 MB: send a smaller one." in answer


def test_a_question_that_the_training_has_no_time_for_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_cnnrnn.live.tracker.MAX_STEP_SECONDS", 0.05)
    with pytest.raises(TimeoutError, match=r"takes no step at present, as while it evaluates: try again"):
        LiveTracker(tmp_path).ask(lambda view: view.answer(None))


def test_a_client_that_hangs_holds_up_nobody(tracker):
    """It asks for the news and never reads them; the others are sent theirs, and what is shown is not kept for it."""
    server, board = tracker.server, tracker.board
    hanging = socket.socket()
    hanging.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    hanging.connect(("127.0.0.1", server.port))
    hanging.sendall(f"GET /news?key={server.key} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    deadline = time.monotonic() + 20
    while not board.is_watched and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.process_time()
    for step in range(200):
        board.put(layers=[str(step) * 100_000])
        board.add_point({"step": step})
    assert time.process_time() - started < 5  # it would wait for ever
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"GET /news?key={server.key} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        found = b""
        while b'"step": 199}]' not in found:
            found += client.recv(2**20)
    threading.Thread(target=server.stop).start()
    server._thread.join(20)
    assert not server._thread.is_alive()
    hanging.close()


def test_a_watcher_that_leaves_is_forgotten_and_one_who_stays_sees_the_end(tracker):
    server, board = tracker.server, tracker.board
    head = f"GET /news?key={server.key} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    deadline = time.monotonic() + 20
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(head)
        while not board.is_watched and time.monotonic() < deadline:
            time.sleep(0.01)
    while board.is_watched and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not board.is_watched
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(head)
        while not board.is_watched:
            time.sleep(0.01)
        board.put(status="failed")
        server.stop()
        found = b""
        while more := client.recv(2**16):
            found += more
    assert b'{"status": "failed"}' in found
    assert b"event: end" in found


def test_a_port_that_is_taken_is_named(tmp_path, tracker):
    port = tracker.server.port
    with pytest.raises(
        ValueError, match=rf"`live_port` {port} \(Address already in use\): pass another --live_port, or 0"
    ):
        LiveTracker(tmp_path, port=port).server.bind()
    with pytest.raises(ValueError, match=r"`live_port` 70000 \(.*0-65535.*\): pass another"):
        LiveTracker(tmp_path, port=70000).server.bind()


def test_another_address_is_warned_of_and_keeps_out_foreign_names(tmp_path, caplog):
    server = LiveTracker(tmp_path, host="0.0.0.0").server
    with caplog.at_level(logging.WARNING, "modeling_cnnrnn"):
        server.bind()
    server.stop()
    assert "`live_host` is 0.0.0.0: whoever reaches this machine" in caplog.text
    assert server.is_own_name("192.168.1.7:8000")
    assert server.is_own_name(socket.gethostname())
    assert not server.is_own_name("example.org:8000")


def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"Starlette and Uvicorn: pip install 'modeling-cnnrnn\[live\]' brings them"):
        LiveTracker(tmp_path)
