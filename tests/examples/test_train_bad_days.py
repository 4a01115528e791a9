"""Trainings on bad days: foreign checkpoints, signals, pictures that cannot be drawn, weights that are not finite."""

import contextlib
import json
import logging
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.example_scripts import run
from support.tiny_training import TINY, losses, weights

from modeling_cnnrnn import CnnRnnForConditionalGeneration
from modeling_cnnrnn.files import FolderLock
from modeling_cnnrnn.training import curves
from modeling_cnnrnn.training.caption_trainer import CaptionTrainer


pytestmark = pytest.mark.usefixtures("blank_pictures")


OPTIONS = TINY | {"ema_decay": 0.9, "max_train_steps": 4, "save_steps": 2}


@pytest.fixture(scope="module")
def half(pictures, tmp_path_factory) -> Path:
    """A training of two steps with its checkpoint."""
    folder = tmp_path_factory.mktemp("half")
    run("train_captioner", dataset_name=pictures, output_dir=folder, **OPTIONS | {"max_train_steps": 2})
    return folder


@pytest.fixture
def copy(half, tmp_path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "copy"))


def resume(pictures, folder: Path, **options) -> None:
    run(
        "train_captioner",
        dataset_name=pictures,
        output_dir=folder,
        resume_from_checkpoint="latest",
        **OPTIONS | options,
    )


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint-2").iterdir() if path.is_file())


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_no_file_of_a_foreign_checkpoint_runs_code(half, pictures, tmp_path, how):
    for name in [*names(half), "custom_checkpoint_0.pkl", "scheduler.bin", "sampler.bin", "pytorch_model.bin"]:
        folder, run_by_it = Path(shutil.copytree(half, tmp_path / name)), tmp_path / f"{name}.run"
        with open(folder / "checkpoint-2" / name, "wb") as file:
            if how == "pickle":
                pickle.dump(Payload(run_by_it), file)
            else:
                torch.save({"payload": Payload(run_by_it)}, file)
        with contextlib.suppress(SystemExit):  # of one sentence
            resume(pictures, folder)
        assert not run_by_it.exists(), name


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "random_states_0.pkl", "scheduler.json", "model.safetensors", "optimizer.bin"]
)
def test_a_damaged_file_of_a_checkpoint_is_named(copy, pictures, name):
    path = copy / "checkpoint-2" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(SystemExit, match=rf"^Error: .*{name}.* resume from another checkpoint"):
        resume(pictures, copy)


def test_another_size_is_said_before_anything_is_loaded(copy, pictures):
    with pytest.raises(
        SystemExit, match=r"has `.*` of size \(.*\), and the model to train has \(.*\): resume with the sizes"
    ):
        resume(pictures, copy, hidden_size=24)


def test_another_vocabulary_of_the_same_size_is_said(copy, pictures):
    path = copy / "checkpoint-2" / "best" / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="was trained with another vocabulary"):
        resume(pictures, copy)


def test_other_options_are_said(copy, pictures, caplog):
    with caplog.at_level(logging.WARNING):
        resume(pictures, copy, learning_rate=0.5, logging_steps=2)
    (said,) = [record.message for record in caplog.records if "other options" in record.message]
    assert said.endswith(": max_train_steps 2 -> 4, learning_rate 0.0008 -> 0.5.")


def test_the_best_model_travels_with_the_checkpoint(half, pictures, tmp_path):
    run(
        "train_captioner",
        dataset_name=pictures,
        output_dir=tmp_path,
        **OPTIONS | {"resume_from_checkpoint": half / "checkpoint-2", "learning_rate": 1e-9},
    )
    assert json.loads((tmp_path / "training_results.json").read_text())["best"] is not None
    CnnRnnForConditionalGeneration.from_pretrained(tmp_path)


