"""Loading a captioner with the code of its repository, by somebody without the package, and with the package."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import transformers
from support import hub_user
from support.hub_client import client_of, files_of
from support.paths import TRAVELLING
from support.repositories import fork_jobs, make_model, make_processor, save
from support.tiny_models import ATTENTION_TYPES, IMAGE_INJECTIONS, RNN_TYPES

from modeling_cnnrnn import (
    ImageToTextPipeline,
    pipeline,
)


# each layer with each attention, the ways of the image in turn
VARIANTS = {
    "-".join(names): names
    for names in ((*pair, IMAGE_INJECTIONS[n % 4]) for n, pair in enumerate(product(RNN_TYPES, ATTENTION_TYPES)))
}


# --- loading, without the package -----------------------------------------------------------------------------------

TRUSTED = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def variants(shared_hub, tmp_path_factory) -> dict[str, str]:
    """Each decoder on a branch of `me/variants`, saved with `save_pretrained` alone, and the sentence that it writes."""
    sentences = {}
    for branch, names in VARIANTS.items():
        options = dict(zip(("rnn_type", "attention_type", "image_injection"), names, strict=True))
        model = make_model(**options, num_hidden_layers=1 + len(sentences) % 2)
        folder = save(tmp_path_factory.mktemp("variant"), model)
        sentences[branch] = hub_user.write(model, make_processor())
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        shared_hub.create_repository("model", "me/variants", files, branch=branch)
    return sentences


@pytest.fixture(scope="module")
def stranger_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stranger")


@pytest.fixture(scope="module")
def stranger(shared_hub, pushed, variants, stranger_home) -> dict:
    """What came of everything that somebody without the package did."""
    jobs = {
        "auto classes": ["auto_classes", {"repository": "me/cat", **TRUSTED}],
        "an older revision": ["auto_classes", {"repository": "me/cat", "revision": pushed.first, **TRUSTED}],
        "image-to-text": ["piped", {"task": "image-to-text", "repository": "me/cat", **TRUSTED}],
        "task of the config": ["piped", {"task": None, "repository": "me/cat", **TRUSTED}],
        "image-text-to-text": [
            "piped",
            {"task": "image-text-to-text", "repository": "me/cat", "call": {"text": ""}, **TRUSTED},
        ],
        "variants": ["each_branch", {"repository": "me/variants", "branches": list(variants), **TRUSTED}],
        "saving": ["save_again", {"repository": "me/cat", "model": "me/again", "pipe": "me/pipe"}],
        "model saved again": ["auto_classes", {"repository": "me/again", **TRUSTED}],
        "piped from a model saved again": ["piped", {"task": "image-to-text", "repository": "me/again", **TRUSTED}],
        "pipeline saved again": ["piped", {"task": "image-to-text", "repository": "me/pipe", **TRUSTED}],
        "untrusted pipeline": ["piped", {"task": "image-to-text", "repository": "me/cat"}],
    }
    for auto in ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor"):
        jobs[f"untrusted {auto}"] = ["load", {"auto": auto, "repository": "me/cat"}]
    return fork_jobs(shared_hub, stranger_home, jobs)


@pytest.mark.parametrize("job", ["auto classes", "model saved again"])
def test_auto_classes_load_remote_code(stranger, pushed, job):
    assert stranger[job] == {
        "sentence": pushed.sentence,
        "sentence of the parts": pushed.sentence,
        "same weights": True,
        "classes": ["CnnRnnConfig", "CnnRnnProcessor", "CnnRnnForConditionalGeneration", "CnnRnnModel"],
        "modules": ["transformers_modules"] * 4,
    }


@pytest.mark.parametrize(
    "job", ["image-to-text", "task of the config", "piped from a model saved again", "pipeline saved again"]
)
def test_pipelines_load_remote_code(stranger, pushed, job):
    assert stranger[job] == ["transformers_modules", [{"generated_text": pushed.sentence}]]


def test_the_pipeline_of_transformers_takes_an_empty_text(stranger, pushed):
    expected = [{"input_text": "", "generated_text": pushed.sentence}]
    assert stranger["image-text-to-text"] == ["transformers", expected]


def test_a_pinned_revision_is_loaded(stranger, pushed):
    assert stranger["an older revision"]["sentence"] == pushed.first_sentence


def test_every_decoder_is_loaded_as_remote_code(stranger, variants):
    assert stranger["variants"] == variants
    assert len(set(variants.values())) > len(variants) // 2


@pytest.mark.parametrize("name", ["me/again", "me/pipe"])
def test_what_is_saved_again_stands_on_its_own(stranger, shared_hub, name):
    files = files_of(shared_hub, name)
    for path, content in files.items():
        if path.endswith("config.json"):
            assert b"me/cat--" not in content, path
    assert {path for path in files if path.endswith(".py")} == {path.name for path in TRAVELLING}


@pytest.mark.parametrize(
    "what", ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "pipeline"]
)
def test_nothing_runs_without_trust(stranger, what):
    error = stranger[f"untrusted {what}"]["error"]
    assert error.startswith("ValueError: The repository me/cat contains custom code")
    assert "trust_remote_code=True" in error


def test_what_was_loaded_once_is_loaded_offline(stranger, shared_hub, stranger_home, pushed):
    jobs = {
        "auto classes": ["auto_classes", {"repository": "me/cat", **TRUSTED}],
        "older": ["auto_classes", {"repository": "me/cat", "revision": pushed.first, **TRUSTED}],
        "pipe": ["piped", {"task": "image-to-text", "repository": "me/cat", **TRUSTED}],
        "never loaded": ["load", {"auto": "AutoConfig", "repository": "me/never", **TRUSTED}],
    }
    calls = shared_hub.calls.total()
    offline = fork_jobs(shared_hub, stranger_home, jobs, HF_HUB_OFFLINE="1")
    assert shared_hub.calls.total() == calls
    assert offline["auto classes"] == stranger["auto classes"]
    assert offline["older"] == stranger["an older revision"]
    assert offline["pipe"] == stranger["image-to-text"]
    assert "OSError" in offline["never loaded"]["error"]


# --- loading, with the package --------------------------------------------------------------------------------------


@pytest.fixture
def owner(shared_hub, pushed, tmp_path) -> Iterator[pytest.MonkeyPatch]:
    """Somebody who has the package, and an empty cache."""
    with client_of(shared_hub, tmp_path / "home") as patch:
        patch.setattr(transformers.pipelines.logger, "warning_once", lambda *args: None)
        yield patch


def test_auto_classes_need_no_remote_code_with_the_package(owner, pushed):
    assert hub_user.auto_classes("me/cat") == {
        "sentence": pushed.sentence,
        "sentence of the parts": pushed.sentence,
        "same weights": True,
        "classes": ["CnnRnnConfig", "CnnRnnProcessor", "CnnRnnForConditionalGeneration", "CnnRnnModel"],
        "modules": ["modeling_cnnrnn"] * 4,
    }
    assert hub_user.auto_classes("me/cat", revision=pushed.first)["sentence"] == pushed.first_sentence


def test_pipelines_need_no_remote_code_with_the_package(owner, pushed):
    expected = [{"generated_text": pushed.sentence}]
    assert pipeline("image-to-text", model="me/cat")(hub_user.picture()) == expected
    for task, options in (
        ("image-to-text", {"pipeline_class": ImageToTextPipeline}),
        ("image-captioning", {}),
    ):
        assert hub_user.piped(task, "me/cat", **options) == ["modeling_cnnrnn", expected]
    (record,) = hub_user.piped("image-text-to-text", "me/cat", {"text": ""})[1]
    assert record["generated_text"] == pushed.sentence
