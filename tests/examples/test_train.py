"""`train_captioner.py`, run as it stands on a few drawn pictures: what it writes, what it is equal to, what it refuses."""

import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import load_from_disk
from PIL import Image
from safetensors.torch import load_file
from support.example_scripts import command, run
from support.nursery import run_python
from support.tiny_training import TINY, TINY_CNN, losses, weights

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.training.arguments import (
    CaptionDataArguments,
    CaptionModelArguments,
    StageArguments,
    TrainingArguments,
)
from modeling_cnnrnn.training.captioning import train_captioner


pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_training_ends_with_a_folder_that_from_pretrained_loads(trained):
    model = CnnRnnForConditionalGeneration.from_pretrained(trained)
    processor = CnnRnnProcessor.from_pretrained(trained)
    inputs = processor(images=Image.new("RGB", (50, 40)), return_tensors="pt")
    (caption,) = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    assert isinstance(caption, str)
    assert model.config.vocab_size == len(processor.tokenizer)


def test_training_leaves_curves_and_pictures_to_look_at(trained):
    assert Image.open(trained / "training_curves.png").width > 300
    assert len(list((trained / "samples").glob("step-*.png"))) == 4


def test_the_folder_holds_the_checkpoint_with_the_best_cider(trained):
    results = json.loads((trained / "training_results.json").read_text())
    best = max(results["evaluations"], key=lambda row: row["CIDEr"])
    assert results["best"] == best
    saved = weights(trained / f"checkpoint-{best['step']}")
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights(trained).items())


def test_the_same_seed_gives_the_same_run(trained, pictures, tmp_path):
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path, num_train_epochs=2, **TINY)
    assert losses(tmp_path) == losses(trained)
    assert all(torch.equal(weights(tmp_path)[name], tensor) for name, tensor in weights(trained).items())


@pytest.mark.slow
def test_a_compiled_cnn_learns_the_same(pictures, tmp_path):
    options = TINY | {"dataset_name": pictures, "dropout": 0.0, "max_train_steps": 3}
    for compiled in (True, False):
        run("train_captioner", output_dir=tmp_path / str(compiled), torch_compile=compiled, **options)
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)
    assert weights(tmp_path / "True").keys() == weights(tmp_path / "False").keys()


def test_a_frozen_cnn_is_learned_from_through_stored_features(trained, pictures, tmp_path):
    CnnRnnForConditionalGeneration.from_pretrained(trained).get_encoder().cnn.save_pretrained(tmp_path / "cnn")
    CnnRnnProcessor.from_pretrained(trained).image_processor.save_pretrained(tmp_path / "cnn")
    options = {name: value for name, value in TINY.items() if name not in ("encoder_config", "image_size")}
    for store in (True, False):
        run(
            "train_captioner",
            dataset_name=pictures,
            output_dir=tmp_path / str(store),
            encoder_name_or_path=tmp_path / "cnn",
            cache_image_features=store,
            max_train_steps=4,
            **options,
        )
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-2)
    before = load_file(tmp_path / "cnn" / "model.safetensors")
    after = weights(tmp_path / "False")
    assert all(torch.equal(after[f"model.encoder.cnn.{name}"], tensor) for name, tensor in before.items())


def test_a_captioner_is_trained_on(trained, pictures, tmp_path):
    options = {"dataset_name": pictures, "output_dir": tmp_path, "max_train_steps": 1, "preload_images": True}
    run("train_captioner", model_name_or_path=trained, freeze_encoder=False, **options)
    assert CnnRnnForConditionalGeneration.from_pretrained(tmp_path).config.hidden_size == 16


def test_a_recipe_gives_options_that_the_command_line_changes(pictures, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(TINY | {"rnn_type": "gru", "max_train_steps": 50, "encoder_config": TINY_CNN}))
    run("train_captioner", str(recipe), dataset_name=pictures, output_dir=tmp_path / "out", max_train_steps=1)
    assert CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "out").config.rnn_type == "gru"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset_name": "no/such/folder"}, "no such file or folder"),
        ({"train_split": "training"}, "has the splits"),
        ({"caption_column": "sentences"}, "sentences"),
        ({"cache_image_features": True}, "needs a frozen CNN"),
        ({"rnn_type": "transformer"}, "rnn_type"),
        ({"resume_from_checkpoint": "nowhere"}, "trainer_state.json"),
        ({"min_frequency": 10000}, "min_frequency"),
        ({"tie_word_embeddings": True, "embedding_size": 8}, "tie_word_embeddings"),
        ({"freeze_encoder": False, "unfreeze_encoder_after_epochs": 1}, "nothing to unfreeze"),
        ({"unfreeze_encoder_after_epochs": 1, "unfreeze_encoder_after_steps": 1}, "not both"),
        ({"unfreeze_encoder_after_epochs": 1, "unfreeze_encoder_from_layer": 7}, "a stem, 0, and 2 layers"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"report_to": "trackers"}, "no tracker 'trackers'"),
        ({"self_critical_after_steps": 0, "self_critical_baseline": "mean"}, "baseline"),
    ],
)
def test_a_mistake_ends_training_with_one_sentence(options, sentence, pictures, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run("train_captioner", **(TINY | {"dataset_name": pictures, "output_dir": tmp_path} | options))
    assert sentence in stop.value.code
    assert stop.value.code.startswith("Error: ")


def test_pushing_without_a_token_is_refused_before_the_training(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SystemExit, match="needs a token"):
        run("train_captioner", dataset_name=pictures, output_dir=tmp_path, push_to_hub=True, **TINY)
    assert not list(tmp_path.iterdir())


def test_what_was_trained_is_pushed(pictures, tmp_path, monkeypatch):
    pushed = []

    def push_captioner(folder, repo_id, *, private, revision):
        assert (Path(folder) / "model.safetensors").is_file()
        assert (Path(folder) / "training_results.json").is_file()
        pushed.append((repo_id, private, revision))
        return SimpleNamespace(commit_url="there")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr("modeling_cnnrnn.hub.push.push_captioner", push_captioner)
    options = {"hub_model_id": "me/captioner", "hub_private_repo": True, "hub_revision": "tiny", "push_to_hub": True}
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path, max_train_steps=1, **options, **TINY)
    assert pushed == [("me/captioner", True, "tiny")]


