"""The page for browsers: where its files come from, its server, and what it does in Chromium (`make test-space`)."""

import io
import json
import shutil
import tarfile
import threading
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from modeling_cnnrnn.cli import webcam
from modeling_cnnrnn.export import browser
from modeling_cnnrnn.export.captioner import Captioner


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextmanager
def served(folder):
    """The address of a server of a folder."""
    with browser.page_server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_only_this_machine_reaches_the_server_and_modules_are_scripts(tmp_path):
    (tmp_path / "a.mjs").write_text("export {}")
    with served(tmp_path) as address, urllib.request.urlopen(address + "a.mjs") as response:
        assert response.headers["Content-Type"] == "text/javascript"
        assert address.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_named(tmp_path):
    with browser.page_server(tmp_path) as server:
        port = server.server_port
        with pytest.raises(ValueError, match=rf"`port` {port} cannot be used \(Address already in use\): pass another"):
            browser.page_server(tmp_path, port)


def test_the_webcam_opens_the_page_of_an_export_with_the_camera_on(tmp_path, monkeypatch, capsys):
    for name in ("index.html", "captioner.json"):
        (tmp_path / name).touch()
    opened = []
    monkeypatch.setattr(webcam.webbrowser, "open", opened.append)
    monkeypatch.setattr(browser.http.server.ThreadingHTTPServer, "serve_forever", lambda _: None)
    webcam.main([str(tmp_path), "--port", "0"])
    assert opened[0].endswith("/?camera")
    assert opened[0] in capsys.readouterr().out


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of npm in a folder, with another archive than the one whose checksum is known; an empty cache."""
    package = tmp_path / "registry" / "onnxruntime-web" / "-"
    package.mkdir(parents=True)
    with tarfile.open(package / f"onnxruntime-web-{browser.RUNTIME_VERSION}.tgz", "w:gz") as archive:
        for name in browser.RUNTIME_FILES:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = 4
            archive.addfile(entry, io.BytesIO(b"code"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", (tmp_path / "registry").as_uri())
    monkeypatch.setattr(browser.constants, "HF_HOME", str(tmp_path / "cache"))
    return package


def test_a_runtime_with_another_checksum_is_refused(registry, tmp_path):
    with pytest.raises(OSError, match=r"is not onnxruntime-web 1\.\d+\.0: its checksum differs"):
        browser.fetch_runtime()
    assert not (tmp_path / "cache").exists()


def test_a_runtime_is_fetched_once(registry, monkeypatch):
    content = next(registry.iterdir()).read_bytes()
    checksum = browser.base64.b64encode(browser.hashlib.sha512(content).digest()).decode()
    monkeypatch.setattr(browser, "RUNTIME_SHA512", checksum)
    folder = browser.fetch_runtime()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == dict.fromkeys(browser.RUNTIME_FILES, b"code")
    shutil.rmtree(registry)
    assert browser.fetch_runtime() == folder


def test_a_runtime_that_cannot_be_reached_is_one_sentence(registry):
    shutil.rmtree(registry)
    with pytest.raises(
        OSError, match=r"onnxruntime-web, which the page needs, cannot be downloaded from .*: try again"
    ):
        browser.fetch_runtime()


# --- In Chromium -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_folder(exported_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "exported"
    shutil.copytree(exported_folder, folder)
    settings = json.loads((folder / "captioner.json").read_text())
    settings["generation"] |= {"no_repeat_ngram_size": 2, "max_length": 20}
    (folder / "captioner.json").write_text(json.dumps(settings))
    browser.write_page(folder)
    return folder


@pytest.fixture
def open_page(page_folder):
    """`open_page(path, arguments)`: the page in Chromium, once it is loaded, and the addresses that it has asked for."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with served(page_folder) as address, sync_api.sync_playwright() as playwright:
        browsers = []

        def open_it(path="", arguments=(), script=""):
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
            browsers.append(chromium)
            page = chromium.new_page()
            page.set_default_timeout(120_000)
            page.add_init_script(script)
            requests = []
            page.on("request", lambda request: requests.append(request.url))
            page.goto(address + path)
            page.wait_for_function("document.body.dataset.ready || document.querySelector('#sentence').textContent")
            assert all(url.startswith((address, "data:", "blob:")) for url in requests)
            return page

        yield open_it
        for chromium in browsers:
            chromium.close()


