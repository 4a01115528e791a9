"""The Space: what it does with a picture, and its page in Chromium (`make test-space`)."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from PIL import Image
from support.hub_client import short_card
from support.local_hub import LocalHub
from support.nursery import run_python
from support.paths import ROOT
from transformers import BitImageProcessorPil

from modeling_cnnrnn import CnnRnnProcessor, ImageToTextPipeline
from modeling_cnnrnn.hub.push import stage_captioner


SPACE = ROOT / "examples" / "space"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

spec = importlib.util.spec_from_file_location("captioner", SPACE / "captioner.py")
captioner_module = importlib.util.module_from_spec(spec)
sys.modules["captioner"] = captioner_module  # where its dataclass looks for itself
spec.loader.exec_module(captioner_module)

# somebody who has not installed this package, with the Space's folder as theirs
WITHOUT_PACKAGE = """
import sys
sys.path.insert(0, sys.argv[1])
from support import hub_user
sys.meta_path.insert(0, hub_user.NotInstalled())
sys.path[0] = sys.argv[2]
"""
DESCRIBE = (
    WITHOUT_PACKAGE
    + """
import json
from captioner import Captioner
captioner = Captioner(sys.argv[3])
sentences = captioner.describe(hub_user.picture(), 3)
assert type(captioner.model).__module__.startswith("transformers_modules")
print(json.dumps([[s.text, s.log_probability, len(s.words), len(s.maps)] for s in sentences]))
"""
)
SERVE = (
    WITHOUT_PACKAGE
    + """
import runpy
runpy.run_path(sys.argv[2] + "/app.py", run_name="__main__")
"""
)


def command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-P", "-c", code, str(ROOT / "tests"), *map(str, arguments)]


def requirements(path: Path) -> dict[str, str]:
    """Names of packages and the versions that are asked for."""
    lines = path.read_text().split("\n") if path.suffix == ".txt" else tomllib.loads(path.read_text())["project"]
    if isinstance(lines, dict):
        lines = lines["dependencies"] + lines["optional-dependencies"]["space"]
    return dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines if line)


@pytest.fixture
def make_captioner(make_model, tiny_processor, tmp_path):
    """`make_captioner(processor, attention_type="additive", ...)`: a captioner of the Space, of a tiny model."""

    def make(processor=tiny_processor, **options) -> captioner_module.Captioner:
        model = make_model(**{"attention_type": "additive", "initializer_range": 2.0, **options})
        model.lm_head.bias.data[processor.tokenizer.eos_token_id] = 1.0
        model.generation_config.update(max_length=8, suppress_tokens=[0, 1, 3])
        model.save_pretrained(tmp_path / "trained")
        processor.save_pretrained(tmp_path / "trained")
        return captioner_module.Captioner(str(tmp_path / "trained"))

    return make


@pytest.fixture
def captioner(make_captioner):
    return make_captioner()


@pytest.fixture
def repository(captioner, tmp_path, monkeypatch) -> Path:
    """The captioner's repository, as it is pushed; the code of its card is not run."""
    monkeypatch.setattr("modeling_cnnrnn.hub.push.write_model_card", short_card)
    (tmp_path / "repository").mkdir()
    stage_captioner(tmp_path / "trained", tmp_path / "repository", "me/captioner")
    return tmp_path / "repository"


@pytest.fixture
def image() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB")


# --- sentences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"num_sentences": 5}, {"prompt": "a dog"}])
def test_sentences_and_log_probabilities_are_those_of_the_pipeline(captioner, image, options):
    sentences = captioner.describe(image, max_new_tokens=6, **options)
    pipe = ImageToTextPipeline(captioner.model, processor=captioner.processor)
    num_sentences = options.get("num_sentences", 1)
    expected = pipe(
        image,
        prompt=options.get("prompt"),
        num_return_sequences=num_sentences,
        max_new_tokens=6,
        return_scores=True,
        generate_kwargs={"num_beams": max(options.get("num_beams", 3), num_sentences)},
    )
    assert [s.text for s in sentences] == [record["generated_text"] for record in expected]
    assert [s.log_probability for s in sentences] == pytest.approx([record["score"] for record in expected], abs=1e-4)


