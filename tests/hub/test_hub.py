"""The Hub: pushing, loading in every way with and without the package, faults on the wire, and datasets."""

import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from support import hub_user, local_hub
from support.example_scripts import run
from support.local_hub import LocalHub
from support.paths import ROOT, TRAVELLING
from support.repositories import CNN, fork_jobs, make_model, make_processor, save
from support.tiny_models import ATTENTION_TYPES, IMAGE_INJECTIONS, RNN_TYPES
from transformers import AutoModelForImageTextToText, ResNetConfig

from modeling_cnnrnn import (
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
    ImageToTextPipeline,
    build_tokenizer,
    pipeline,
)
from modeling_cnnrnn.data.batching import load_stored_image
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.hub import push as pushing
from modeling_cnnrnn.hub.push import push_captioner, stage_captioner


TOKEN = "hf_" + "abcdefghij" * 3  # as long as a real one
VARIANTS = {"-".join(names): names for names in product(RNN_TYPES, ATTENTION_TYPES, IMAGE_INJECTIONS)}


def short_card(folder, repo_id=None, output_dir=None, **options) -> Path:
    """In place of the card that runs what it shows."""
    path = Path(output_dir) / "README.md"
    path.write_text("---\nlibrary_name: transformers\npipeline_tag: image-to-text\n---\n")
    return path