def picture(path, seed: int, width: int, height: int):
    """A PNG of soft noise: browsers and Pillow read the same pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def written(page) -> list[str]:
    """The sentences below a picture, without their probabilities."""
    page.wait_for_function("document.querySelector('#facts').textContent")
    return [text.rpartition(" (")[0] for text in page.locator("#others button").all_text_contents()]


@pytest.mark.browser
def test_the_page_writes_the_sentences_and_probabilities_of_python(open_page, page_folder, tmp_path):
    page, captioner = open_page(), Captioner(page_folder)
    for seed, size in enumerate([(200, 140), (90, 333), (31, 32)]):
        path = picture(tmp_path / f"{seed}.png", seed, *size)
        page.evaluate("document.querySelector('#facts').textContent = ''")
        page.set_input_files("#file", path)
        found = captioner.generate(captioner.load_pixels(path), num_beams=3)
        assert written(page) == [captioner.decode(sentence["token_ids"]) for sentence in found]
        shown = page.locator("#sentence small").all_text_contents()
        expected = [
            np.exp(p)
            for t, p in zip(found[0]["token_ids"], found[0]["log_probs"], strict=True)
            if captioner.decode([t])
        ]
        # "25 %", or "< 1 %"
        assert [float(text.split()[-2]) for text in shown] == pytest.approx([100 * p for p in expected], abs=1)


@pytest.mark.browser
def test_a_word_shows_where_the_captioner_looked(open_page, page_folder, tmp_path):
    page, captioner = open_page(), Captioner(page_folder)
    path = picture(tmp_path / "picture.png", 0, 320, 320)
    page.set_input_files("#file", path)
    written(page)
    assert page.locator("#map").is_hidden()
    page.locator("#sentence button").first.hover()
    light = page.evaluate(
        """() => { const map = document.querySelector("#map"), data = map.getContext("2d").getImageData(0, 0, map.width, map.height);
        return Array.from({ length: 32 * 32 }, (_, i) => 255 - data.data[4 * ((10 * Math.floor(i / 32) + 5) * 320 + 10 * (i % 32) + 5) + 3]) }"""
    )
    light = np.reshape(light, (32, 32))
    # the cell with the largest weight is the brightest place, at its true centre
    weights = captioner.generate(captioner.load_pixels(path), num_beams=3)[0]["maps"][0]
    rows, columns = captioner.settings["cell_centers"]
    row, column = divmod(int(weights.argmax()), len(columns))
    y, x = np.unravel_index(light.argmax(), light.shape)
    assert ((y + 0.5) / 32, (x + 0.5) / 32) == pytest.approx((rows[row], columns[column]), abs=0.06)
    assert light.max() > 240  # scaled by its largest value


@pytest.mark.browser
def test_a_picture_can_be_dropped_and_pasted(open_page, page_folder, tmp_path):
    page, captioner = open_page(), Captioner(page_folder)
    give = """([name, bytes, kind]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
        document.querySelector("#facts").textContent = "";
        document.body.dispatchEvent(event);
    }"""
    for seed, kind in enumerate(["drop", "paste"]):
        path = picture(tmp_path / f"{kind}.png", seed, 60, 50)
        page.evaluate(give, [path.name, list(path.read_bytes()), kind])
        assert written(page)[0] == captioner(path, num_beams=3)


@pytest.mark.browser
def test_the_camera_is_captioned_live(open_page):
    page = open_page("?camera", FAKE_CAMERA)
    assert written(page)[0]
    assert page.locator("#camera").text_content() == "Stop"
    for _ in range(2):
        page.evaluate("document.querySelector('#facts').textContent = ''")
        written(page)
    page.click("#camera")
    assert page.locator("#camera").get_attribute("aria-pressed") == "false"


@pytest.mark.browser
def test_what_goes_wrong_is_one_sentence(open_page, tmp_path):
    page = open_page()
    (tmp_path / "letter.png").write_text("Dear mother")
    page.set_input_files("#file", tmp_path / "letter.png")
    sentence = page.locator("#sentence")
    page.wait_for_function("document.querySelector('#sentence').textContent")
    assert sentence.text_content() == "letter.png cannot be read as a picture."
    refuse = "name => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name)) }"
    for name, start in {"NotAllowedError": "The camera may not be used", "NotFoundError": "There is no camera"}.items():
        page.evaluate(refuse, name)
        page.click("#camera")
        page.wait_for_function("s => document.querySelector('#sentence').textContent.startsWith(s)", arg=start)
    no_simd = "WebAssembly.validate = () => false"
    page = open_page(script=no_simd)
    assert "this browser has no WebAssembly with SIMD" in page.locator("#sentence").text_content()