def test_each_word_has_its_probability(captioner, image):
    (sentence,) = captioner.describe(image, num_beams=1, max_new_tokens=7)
    inputs = captioner.processor(images=image, return_tensors="pt")
    output = captioner.model.generate(**inputs, num_beams=1, return_dict_in_generate=True, output_logits=True)
    probabilities = [
        logits.softmax(dim=-1)[0, token].item()
        for logits, token in zip(output.logits, output.sequences[0, 1:], strict=True)
    ]
    assert " ".join(sentence.words) == sentence.text
    assert sentence.word_probabilities == pytest.approx(probabilities[: len(sentence.words)], abs=1e-5)


def test_sentences_are_as_long_as_the_model_says_or_the_caller(captioner, image):
    captioner.model.lm_head.bias.data[captioner.processor.tokenizer.eos_token_id] = -100.0
    captioner.model.generation_config.max_length = 6  # with the start token
    assert len(captioner.describe(image)[0].words) == 5
    assert len(captioner.describe(image, max_new_tokens=7)[0].words) == 7


def test_a_low_temperature_draws_the_most_probable_words(captioner, image):
    (greedy,) = captioner.describe(image, num_beams=1)
    assert {s.text for s in captioner.describe(image, 4, temperature=1e-3)} == {greedy.text}


def test_sentences_drawn_by_chance_differ_and_the_most_probable_is_first(captioner, image):
    sentences = captioner.describe(image, 8, temperature=1.5)
    assert len(sentences) == 8
    assert len({s.text for s in sentences}) > 2
    log_probabilities = [s.log_probability for s in sentences]
    assert log_probabilities == sorted(log_probabilities, reverse=True)


def test_a_prompt_begins_all_sentences_and_is_not_among_the_words_written(captioner, image):
    for sentence in captioner.describe(image, 3, prompt=" a red "):
        assert sentence.text == " ".join(["a red", *sentence.words])


def test_a_prompt_of_unknown_words_is_refused(captioner, image):
    with pytest.raises(ValueError, match="does not know all words of the prompt 'a zebra'"):
        captioner.describe(image, prompt="a zebra")


@pytest.mark.parametrize("content", [b"no picture", b"<svg></svg>", None])
def test_a_broken_picture_is_told_without_the_servers_paths(captioner, image, tmp_path, content):
    path = tmp_path / "upload.png"
    image.save(path)
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ValueError, match=r"The picture .* is not an image that can be read") as told:
        captioner.describe(str(path))
    assert str(tmp_path) not in str(told.value)


# --- attention ------------------------------------------------------------------------------------------------------


def test_each_word_has_the_picture_lit_where_the_model_looked(captioner, image):
    white = Image.new("RGB", (32, 32), "white")
    (sentence,) = captioner.describe(white, num_beams=1, max_new_tokens=7)
    inputs = captioner.processor(images=white, return_tensors="pt")
    output = captioner.model.generate(**inputs, num_beams=1, return_dict_in_generate=True, output_attentions=True)
    assert len(sentence.maps) == len(sentence.words) > 1
    rows, columns = ((256 * axis).long() for axis in captioner.model.get_encoder().cell_centers(32, 32))
    for step, picture in enumerate(sentence.maps):
        assert picture.size == (256, 256)
        regions = output.cross_attentions[step][0].flatten()  # 4 x 4 of them
        light = np.asarray(picture.convert("L"))[rows][:, columns].flatten()
        assert np.corrcoef(light, regions)[0, 1] > 0.9


def test_regions_may_be_no_square():
    attention = np.zeros(8, np.float32)
    attention[7] = 1
    picture = captioner_module.veil(Image.new("RGB", (64, 32), "white"), attention)
    assert picture.size == (256, 128)
    pixels = np.asarray(picture.convert("L"))
    assert pixels[-1, -1] == pixels.max() > 200
    assert pixels[0, 0] < 60
    assert captioner_module.veil(Image.new("RGB", (64, 64)), np.ones(7, np.float32)) is None


def test_a_captioner_without_attention_has_no_maps(make_captioner, image):
    captioner = make_captioner(attention_type="none")
    assert not captioner.has_attention
    sentences = captioner.describe(image, 3)
    assert [s.maps for s in sentences] == [[]] * 3
    assert any(s.words for s in sentences)


