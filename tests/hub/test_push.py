"""Pushing: a whole repository in one commit or nothing, also over a bad connection."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from support.example_scripts import run
from support.hub_client import TOKEN, files_of, history
from support.paths import ROOT, TRAVELLING
from support.repositories import CNN
from transformers import ResNetConfig

from modeling_cnnrnn import (
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
    build_tokenizer,
)
from modeling_cnnrnn.hub.push import push_captioner
from modeling_cnnrnn.models import pipeline_cnnrnn


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
    client.setattr(pipeline_cnnrnn, "CUSTOM_PIPELINES", {"image-to-text": {"impl": "pipeline_cnnrnn.Nothing"}})
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
        (half_the_weights, "lack 1 that the model needs ('lm_head.bias')"),
        (other_tokenizer, "has the token 102 and config.json a `vocab_size` of 20"),
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
