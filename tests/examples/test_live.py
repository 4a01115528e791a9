"""The page of a captioner's training, and of one that takes several processes."""

import json
import os

import pytest
from support.example_scripts import run
from support.live_training import shown_in
from support.nursery import run_python
from support.paths import ROOT
from support.tiny_training import TINY, losses, weights

from modeling_cnnrnn.live.board import Board


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
