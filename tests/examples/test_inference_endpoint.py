"""`handler.py` of Inference Endpoints: in the captioner's repository, in a process that has not the package."""

import base64
import importlib.util
import io
import json
import os
import socket
import sys

import pytest
from PIL import Image
from support import hub_user
from support.hub_client import short_card
from support.nursery import run_python
from support.paths import EXAMPLES, ROOT

from modeling_cnnrnn.hub.push import stage_captioner


FOLDER = EXAMPLES / "inference_endpoint"
spec = importlib.util.spec_from_file_location("handler", FOLDER / "handler.py")
handler_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handler_module)

# what a container of Inference Endpoints does with a request, without this package
CLIENT = """
import json, os, sys
sys.path[:0] = [os.getcwd(), sys.argv[1]]
from support import hub_user
sys.meta_path.insert(0, hub_user.NotInstalled())
from handler import EndpointHandler
handler = EndpointHandler(os.getcwd())
print(json.dumps([handler(data) for data in json.load(sys.stdin)]))
"""


@pytest.fixture
def handler(monkeypatch, pipe):
    """The handler around a captioner that is loaded already."""
    monkeypatch.setattr(handler_module, "pipeline", lambda task, **options: pipe)
    return handler_module.EndpointHandler("repository")


@pytest.fixture
def image() -> Image.Image:
    return hub_user.picture()


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_the_repository_serves_without_the_package(tmp_path, model, tiny_processor, pipe, image, monkeypatch):
    monkeypatch.setattr("modeling_cnnrnn.hub.push.write_model_card", short_card)
    trained, repository = tmp_path / "trained", tmp_path / "repository"
    model.save_pretrained(trained)
    tiny_processor.save_pretrained(trained)
    repository.mkdir()
    stage_captioner(trained, repository, "me/captioner")
    (repository / "handler.py").write_bytes((FOLDER / "handler.py").read_bytes())
    encoded = base64.b64encode(png(image)).decode()
    parameters = {"num_beams": 3, "num_return_sequences": 3, "return_scores": True}
    requests = [{"inputs": encoded}, {"inputs": [encoded, encoded], "parameters": parameters}]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    words = ["-P", "-c", CLIENT, ROOT / "tests"]
    served = run_python(*words, cwd=repository, env=environment, stdin=json.dumps(requests))
    assert served.returncode == 0, served.stderr
    one, several = json.loads(served.stdout.splitlines()[-1])
    assert one == pipe(image)
    expected = pipe(image, num_return_sequences=3, return_scores=True, generate_kwargs={"num_beams": 3})
    assert len(several) == 2
    for sentences in several:
        assert [s["generated_text"] for s in sentences] == [s["generated_text"] for s in expected]
        assert [s["score"] for s in sentences] == pytest.approx([s["score"] for s in expected], abs=1e-4)


@pytest.mark.parametrize("kind", ["image", "bytes", "base64", "base64 in lines", "data URI"])
def test_an_image_comes_in_many_forms(handler, pipe, image, kind):
    encoded = base64.b64encode(png(image)).decode()
    forms = {
        "image": image,
        "bytes": png(image),
        "base64": encoded,
        "base64 in lines": base64.encodebytes(png(image)).decode(),
        "data URI": f"data:image/png;base64,{encoded}",
    }
    assert handler({"inputs": forms[kind]}) == pipe(image)
    assert handler({"inputs": [forms[kind]]}) == [pipe(image)]


def test_a_url_is_downloaded_from_public_addresses_alone_and_waited_for_a_while(handler, pipe, image, monkeypatch):
    calls = []

    def download(url, timeout, allow_private_addresses):
        calls.append((url, timeout, allow_private_addresses))
        return png(image)

    monkeypatch.setattr(sys.modules["modeling_cnnrnn.models.image_loading_cnnrnn"], "download", download)
    assert handler({"inputs": "https://example.com/cat.png"}) == pipe(image)
    assert calls == [("https://example.com/cat.png", 10, False)]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254"])
def test_what_only_this_machine_can_reach_is_refused(handler, host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("it connects"))
    with pytest.raises(OSError, match="its host is at a private address"):
        handler({"inputs": f"http://{host}/latest/meta-data"})


def test_parameters_are_those_of_the_pipeline_and_of_generate(handler, pipe, image):
    expected = pipe(image, prompt="a dog", max_new_tokens=2, generate_kwargs={"num_beams": 2, "length_penalty": 0.0})
    flat = {"prompt": "a dog", "max_new_tokens": 2, "num_beams": 2, "length_penalty": 0.0}
    assert handler({"inputs": image, "parameters": flat}) == expected
    nested = {"prompt": "a dog", "max_new_tokens": 2, "generate_kwargs": {"num_beams": 2, "length_penalty": 0.0}}
    assert handler({"inputs": image, "parameters": nested}) == expected
    assert expected != pipe(image)


def test_what_is_sent_is_left_as_it_is(handler, image):
    data = {"inputs": image, "parameters": {"num_beams": 2}}
    assert handler(data) == handler(data)
    assert data == {"inputs": image, "parameters": {"num_beams": 2}}


def test_files_of_the_machine_are_not_opened(handler, image, tmp_path):
    (tmp_path / "cat.png").write_bytes(png(image))
    for path in (str(tmp_path / "cat.png"), f"file://{tmp_path}/cat.png", "cat"):
        with pytest.raises(ValueError, match=r"`inputs`.*base64 or a URL|is not an image"):
            handler({"inputs": path})


@pytest.mark.parametrize("place", ["parameters", "generate_kwargs"])
def test_no_code_is_loaded_by_a_request(handler, image, place):
    parameters = {"custom_generate": "somebody/code"}
    if place == "generate_kwargs":
        parameters = {"generate_kwargs": parameters}
    with pytest.raises(ValueError, match="`parameters` holds 'custom_generate'"):
        handler({"inputs": image, "parameters": parameters})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "`inputs` is missing"),
        ({"inputs": 3}, "`inputs` holds a int"),
        ({"inputs": []}, "`inputs` is an empty list"),
        ({"inputs": "\x1b[31m" + "!" * 10**6}, r"^`inputs` holds '\\x1b\[31m!{55}', no image"),
        ({"inputs": b"no image"}, r"`inputs` \(8 bytes\) is not an image"),
        ({"inputs": base64.b64encode(b"no image").decode()}, r"`inputs` \(8 bytes\) is not an image"),
    ],
)
def test_mistakes_are_told_in_one_sentence(handler, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        handler(data)