def test_maps_lie_on_what_the_cnn_sees_of_the_picture(make_captioner, tiny_tokenizer):
    cropping = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    captioner = make_captioner(CnnRnnProcessor(cropping, tiny_tokenizer))
    picture = Image.new("RGB", (120, 40), "red")
    picture.paste("blue", (44, 4, 76, 36))
    seen = captioner.seen_part(picture)
    assert seen.size == (32, 32)
    assert seen.getcolors() == [(32 * 32, (0, 0, 255))]


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_space_needs_the_repository_and_not_the_package(repository, captioner, tmp_path, image):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    described = run_python(*command(DESCRIBE, SPACE, repository)[1:], cwd=tmp_path, env=environment)
    assert described.returncode == 0, described.stderr
    expected = captioner.describe(image, 3)
    for record, sentence in zip(json.loads(described.stdout.splitlines()[-1]), expected, strict=True):
        assert record[0] == sentence.text
        assert record[1] == pytest.approx(sentence.log_probability, abs=1e-4)
        assert record[2:] == [len(sentence.words), len(sentence.maps)]


def test_every_example_can_be_described(captioner):
    examples = sorted((SPACE / "examples").iterdir())
    assert len(examples) > 3
    for path in examples:
        assert captioner.describe(path)[0].words


def test_the_front_matter_is_what_the_hub_takes():
    fields = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert fields["sdk"] == "gradio"
    assert (SPACE / fields["app_file"]).is_file()
    assert {fields["colorFrom"], fields["colorTo"]} <= colors
    assert len(fields["short_description"]) <= 60
    assert fields["title"]
    assert SpecifierSet(requirements(SPACE / "requirements.txt")["gradio"]).contains(fields["sdk_version"])