def test_a_dataset_without_captions_is_refused_with_its_columns(pictures, tmp_path):
    load_from_disk(pictures).remove_columns(["captions", "scene"]).save_to_disk(tmp_path / "bare")
    with pytest.raises(SystemExit, match="image_id"):
        run("train_captioner", dataset_name=tmp_path / "bare", output_dir=tmp_path / "out", **TINY)


def test_results_say_where_they_come_from(trained):
    results = json.loads((trained / "training_results.json").read_text())
    assert "train_captioner.py --dataset_name" in results["command"]
    assert results["versions"]["torch"] == torch.__version__
    assert "1 x cpu, 1 threads" in results["hardware"]
    assert 0.1 < results["peak_memory_gib"] < 100
    assert (results["energy_kwh"] is None) == (importlib.util.find_spec("codecarbon") is None)
    assert results["stages"]["self_critical_after_epochs"] is None


def test_trackers_receive_losses_rates_speeds_scores_and_pictures(pictures, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"dataset_name": pictures, "output_dir": tmp_path, "max_train_steps": 1, "report_to": "tensorboard"}
    run("train_captioner", **TINY, **options)
    folder = next(path.parent for path in (tmp_path / "logs").rglob("events*") if path.parent.name == "captioner")
    events = EventAccumulator(str(folder)).Reload()
    names = {"train/loss", "train/learning_rate", "train/tokens_per_second", "eval/loss", "eval/CIDEr"}
    assert names <= set(events.Tags()["scalars"])
    assert events.Images("samples")[0].width > 300
    assert "captions/text_summary" in events.Tags()["tensors"]


def test_lines_of_the_log_stand_above_the_bar(pictures, tmp_path):
    options = TINY | {"output_dir": tmp_path, "max_train_steps": 2, "eval_epochs": 0.1}
    printed = run_python(*command("train_captioner", dataset_name=pictures, **options))
    assert printed.returncode == 0, printed.stderr
    shown = re.split(r"[\r\n]", printed.stderr)
    (line,) = [line for line in shown if "step 1: loss" in line]
    assert line.strip("\x1b[A ").startswith("step 1: loss")


def test_the_page_and_the_command_take_the_same_steps(trained, pictures, tmp_path):
    options = TINY | {"dataset_name": str(pictures), "output_dir": str(tmp_path), "num_train_epochs": 2}
    groups = (CaptionDataArguments, CaptionModelArguments, TrainingArguments, StageArguments)
    arguments = [
        group(**{option.name: options[option.name] for option in fields(group) if option.name in options})
        for group in groups
    ]
    train_captioner(*arguments)
    assert losses(tmp_path) == losses(trained)
    assert all(torch.equal(weights(tmp_path)[name], tensor) for name, tensor in weights(trained).items())


def test_the_plain_loop_takes_the_same_steps(pictures, tmp_path, capsys):
    common = {"dataset_name": pictures, "image_size": 32, "min_frequency": 1, "hidden_size": 16, "dropout": 0.1}
    common |= {"num_train_epochs": 2, "learning_rate": 3e-3}
    run("train_by_hand", output_dir=tmp_path / "by_hand", batch_size=4, **common)
    printed = [float(loss) for loss in re.findall(r"step \d+ loss (\S+)", capsys.readouterr().out)]
    options = {"embedding_size": 16, "attention_size": 96, "rnn_type": "gru", "per_device_train_batch_size": 4}
    options |= {"embedding_dropout": 0, "feature_dropout": 0, "label_smoothing": 0, "ema_decay": 0}
    options |= {"logging_steps": 1, "eval_epochs": 2}
    run("train_captioner", output_dir=tmp_path / "trainer", **common, **options)
    expected = losses(tmp_path / "trainer")[:-1]  # the last one is of the evaluation
    assert len(printed) == 12
    assert printed == expected
    one, other = (CnnRnnForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("by_hand", "trainer"))
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in one.state_dict().items())


def test_an_evaluation_leaves_the_training_as_it_was(trained, pictures, tmp_path):
    """Whatever it generates: beams and longer sentences change scores alone."""
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path, num_train_epochs=2, num_beams=3, **TINY)
    last = [folder / "checkpoint-12" for folder in (tmp_path, trained)]
    assert all(torch.equal(weights(last[0])[name], tensor) for name, tensor in weights(last[1]).items())