def test_a_picture_that_cannot_be_drawn_is_a_warning(pictures, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ValueError("no ink")

    monkeypatch.setattr(curves, "_save", fail)
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path, **OPTIONS)
    assert "The curves could not be drawn, the training goes on: no ink" in caplog.text
    assert "The evaluation could not be drawn, the training goes on: no ink" in caplog.text
    CnnRnnForConditionalGeneration.from_pretrained(tmp_path)


def test_a_checkpoint_is_saved_before_anything_is_drawn(pictures, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(CaptionTrainer, "draw", lambda trainer: seen.append(sorted(tmp_path.glob("checkpoint-*"))))
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path, **OPTIONS | {"max_train_steps": 2})
    assert seen[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_the_training_resumes_bit_by_bit(pictures, tmp_path, monkeypatch, number):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = OPTIONS | {"save_steps": 9, "eval_epochs": 9}
    run("train_captioner", dataset_name=pictures, output_dir=whole, **options)
    step, calls = torch.optim.AdamW.step, []

    def stop(*args, **kwargs):
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(SystemExit) as end:
        run("train_captioner", dataset_name=pictures, output_dir=stopped, **options)
    assert end.value.code == 128 + number
    assert sorted(path.name for path in stopped.glob("checkpoint-*")) == ["checkpoint-3"]
    run("train_captioner", dataset_name=pictures, output_dir=stopped, resume_from_checkpoint="latest", **options)
    assert losses(stopped) == losses(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(stopped)[name], tensor)


def test_a_folder_takes_one_training_at_a_time(copy, pictures):
    with FolderLock(copy, "training"), pytest.raises(SystemExit, match=r"Another training writes to .*: wait for it"):
        resume(pictures, copy)
    resume(pictures, copy)


def test_weights_that_are_not_finite_are_not_saved(copy, pictures, monkeypatch):
    good = (copy / "checkpoint-2" / "model.safetensors").read_bytes()
    kept = (copy / "best" / "model.safetensors").read_bytes()
    step = torch.optim.AdamW.step

    def diverge(optimizer, *args, **kwargs):
        result = step(optimizer, *args, **kwargs)
        optimizer.param_groups[0]["params"][0].data.fill_(torch.inf)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", diverge)
    with pytest.raises(SystemExit, match="not finite"):
        resume(pictures, copy, logging_steps=100)
    assert sorted(path.name for path in copy.glob("checkpoint-*")) == ["checkpoint-2"]
    assert (copy / "checkpoint-2" / "model.safetensors").read_bytes() == good
    assert (copy / "best" / "model.safetensors").read_bytes() == kept


def test_broken_images_of_both_splits_are_counted_and_cut_captions_said(tmp_path, caplog):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for number in range(4):
            Image.new("RGB", (32, 32), (number * 60, 90, 30)).save(tmp_path / split / f"{number}.png")
            (tmp_path / split / f"{number}.txt").write_text("a red ball lies on a white table", encoding="utf-8")
        broken = tmp_path / split / "1.png"
        broken.write_bytes(broken.read_bytes()[:60])
    options = OPTIONS | {"max_train_steps": 1, "save_steps": 1, "max_caption_length": 6}
    with caplog.at_level(logging.WARNING):
        run("train_captioner", dataset_name=tmp_path, output_dir=tmp_path / "out", **options)
    results = json.loads((tmp_path / "out" / "training_results.json").read_text())
    assert sorted(results["broken_images"]) == ["1.png", "1.png (validation)"]
    assert "Left out of the scores: images to evaluate on that cannot be read (1): `1.png (validation)`." in caplog.text
    for split in ("train", "validation"):
        assert f"Cut in {split}: captions of more than 6 tokens (4): of " in caplog.text
    assert "pass a larger --max_caption_length" in caplog.text


def test_an_output_folder_that_cannot_be_written_is_found_first(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"Nothing can be written to .*: pass another folder"):
        run("train_captioner", dataset_name=pictures, output_dir=tmp_path / "file", **OPTIONS)
