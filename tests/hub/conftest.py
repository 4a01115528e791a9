"""Captioners on their way to a Hub, and what has arrived there."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import hub_user
from support.example_scripts import run
from support.hub_client import TOKEN, client_of, short_card
from support.local_hub import LocalHub
from support.repositories import CNN, make_model, make_processor, save

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.hub import push as pushing
from modeling_cnnrnn.hub.push import push_captioner, stage_captioner


@pytest.fixture(scope="session")
def shared_hub(tmp_path_factory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(tmp_path) -> Iterator[LocalHub]:
    """An empty one."""
    with LocalHub(tmp_path / "repositories") as hub:
        yield hub


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
