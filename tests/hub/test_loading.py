"""Loading over a bad connection: it gets over, or says why and is taken up again; nothing damaged is taken."""

import errno
import hashlib
import re
from types import SimpleNamespace

import huggingface_hub
import pytest
from support import hub_user
from support.repositories import fork_jobs, make_processor
from transformers import AutoModelForImageTextToText

from modeling_cnnrnn import (
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
)


TRUSTED = {"trust_remote_code": True}


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
