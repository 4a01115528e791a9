"""`train_classifier.py`, run as it stands on a few pictures: what it writes, that it resumes, what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.example_scripts import command, run
from support.tiny_training import losses, weights
from transformers import AutoModelForImageClassification, pipeline

from modeling_cnnrnn.training.muon import Muon


CLASSES = ("blue", "green", "red")
CONVNET = {"model_type": "convnet", "layers": [{"channels": 8, "pool_size": 2}, {"channels": 8}]}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
TINY = {
    "model_config": json.dumps(CONVNET),
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "max_shift": 1,
    "save_total_limit": 9,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Eight noisy pictures of each of three colors, and three more of each to evaluate on."""
    folder = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("validation", 3)):
        for channel, name in enumerate(reversed(CLASSES)):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def train(pictures: Path, output_dir: Path, **options) -> None:
    run("train_classifier", **TINY | {"dataset_name": pictures, "output_dir": output_dir} | options)


@pytest.fixture(scope="module")
def classifier(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "classifier"
    train(pictures, folder, num_train_epochs=4)
    return folder


def test_training_ends_with_a_folder_that_a_pipeline_loads(classifier, pictures):
    answers = pipeline("image-classification", model=str(classifier))(str(pictures / "validation/red/0.png"))
    assert {answer["label"] for answer in answers} == set(CLASSES)
    assert answers[0]["label"] == "red"


def test_the_evaluation_is_that_of_the_best_checkpoint_class_by_class(classifier):
    results = json.loads((classifier / "training_results.json").read_text())
    evaluation = json.loads((classifier / "evaluation/eval_results.json").read_text())
    matrix = torch.tensor(evaluation["confusion_matrix"])
    assert evaluation["classes"] == list(CLASSES)
    assert matrix.sum(1).tolist() == [3, 3, 3]
    assert matrix.trace().item() / 9 == pytest.approx(evaluation["accuracy"])
    assert evaluation["accuracy"] == pytest.approx(results["best"]["accuracy"])
    assert evaluation["accuracy"] == max(row["accuracy"] for row in results["evaluations"])
    assert [row["recall"] for row in evaluation["per_class"]] == pytest.approx((matrix.diag() / 3).tolist())
    assert Image.open(classifier / "confusion_matrix.png").width > 300


def test_a_training_that_was_stopped_goes_on_bit_by_bit(classifier, pictures, tmp_path, monkeypatch):
    """In the middle of an epoch, of augmentation and of momentum, two steps after its last checkpoint."""
    step, calls = Muon.step, []

    def killed(*args, **kwargs):
        calls.append(0)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Muon, "step", killed)
        with pytest.raises(SystemExit, match="resume_from_checkpoint latest"):
            train(pictures, tmp_path, num_train_epochs=4, save_steps=8)
    train(pictures, tmp_path, num_train_epochs=4, save_steps=8, resume_from_checkpoint="latest")
    assert losses(tmp_path) == losses(classifier)
    last = [weights(folder / "checkpoint-24") for folder in (tmp_path, classifier)]
    assert all(torch.equal(last[0][name], tensor) for name, tensor in last[1].items())


@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adamw", "adadelta"])
def test_each_optimizer_lowers_the_loss_of_any_cnn(pictures, tmp_path, optimizer):
    options = {"optimizer": optimizer, "model_config": json.dumps(CONVNEXT), "num_train_epochs": 8, "eval_epochs": 8}
    if optimizer == "muon":  # its rates of the classifier are for logits that are divided
        options |= {"learning_rate": 0.02, "classifier_learning_rate": 1e-3, "bias_learning_rate": 1e-3}
    if optimizer == "adadelta":
        options["learning_rate"] = 20
    train(pictures, tmp_path, **options)
    rows = losses(tmp_path)
    assert sum(rows[-9:-1]) < sum(rows[:8]) - 0.1


def test_a_pretrained_classifier_keeps_its_head_for_its_own_classes(classifier, pictures, tmp_path):
    options = {"model_name_or_path": classifier, "max_train_steps": 1, "learning_rate": 0, "eval_epochs": 9}
    options |= {"bias_learning_rate": 0, "classifier_learning_rate": 0, "optimizer": "sgd"}
    arguments = {name: value for name, value in TINY.items() if name != "model_config"}
    run("train_classifier", dataset_name=pictures, output_dir=tmp_path, **arguments | options)
    before, after = (AutoModelForImageClassification.from_pretrained(folder) for folder in (classifier, tmp_path))
    assert torch.equal(before.classifier.weight, after.classifier.weight)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_size": 2}, "`model_config` cannot be used: `image_size` is 2: these layers take pictures of 3 to"),
        ({"image_size": 7, "model_config": '{"model_type": "resnet"}'}, "come to 32: pass 32 or more"),
        ({"learning_rate": 1e38, "max_train_steps": 20}, "The loss is nan at step"),
        ({"label_column": "kind"}, "`label_column` is `kind`, but the columns are `image`, `label`"),
        ({"max_shift": 16}, "`max_shift` is 16, but the pictures have 16 pixels"),
        ({"model_config": '{"layers": 3}'}, "`model_config` is"),
        ({"model_config": "{"}, "`model_config` is '{': pass JSON such as"),
        ({"num_validation_images": 3}, "leave one of the two out"),
        ({"label_smoothing": 1}, "`label_smoothing` is 1"),
    ],
)
def test_a_mistake_is_explained_in_a_sentence(pictures, tmp_path, options, sentence):
    with pytest.raises(SystemExit) as error:
        train(pictures, tmp_path, **options)
    assert sentence in str(error.value)


def test_pictures_that_cannot_be_read_and_classes_without_any_are_named(pictures, tmp_path, caplog):
    shutil.copytree(pictures, tmp_path / "pictures")
    for path in (tmp_path / "pictures/train/red").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    Image.new("L", (16, 16)).save(tmp_path / "pictures/train/blue/grey.png")
    train(tmp_path / "pictures", tmp_path / "out", max_train_steps=1, eval_epochs=9)
    assert "Left out of the training images: images that cannot be read (8): `red/0.png" in caplog.text
    assert "1 of 3 classes have no image to train on: `red`." in caplog.text
    broken = json.loads((tmp_path / "out/training_results.json").read_text())["broken_images"]
    assert len(broken) == 8


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(pictures, tmp_path):
    options = TINY | {"dataset_name": pictures, "num_train_epochs": 2, "optimizer": "sgd", "ema_decay": 0.5}
    options |= {"model_config": json.dumps(CONVNEXT), "max_train_samples": 22}
    run("train_classifier", output_dir=tmp_path / "one", **options | {"per_device_train_batch_size": 8})
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += command("train_classifier", output_dir=tmp_path / "two", **options)
    finished = subprocess.run(
        words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