@contextmanager
def client_of(hub: LocalHub, folder: Path, token: str = "hf_local") -> Iterator[pytest.MonkeyPatch]:
    """This process as a client of the hub, with caches of its own; `HF_ENDPOINT` is only read when a process starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(folder / "hub"),
        }.items():
            patch.setattr(constants, name, value)
        patch.setattr(transformers.utils.hub, "_hf_api", None)  # it knows the hub that it was made for
        # the code of repositories is a package, which has one place in a process
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            patch.delitem(sys.modules, name)
        paths = [path for path in sys.path if not (Path(path) / "transformers_modules").exists()]
        patch.setattr(sys, "path", paths)
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.setenv("HF_TOKEN", token)
        patch.syspath_prepend(ROOT)
        yield patch


def files_of(hub: LocalHub, name: str, revision: str = "main") -> dict[str, bytes]:
    _, files = hub.store.files("model", name, revision)
    return {path: hub.store.blob(file["sha256"]).read_bytes() for path, file in files.items()}


def history(hub: LocalHub, name: str) -> list[str]:
    """Messages of the commits, newest first."""
    repository = hub.store.load("model", name)
    commit, messages = repository["branches"]["main"], []
    while commit:
        messages.append(repository["commits"][commit]["message"])
        commit = repository["commits"][commit]["parent"]
    return messages


local_hub.TOKENS[TOKEN] = "write"


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(tmp_path) -> Iterator[LocalHub]:
    """An empty one."""
    with LocalHub(tmp_path / "repositories") as hub:
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("trained") / "cat", make_model(attention_type="additive"))


@pytest.fixture
def client(hub, tmp_path) -> Iterator[pytest.MonkeyPatch]:
    """This process is a client of the hub, waits are written down in `client.waits`, and cards are short."""
    with client_of(hub, tmp_path / "home") as patch:
        waits: list[float] = []
        patch.setattr(time, "sleep", waits.append)
        patch.setattr("modeling_cnnrnn.hub.push.write_model_card", short_card)
        yield SimpleNamespace(waits=waits, setattr=patch.setattr, setenv=patch.setenv, delenv=patch.delenv)


@pytest.fixture(scope="module")
def staged(trained, shared_hub, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("staged")
    with client_of(shared_hub, tmp_path_factory.mktemp("home")) as patch:
        patch.setattr("modeling_cnnrnn.hub.push.write_model_card", short_card)
        stage_captioner(trained, folder, "me/cat")
    return folder


@pytest.fixture
def push_staged(client, staged):
    """`push_staged(repo_id)`: push a repository that lies ready."""
    client.setattr(
        pushing, "stage_captioner", lambda folder, target, *a, **k: shutil.copytree(staged, target, dirs_exist_ok=True)
    )
    return lambda repo_id, **options: push_captioner("ready", repo_id, **options)


@pytest.fixture(scope="module")
def pushed(shared_hub, tmp_path_factory) -> SimpleNamespace:
    """
    `me/cat`: another captioner in its first commit; in the second one that the scripts have trained and evaluated, with
    its whole card.
    """
    folder = tmp_path_factory.mktemp("pushed")
    other = make_model(seed=1)
    save(folder / "other", other)
    pictures = {"dataset_name": folder / "pictures"}
    build_shapes(num_train=16, num_validation=4, num_test=4, image_size=32).save_to_disk(folder / "pictures")
    options = {
        "encoder_config": json.dumps({"model_type": "resnet", **CNN}),
        "image_size": 32,
        "attention_type": "additive",
    }
    sizes = dict.fromkeys(("hidden_size", "embedding_size", "attention_size"), 16)
    trained = folder / "trained"
    run("train_captioner", output_dir=trained, max_train_steps=2, min_frequency=1, **pictures, **options, **sizes)
    evaluation = {"model_name_or_path": trained, "split": "test", "output_dir": trained / "evaluation"}
    run("evaluate_captioner", **pictures, **evaluation)
    # two steps teach nobody to write: weights whose sentences depend on them, and what nobody else should read
    model = CnnRnnForConditionalGeneration.from_pretrained(trained)
    for parameter in model.lm_head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    model.generation_config.update(max_length=8, suppress_tokens=[0, 1, 2, 3])
    model.save_pretrained(trained)
    training = json.loads((trained / "training_results.json").read_text())
    training["training"] |= {"hub_token": TOKEN, "output_dir": "/home/alice/cat"}
    (trained / "training_results.json").write_text(json.dumps(training))
    results = json.loads((trained / "evaluation" / "eval_results.json").read_text())
    results["protocol"]["command"] += f" --hub_token {TOKEN} --image_dir /home/alice/photographs"
    (trained / "evaluation" / "eval_results.json").write_text(json.dumps(results))
    with client_of(shared_hub, folder / "home", TOKEN) as patch:
        with patch.context() as shorter:
            shorter.setattr("modeling_cnnrnn.hub.push.write_model_card", short_card)
            first = push_captioner(folder / "other", "me/cat", max_shard_size="8KB")
        # what the card shows of code is run in its own tests
        patch.setattr("modeling_cnnrnn.hub.model_card.run_uses", lambda *args: {"uses": [], "grey": ""})
        second = push_captioner(trained, "me/cat", card={"license": "apache-2.0"})
    sentences = [
        hub_user.write(other, make_processor()),
        hub_user.write(model, CnnRnnProcessor.from_pretrained(trained)),
    ]
    assert min(len(sentence.split()) for sentence in sentences) > 3
    return SimpleNamespace(first=first.oid, second=second.oid, first_sentence=sentences[0], sentence=sentences[1])


# --- pushing --------------------------------------------------------------------------------------------------------


def test_a_push_is_a_whole_repository_in_one_commit(shared_hub, pushed):
    files = files_of(shared_hub, "me/cat")
    card = {name for name in files if name.startswith("card/")}
    assert files.keys() - card == {
        *(".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
        *(path.name for path in TRAVELLING),
        *("training_results.json", "evaluation/eval_results.json"),
    }
    assert "card/training_curves.png" in card
    assert history(shared_hub, "me/cat") == ["Upload captioner", "Upload captioner", "initial commit"]
    config = json.loads(files["config.json"])
    assert config["auto_map"] == {
        "AutoConfig": "configuration_cnnrnn.CnnRnnConfig",
        "AutoModel": "modeling_cnnrnn.CnnRnnModel",
        "AutoModelForImageTextToText": "modeling_cnnrnn.CnnRnnForConditionalGeneration",
    }
    assert config["custom_pipelines"].keys() == {"image-to-text"}
    assert "license: apache-2.0" in files["README.md"].decode()


def test_large_weights_come_in_several_files_and_old_ones_go(shared_hub, pushed):
    first, second = files_of(shared_hub, "me/cat", pushed.first), files_of(shared_hub, "me/cat", pushed.second)
    shards = {name for name in first if name.endswith(".safetensors")}
    assert len(shards) > 2
    assert shards == set(json.loads(first["model.safetensors.index.json"])["weight_map"].values())
    assert not (shards | {"model.safetensors.index.json"}) & second.keys()


def test_the_server_was_asked_nothing_that_it_does_not_know(shared_hub, pushed):
    assert [request for request in shared_hub.unknown if "agent-harnesses" not in request] == []


def test_no_token_and_no_home_is_in_any_file(shared_hub, pushed):
    for name, content in files_of(shared_hub, "me/cat").items():
        assert TOKEN.encode() not in content, name
        assert b"/home/alice" not in content, name
        assert str(ROOT).encode() not in content, name
    assert json.loads(files_of(shared_hub, "me/cat")["training_results.json"])["training"]["learning_rate"] == 8e-4


def test_a_file_with_the_token_in_it_is_not_sent(hub, trained, client, tmp_path):
    client.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "cat"
    shutil.copytree(trained, folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"][TOKEN] = words["model"]["vocab"].pop("dog")
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"tokenizer\.json holds your token, and nothing is pushed") as stop:
        push_captioner(folder, "me/cat")
    assert TOKEN not in str(stop.value)
    assert hub.store.names("model") == []


def test_the_script_says_where_the_captioner_is_and_no_token(hub, trained, client, capsys):
    client.delenv("HF_TOKEN")
    run(
        "push_to_hub",
        **{"model_name_or_path": trained, "repo_id": "me/script", "hub_token": TOKEN, "hub_private_repo": True},
        **{"hub_revision": "candidate", "commit_message": "Here it is"},
    )
    printed = capsys.readouterr()
    assert f"{hub.url}/me/script" in printed.out
    assert TOKEN not in printed.out + printed.err
    assert hub.store.load("model", "me/script")["private"]
    assert "config.json" in files_of(hub, "me/script", "candidate")
    assert "config.json" not in files_of(hub, "me/script")


def test_a_private_captioner_is_not_there_without_a_token(push_staged, client, tmp_path):
    push_staged("me/private", private=True)
    assert CnnRnnProcessor.from_pretrained("me/private").tokenizer.vocab_size == 20
    client.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="private or gated repo"):
        CnnRnnProcessor.from_pretrained("me/private", cache_dir=tmp_path)


def test_what_is_public_is_not_taken_for_private(hub, push_staged):
    push_staged("me/public")
    with pytest.raises(ValueError, match="`private` is True, but 'me/public' is public"):
        push_staged("me/public", private=True)


def test_a_name_alone_is_one_of_the_user(hub, push_staged):
    push_staged("alone")
    assert "config.json" in files_of(hub, "me/alone")


def test_a_repository_that_does_not_load_is_not_sent(hub, trained, client):
    client.setattr(pushing, "CUSTOM_PIPELINES", {"image-to-text": {"impl": "pipeline_cnnrnn.Nothing"}})
    with pytest.raises(ValueError, match=r"does not load, and is not pushed: .*Nothing"):
        push_captioner(trained, "me/broken")
    assert "me/broken" not in hub.store.names("model")


def test_code_that_writes_other_sentences_is_not_sent(hub, trained, client):
    save_pretrained = CnnRnnProcessor.save_pretrained

    def with_other_code(self, folder):
        save_pretrained(self, folder)
        code = folder / "processing_cnnrnn.py"  # with a mistake that no import notices
        code.write_text(code.read_text().replace('[" ".join(', '["never " + " ".join('))

    client.setattr(CnnRnnProcessor, "save_pretrained", with_other_code)
    with pytest.raises(ValueError, match=r"writes .*never.* and not"):
        push_captioner(trained, "me/other")
    assert hub.store.names("model") == []


def empty(folder: Path) -> None:
    (folder / "config.json").unlink()


def another_model(folder: Path) -> None:
    ResNetConfig(**CNN).save_pretrained(folder)


def no_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_the_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "lm_head.bias"}, folder / "model.safetensors", {"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    words = " ".join(f"word{number}" for number in range(99))
    build_tokenizer([words], min_frequency=1).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (empty, "holds no captioner"),
        (another_model, "a model of type 'resnet', no captioner"),
        (no_processor, "holds no processor"),
        (no_tokenizer, "holds no processor"),
        (no_weights, "model.safetensors"),
        (half_the_weights, "whose weights are not complete (lm_head.bias"),
        (other_tokenizer, "whose tokenizer has 103 words and whose model has 20"),
    ],
)
def test_what_is_no_whole_captioner_is_refused(hub, trained, client, tmp_path, damage, sentence):
    folder = tmp_path / "cat"
    shutil.copytree(trained, folder)
    damage(folder)
    with pytest.raises(SystemExit) as stop:
        run("push_to_hub", model_name_or_path=folder, repo_id="me/damaged")
    assert re.fullmatch(r"Error: [^\n]+", stop.value.code)
    assert sentence in stop.value.code
    assert "me/damaged" not in hub.store.names("model")


@pytest.mark.parametrize(
    ("repo_id", "token", "sentence"),
    [
        ("me/my cat", "hf_local", "`repo_id` is 'me/my cat': pass 'user/name'"),
        ("me/cats/black", "hf_local", "`repo_id` is 'me/cats/black': pass 'user/name'"),
        ("me/new", "", "There is no token: run `hf auth login`"),
        ("me/new", "hf_unknown", "does not know the token"),
        ("me/new", "hf_read", "`repo_id` is 'me/new', where the token may not write"),
        ("you/new", "hf_local", "`repo_id` is 'you/new', where the token may not write"),
    ],
)
def test_who_may_not_push_is_told_in_one_sentence(hub, push_staged, client, repo_id, token, sentence):
    client.setenv("HF_TOKEN", token)
    client.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    with pytest.raises((ValueError, PermissionError)) as stop:
        push_staged(repo_id)
    assert sentence in str(stop.value)
    assert "\n" not in str(stop.value)


# --- pushing over a bad connection ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("GET /api/whoami-v2", {"status": 503}),
        ("POST /api/repos/create", {"status": 500}),
        ("POST /api/validate-yaml", {"status": 502}),
        ("POST .*/preupload/", {"status": 500}),
        ("POST .*/objects/batch", {"cut": "answer"}),
        ("PUT /_lfs/", {"status": 500, "times": 2}),
        ("PUT /_lfs/", {"cut": "request"}),
        ("PUT /_lfs/", {"is_damaged": True}),
        ("POST .*/commit/main", {"status": 500, "times": 2}),
        ("POST .*/commit/main", {"cut": "request"}),
        ("POST .*/commit/main", {"cut": "answer"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_a_push_gets_over(hub, push_staged, staged, request_, fault):
    happened = hub.fail(request_, **fault)
    push_staged("me/cat")
    assert happened.times == 0
    assert history(hub, "me/cat") == ["Upload captioner", "initial commit"]
    assert files_of(hub, "me/cat")["model.safetensors"] == (staged / "model.safetensors").read_bytes()


def test_a_push_waits_as_long_as_the_hub_asks(hub, push_staged, client):
    hub.fail("POST .*/commit/main", status=429, retry_after=37)
    hub.fail("PUT /_lfs/", status=429, retry_after=41)
    push_staged("me/cat")
    assert [wait for wait in client.waits if wait > 30] == [42, 37]  # huggingface_hub adds a second


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("PUT /_lfs/", {"status": 503}),
        ("PUT /_lfs/", {"cut": "request"}),
        ("PUT /_lfs/", {"is_damaged": True}),
        ("POST .*/commit/main", {"status": 500}),
        ("POST .*/commit/main", {"status": 413}),
    ],
)
def test_a_push_that_fails_leaves_nothing_and_is_taken_up_again(hub, push_staged, client, request_, fault):
    fault = hub.fail(request_, times=1000, **fault)
    with pytest.raises(OSError, match=r"'me/cat' could not be pushed \(.*\): nothing has changed there") as stop:
        push_staged("me/cat")
    assert "\n" not in str(stop.value)
    assert history(hub, "me/cat") == ["initial commit"]
    fault.times, before = 0, hub.calls["PUT lfs_upload"]
    push_staged("me/cat")
    assert history(hub, "me/cat") == ["Upload captioner", "initial commit"]
    assert hub.calls["PUT lfs_upload"] - before == ("lfs" in request_)


def test_a_hub_that_is_not_there_is_told_in_one_sentence(push_staged, client):
    client.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"'me/cat' could not be pushed \(.*refused.*\)"):
        push_staged("me/cat")


def test_a_disk_that_is_full_stops_a_push_before_anything_is_sent(hub, trained, client):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    client.setattr(CnnRnnForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(SystemExit, match=r"Error: .*No space left on device"):
        run("push_to_hub", model_name_or_path=trained, repo_id="me/cat")
    assert hub.store.names("model") == []


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


# --- loading over a bad connection ----------------------------------------------------------------------------------


def load_both(name: str) -> str:
    processor = CnnRnnProcessor.from_pretrained(name)
    return hub_user.write(CnnRnnForConditionalGeneration.from_pretrained(name), processor)


@pytest.fixture
def cat(hub, staged, client, tmp_path) -> SimpleNamespace:
    """A captioner on a hub of its own, with a name of its own: transformers remembers the commits of names."""
    files = {path.relative_to(staged).as_posix(): path.read_bytes() for path in staged.rglob("*") if path.is_file()}
    name = "me/" + re.sub(r"[\W_]+", "-", tmp_path.name)
    hub.create_repository("model", name, files)
    sentence = hub_user.write(CnnRnnForConditionalGeneration.from_pretrained(staged), make_processor())
    return SimpleNamespace(name=name, sentence=sentence)


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("GET .*/resolve/.*/model.safetensors", {"cut": "answer", "times": 3}),
        ("GET .*/resolve/.*/tokenizer.json", {"cut": "answer"}),
        ("GET .*/resolve/.*/model.safetensors", {"status": 429, "retry_after": 5}),
        ("GET .*/resolve/.*/model.safetensors", {"status": 500, "times": 3}),
        ("HEAD .*/resolve/.*/model.safetensors", {"status": 500, "times": 2}),
        ("GET .*/resolve/.*/config.json", {"status": 503}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_loading_gets_over(hub, cat, request_, fault):
    happened = hub.fail(request_, **fault)
    assert load_both(cat.name) == cat.sentence
    assert happened.times == 0


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("GET .*/resolve/.*/model.safetensors", {"status": 500}),
        ("GET .*/resolve/.*/model.safetensors", {"cut": "answer"}),
        ("GET .*/resolve/.*/tokenizer.json", {"status": 503}),
        ("GET .*/resolve/.*/tokenizer.json", {"cut": "request"}),
        ("GET .*/tree/", {"cut": "request"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_loading_that_fails_names_the_captioner_and_is_taken_up_again(hub, cat, client, request_, fault):
    fault = hub.fail(request_, times=1000, **fault)
    with pytest.raises(OSError, match=cat.name):
        load_both(cat.name)
    fault.times = 0
    assert load_both(cat.name) == cat.sentence


def test_a_hub_that_is_out_of_order_is_waited_for_a_little(hub, cat, client):
    hub.fail("GET .*/resolve/.*/model.safetensors", times=1000, status=502)
    with pytest.raises(OSError, match=f"^'{cat.name}' cannot be loaded: the Hub answers 502; try again later.$"):
        CnnRnnForConditionalGeneration.from_pretrained(cat.name)
    assert client.waits == [1, 2, 4]


def test_what_is_not_there_is_not_waited_for(hub, client):
    with pytest.raises(OSError, match="me/nothing"):
        CnnRnnForConditionalGeneration.from_pretrained("me/nothing")
    assert client.waits == []


@pytest.mark.parametrize("branch", ["main", "sharded"])
def test_weights_that_arrive_damaged_are_refused_and_come_anew(hub, cat, staged, tmp_path, branch):
    in_shards = tmp_path / "shards"
    CnnRnnForConditionalGeneration.from_pretrained(staged).save_pretrained(in_shards, max_shard_size="8KB")
    files = [path for path in (*staged.glob("*.*"), *in_shards.glob("model*")) if path.name != "model.safetensors"]
    hub.create_repository("model", cat.name, {path.name: path.read_bytes() for path in files}, branch="sharded")
    options = {"revision": branch, "cache_dir": tmp_path / "cache"}
    num_damaged = 1 if branch == "main" else 2
    fault = hub.fail(r"GET .*/resolve/.*\.safetensors$", is_damaged=True, times=num_damaged)
    with pytest.raises(OSError, match=rf"^'{cat.name}' arrived damaged \(model.*\), .*: load it once more") as stop:
        AutoModelForImageTextToText.from_pretrained(cat.name, **options)
    assert fault.times == 0
    assert str(stop.value).count(".safetensors") == num_damaged
    blobs = [path for path in (tmp_path / "cache").rglob("blobs/*") if len(path.name) == 64]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs)
    assert all(path.exists() for path in (tmp_path / "cache").rglob("*"))
    processor = CnnRnnProcessor.from_pretrained(cat.name, **options)
    for local_files_only in (False, True):
        model = AutoModelForImageTextToText.from_pretrained(cat.name, local_files_only=local_files_only, **options)
        assert hub_user.write(model, processor) == cat.sentence


def test_remote_code_refuses_damaged_weights(hub, cat, staged, tmp_path):
    hub.create_repository("model", "me/worse", {path.name: path.read_bytes() for path in staged.glob("*.*")})
    hub.fail(f"GET /{cat.name}/resolve/.*/model.safetensors", is_damaged=True)
    hub.fail("GET /me/worse/resolve/.*/model.safetensors", is_damaged=True, times=1000)
    jobs = {
        "at first": ["load", {"auto": "AutoModelForImageTextToText", "repository": cat.name, **TRUSTED}],
        "then": ["piped", {"task": "image-to-text", "repository": cat.name, **TRUSTED}],
        "piped": ["piped", {"task": "image-to-text", "repository": "me/worse", **TRUSTED}],
    }
    came = fork_jobs(hub, tmp_path, jobs)
    assert came["at first"]["error"].startswith(f"OSError: '{cat.name}' arrived damaged (model.safetensors)")
    assert came["then"] == ["transformers_modules", [{"generated_text": cat.sentence}]]
    assert "'me/worse' arrived damaged" in came["piped"]["error"]


def test_what_lies_in_the_cache_is_not_read_to_look_for_damage(cat, client):
    expected = load_both(cat.name)
    client.setattr(hashlib, "file_digest", None)
    assert load_both(cat.name) == expected


def test_a_disk_that_is_full_is_told_and_loading_is_taken_up_again(cat, client):
    def half(url, temp_file, **options):
        temp_file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.file_download, "http_get", half)
        with pytest.raises(OSError, match="No space left on device"):
            CnnRnnForConditionalGeneration.from_pretrained(cat.name)
    assert load_both(cat.name) == cat.sentence


@pytest.mark.parametrize("missing", ["processor_config.json", "tokenizer.json", "tokenizer"])
def test_a_repository_without_a_processor_is_told_in_one_sentence(hub, staged, client, missing):
    names = [path.name for path in staged.iterdir() if path.is_file() and not path.name.startswith(missing)]
    name = f"me/without-{missing}"
    hub.create_repository("model", name, {path: (staged / path).read_bytes() for path in names})
    with pytest.raises(OSError, match=f"'{name}' holds no processor .*: pass a captioner, or save") as stop:
        CnnRnnProcessor.from_pretrained(name)
    assert "\n" not in str(stop.value)


def test_a_hub_that_does_not_answer_is_not_taken_for_a_missing_processor(hub, cat):
    hub.fail("(GET|HEAD) .*(processor_config|tokenizer)", times=1000, status=503)
    with pytest.raises(OSError, match=r"^(?!.*holds no processor)"):
        CnnRnnProcessor.from_pretrained(cat.name)


# --- datasets -------------------------------------------------------------------------------------------------------


def rows_of(splits) -> dict[str, list]:
    """Every column of every row, with the pixels of the images."""
    rows: dict[str, list] = {}
    for split, dataset in splits.items():
        rows[split] = []
        for row in dataset:
            image = load_stored_image(row.pop("image"))
            rows[split].append(row | {"pixels": image.tobytes().hex()})
    return rows


def datasets_and_training(folder: Path) -> None:
    """In a process of its own, which has the package: push datasets, load them by name, train from one."""
    image_dir = folder / "photographs" / "train"
    image_dir.mkdir(parents=True)
    for number in range(6):
        Image.linear_gradient("L").rotate(60 * number).convert("RGB").save(image_dir / f"{number}.jpg")
    lines = [{"file_name": f"{number}.jpg", "captions": ["a slope", f"turned by {60 * number}"]} for number in range(6)]
    (image_dir / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ours = {
        "me/shapes": build_shapes(num_train=16, num_validation=4, num_test=4, image_size=32),
        "me/photographs": load_caption_dataset(str(folder / "photographs")),
    }
    results: dict = {}
    for name, splits in ours.items():
        splits.push_to_hub(name, private=True)
        results[name] = {
            "pushed": rows_of(load_caption_dataset(str(folder / "photographs")) if "photo" in name else splits),
            "loaded": rows_of(load_caption_dataset(name)),
        }
    (folder / "results.json").write_text(json.dumps(results))
    options = {"dataset_name": "me/shapes", "output_dir": folder / "trained", "max_train_steps": 2, "min_frequency": 1}
    sizes = dict.fromkeys(("hidden_size", "embedding_size", "attention_size"), 16)
    encoder = json.dumps({"model_type": "resnet", **CNN})
    run("train_captioner", **options, **sizes, encoder_config=encoder, image_size=32)


@pytest.fixture(scope="module")
def from_the_server(shared_hub, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    environment = {
        **shared_hub.environment(folder / "home"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }
    completed = subprocess.run(
        [sys.executable, __file__, folder], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    return folder


@pytest.mark.parametrize("name", ["me/shapes", "me/photographs"])
def test_a_pushed_dataset_is_what_it_was(from_the_server, name):
    results = json.loads((from_the_server / "results.json").read_text())[name]
    assert {split: len(rows) for split, rows in results["loaded"].items()} == (
        {"train": 16, "validation": 4, "test": 4} if name == "me/shapes" else {"train": 6}
    )
    assert results["loaded"] == results["pushed"]


def test_a_captioner_is_trained_straight_from_the_server(from_the_server):
    model = CnnRnnForConditionalGeneration.from_pretrained(from_the_server / "trained")
    assert model.config.vocab_size == len(CnnRnnProcessor.from_pretrained(from_the_server / "trained").tokenizer)


if __name__ == "__main__":
    datasets_and_training(Path(sys.argv[1]))