def test_the_folder_can_be_pushed_as_it_is(tmp_path):
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf"]
    with LocalHub(tmp_path / "repositories") as hub:
        pushed = subprocess.run(
            [*hf, "upload", "me/space", SPACE, "--repo-type", "space"],
            env=hub.environment(home=tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert pushed.returncode == 0, pushed.stderr
        with urlopen(f"{hub.url}/api/spaces/me/space") as answer:
            space = json.load(answer)
    assert space["sdk"] == "gradio"
    files = {file["rfilename"] for file in space["siblings"]}
    assert files >= {path.relative_to(SPACE).as_posix() for path in SPACE.rglob("*") if "pycache" not in str(path)} - {
        "examples"
    }


@pytest.mark.parametrize("folder", ["space", "inference_endpoint"])
def test_requirements_are_those_of_the_package(folder):
    package = requirements(ROOT / "pyproject.toml")
    for name, versions in requirements(ROOT / "examples" / folder / "requirements.txt").items():
        assert versions == package[name]


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside():
    """A proxy for all that a process wants of other machines. It gives nothing and notes who was asked."""
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def refuse(self):
            asked.append(self.path)
            self.send_error(502)

        do_GET = do_HEAD = do_POST = do_CONNECT = refuse

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(repository, outside, tmp_path):
    """The page in Chromium, of a process that has not the package. No test with it may ask another machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="`make test-space` installs it")
    pytest.importorskip("gradio", reason="`make test-space` installs it")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install it (`apt-get install chromium`)")
    proxy, asked = outside
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "MODEL_ID": str(repository),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "uploads"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    environment |= dict.fromkeys(
        ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"], f"http://127.0.0.1:{proxy}"
    )
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command(SERVE, SPACE), cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urlopen(address):
                break
            time.sleep(0.2)
        with playwright.sync_playwright() as driver:
            camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
            page = browser.new_page(permissions=["camera"])
            page.set_default_timeout(60_000)
            requested = []
            page.on("request", lambda request: requested.append(request.url))
            page.on("websocket", lambda websocket: requested.append(websocket.url))
            page.goto(address)
            page.get_by_role("button", name="Describe").wait_for()
            yield page
            browser.close()
        assert requested
        assert {urlsplit(url).hostname for url in requested if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
        assert asked == []
    finally:
        server.terminate()
        server.wait()


def upload(page, path: Path) -> None:
    page.locator("#picture input[type=file]").first.set_input_files(path)
    page.get_by_role("button", name="Remove Image").wait_for()


def describe(page) -> str:
    """Press the button, and read the sentence."""
    sentence = page.locator("#sentence textarea")
    before = sentence.input_value()
    page.get_by_role("button", name="Describe").click()
    page.wait_for_function(
        "before => ![before, ''].includes(document.querySelector('#sentence textarea').value)", arg=before
    )
    page.locator("#maps .caption-label").first.wait_for()
    return sentence.input_value()


def words(page) -> list[str]:
    """The labels of the attention maps, without their probabilities."""
    return [label.partition(" · ")[0] for label in page.locator("#maps .caption-label").all_inner_texts()]


def rows(page) -> list[str]:
    """The sentences of the table."""
    return page.locator("#table [role=gridcell][data-col='0']").all_inner_texts()


def texts(sentences) -> list[str]:
    return [sentence.text for sentence in sentences]


@pytest.mark.browser
def test_an_uploaded_picture_is_described(page, captioner, image, tmp_path):
    image.save(tmp_path / "gradient.png")
    upload(page, tmp_path / "gradient.png")
    expected = captioner.describe(image, 3)
    assert describe(page) == expected[0].text
    assert rows(page) == texts(expected)
    assert words(page) == expected[0].words


@pytest.mark.browser
def test_an_example_is_described(page, captioner):
    example = sorted((SPACE / "examples").iterdir())[1]
    page.locator("#examples .gallery-item").nth(1).click()
    page.get_by_role("button", name="Remove Image").wait_for()
    assert describe(page) == captioner.describe(example, 3)[0].text


@pytest.mark.browser
def test_a_photograph_of_the_webcam_is_described(page):
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#picture video')?.videoWidth > 0")  # it has begun to see
    page.get_by_role("button", name="capture photo").click()
    page.get_by_role("button", name="Remove Image").wait_for()
    assert describe(page).split()


@pytest.mark.browser
def test_a_click_on_a_sentence_shows_where_the_model_looked_for_its_words(page, captioner, image, tmp_path):
    image.save(tmp_path / "gradient.png")
    upload(page, tmp_path / "gradient.png")
    describe(page)
    chosen = captioner.describe(image, 3)[2]
    page.locator("#table [data-testid=cell-2-0]").click()
    page.wait_for_function("text => document.querySelector('#sentence textarea').value == text", arg=chosen.text)
    page.wait_for_timeout(500)
    assert words(page) == chosen.words


@pytest.mark.browser
def test_settings_change_the_sentences(page, captioner, image, tmp_path):
    image.save(tmp_path / "gradient.png")
    upload(page, tmp_path / "gradient.png")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("The sentence begins with").fill("a dog")
    page.get_by_label("number input for Sentences").fill("4")
    page.get_by_label("number input for Beams of the search").fill("6")
    page.get_by_label("number input for Words at most").fill("2")
    describe(page)
    assert rows(page) == texts(captioner.describe(image, 4, num_beams=6, max_new_tokens=2, prompt="a dog"))

    page.get_by_label("drawn by chance").click()
    page.get_by_label("number input for Temperature of chance").fill("0.1")
    page.get_by_label("number input for Sentences").fill("10")
    page.get_by_label("number input for Words at most").fill("1")
    describe(page)
    assert not page.get_by_label("number input for Beams of the search").is_visible()
    drawn = rows(page)
    assert len(drawn) == 10 > len(set(drawn))  # a search finds no sentence twice
    assert {tuple(text.split()[:2]) for text in drawn} == {("a", "dog")}


@pytest.mark.browser
@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_broken_picture_is_told_on_the_page(page, tmp_path, content):
    if content is not None:
        (tmp_path / "broken.png").write_bytes(content)
        upload(page, tmp_path / "broken.png")
    page.get_by_role("button", name="Describe").click()
    told = (
        "There is no picture: upload one"
        if content is None
        else "The picture (10 bytes) is not an image that can be read"
    )
    page.locator("[data-testid=toast-body]").get_by_text(told).wait_for()
