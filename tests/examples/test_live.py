"""The page of a captioner's training, and of one that takes several processes."""

import json
import os

import pytest
import torch
from PIL import Image
from support.example_scripts import run
from support.live_training import Ask, shown_in
from support.nursery import run_python
from support.paths import ROOT
from support.tiny_training import TINY, TINY_CNN, losses, weights

from modeling_cnnrnn.live.board import Board
from modeling_cnnrnn.training.caption_trainer import CaptionTrainer


@pytest.mark.slow
def test_a_captioner_that_is_watched_is_the_one_that_is_not_and_shows_its_sentences(
    trained, pictures, tmp_path, monkeypatch
):
    """Somebody looks inside after each step."""
    monkeypatch.setattr("modeling_cnnrnn.training.live_session.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("modeling_cnnrnn.training.live_session.LOOK_SHARE", 1e9)
    monkeypatch.setattr(Board, "is_watched", property(lambda board: True))
    options = {"dataset_name": pictures, "output_dir": tmp_path, "num_train_epochs": 2, "report_to": "live"}
    run("train_captioner", **options, **TINY)
    assert losses(tmp_path) == losses(trained)
    assert all((weights(tmp_path)[name] == tensor).all() for name, tensor in weights(trained).items())
    shown = shown_in(tmp_path / "training.html")
    kinds = [layer["kind"] for layer in shown["layers"]]
    assert {"Conv2d", "Embedding"} <= {*kinds}
    assert shown["layers"][0]["filters"]["image"].startswith("data:image/png;base64,")
    point = next(point for point in shown["points"]["points"] if "eval/CIDEr" in point)
    assert point["eval/loss"] > 0
    assert len(shown["predictions"]) == 6
    for item in shown["predictions"]:
        assert item["label"]
        assert all(0 <= word["probability"] <= 1 for word in item["words"])
        assert all(word["map"].startswith("data:image/png;base64,") for word in item["words"])
    network = shown["plan"]["network"]
    assert network["attention_type"] == "additive"
    assert network["encoder"]["model_type"] == "resnet"


@pytest.mark.slow
@pytest.mark.parametrize("is_pretrained", [False, True])
def test_a_captioner_that_starts_again_with_a_network_is_one_that_began_with_it(
    is_pretrained, cnn, pictures, tmp_path, monkeypatch
):
    """A pretrained CNN has its weights again; one from scratch may be another."""
    options = {**TINY, "dataset_name": pictures, "num_train_epochs": 2}
    if is_pretrained:
        options |= {"encoder_name_or_path": cnn, "freeze_encoder": False}
        del options["encoder_config"], options["image_size"]
    network = {"hidden_size": 12, "rnn_type": "gru"}
    other, asked = {}, network
    if not is_pretrained:
        encoder = TINY_CNN | {"hidden_sizes": [8, 12]}
        other, asked = {"encoder_config": json.dumps(encoder)}, network | {"encoder": encoder}
    run("train_captioner", output_dir=tmp_path / "new", **options | network | other)
    train, ask = CaptionTrainer.train, Ask(after_5={"network": json.dumps(asked)})

    answers = []

    def train_and_ask(trainer):
        trainer.callbacks.append(ask)
        state = train(trainer)
        answers.append(trainer.live.view.answer(Image.new("RGB", (50, 40), "red")))
        return state

    monkeypatch.setattr(CaptionTrainer, "train", train_and_ask)
    run("train_captioner", output_dir=tmp_path / "again", report_to="live", **options)
    assert (tmp_path / "again/earlier-1/checkpoint-6/trainer_state.json").exists()  # of the network before it
    assert losses(tmp_path / "again") == losses(tmp_path / "new")
    found, expected = weights(tmp_path / "again"), weights(tmp_path / "new")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert answers[0]["words"][0].keys() == {"text", "probability", "map"}  # of a picture of one's own
    shown = shown_in(tmp_path / "again/training.html")["plan"]["network"]
    assert (shown["hidden_size"], shown["rnn_type"]) == (12, "gru")
    assert ("encoder" in shown) is not is_pretrained


TWO = """
import json, sys
from pathlib import Path
from support.live_training import make_trainer
from modeling_cnnrnn.training.callbacks import TrainerCallback

folder = Path(sys.argv[1])
trainer = make_trainer(folder, lr_scheduler_type="constant", num_train_epochs=4, per_device_train_batch_size=6)
seen, train_step = [], trainer.train_step

class Ask(TrainerCallback):
    def on_step_end(self, trainer, loss):
        tracker = trainer.live.tracker
        if trainer.state.step == 2:
            tracker.wish({"learning_rate": 0.12, "per_device_train_batch_size": 4, "paused": True})
            tracker.wait = lambda seconds: tracker.wish({"paused": False})
        if trainer.state.step == 5:
            tracker.wish({"save": True})

def watched(batches):
    loss = train_step(batches)
    group = trainer.optimizer.param_groups[0]
    seen.append((trainer.state.step, group["lr"], trainer.epochs.batch_size, len(batches[0]["labels"])))
    return loss

trainer.train_step = watched
trainer.callbacks.append(Ask())
trainer.train()
(folder / f"seen-{trainer.accelerator.process_index}.json").write_text(json.dumps([seen, trainer.state.changes]))
"""


@pytest.mark.slow
def test_two_processes_take_a_control_at_the_same_step(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    finished = run_python("-c", TWO, tmp_path, number=2, env=os.environ | {"PYTHONPATH": path})
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    seen, changes = found[0]
    assert [change["step"] for change in changes] == [2, 2]
    assert [rate for _, rate, _, _ in seen] == [0.24] * 2 + [0.12] * (len(seen) - 2)
    assert [size for *_, size in seen] == [6] * 3 + [4] * (len(seen) - 3)  # the batch of the step was made before it
    assert (tmp_path / "checkpoint-6").exists()
    assert len([line for line in finished.stderr.splitlines() if "Watch the training at" in line]) <= 1
