"""A training and its page: it is the same training, and does what those who watch ask for."""

import asyncio
import json
import shutil
import threading
import time
from concurrent.futures import Future
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from support.live_training import CLASSES, NETWORK, Ask, make_trainer, request, shown_in
from support.tiny_training import weights

from modeling_cnnrnn.live.board import Board
from modeling_cnnrnn.live.tracker import LiveTracker
from modeling_cnnrnn.training import live_session
from modeling_cnnrnn.training.arguments import TrainingArguments
from modeling_cnnrnn.training.callbacks import TrainerCallback
from modeling_cnnrnn.training.state import TrainerState
from modeling_cnnrnn.training.tracking import create_accelerator, find_trackers


@pytest.fixture(scope="module", autouse=True)
def not_drawn():
    """Curves and confusion matrices take more time than the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_cnnrnn.training.log.save_training_curves", lambda *arguments: None)
        patch.setattr("modeling_cnnrnn.training.classification_trainer.save_confusion_matrix", lambda *arguments: None)
        yield


def trained(folder, *callbacks, **options):
    trainer = make_trainer(folder, **options)
    trainer.callbacks += callbacks
    trainer.train()
    return trainer


def state_of(folder, step: int) -> TrainerState:
    return TrainerState.load_from_json(folder / f"checkpoint-{step}" / "trainer_state.json")


def assert_same(folder, other):
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in weights(other).items())


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    """A training without a page."""
    folder = tmp_path_factory.mktemp("unwatched")
    trained(folder, report_to="none")
    return folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The same with a page that somebody has open, who is shown the inside after each step and asks about pictures."""
    folder = tmp_path_factory.mktemp("watched")
    trainer = make_trainer(folder)

    class Watch(TrainerCallback):
        def on_step_end(self, trainer, loss):
            trainer.live.tracker.questions.put((lambda view: view.predictions(0), Future()))

        def on_train_begin(self, trainer):
            asyncio.run(open_page(trainer.live.board))

    async def open_page(board):
        board.enter("somebody")

    trainer.callbacks.insert(0, Watch())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_session, "LOOK_SECONDS", 0.0)
        patch.setattr(live_session, "LOOK_SHARE", 1e9)
        trainer.train()
    assert trainer.live._turn == 6 + 3  # a look after each step and at each evaluation
    return folder


def test_a_training_that_is_watched_is_the_one_that_is_not_bit_by_bit(watched, unwatched):
    assert_same(watched, unwatched)
    for step in (4, 6):
        assert_same(watched / f"checkpoint-{step}", unwatched / f"checkpoint-{step}")
        rows, others = ([row["loss"] for row in state_of(folder, step).steps] for folder in (watched, unwatched))
        assert rows == others
        assert state_of(watched, step).evaluations == state_of(unwatched, step).evaluations
    assert not (unwatched / "training.html").exists()


def test_a_page_is_written_with_the_last_state_in_it(watched):
    shown = shown_in(watched / "training.html")
    state = state_of(watched, 6)
    points = shown["points"]["points"]
    assert [point["train/loss"] for point in points if "train/loss" in point] == [row["loss"] for row in state.steps]
    assert [point["eval/accuracy"] for point in points if "eval/accuracy" in point] == [
        row["accuracy"] for row in state.evaluations
    ]
    assert [point["train/images_seen"] for point in points if "train/loss" in point] == [12, 24, 36, 48, 60, 72]
    assert shown["status"]["state"] == "finished"
    assert shown["confusion"]["classes"] == CLASSES
    assert sum(map(sum, shown["confusion"]["matrix"])) == 6
    assert {item["label"] for item in shown["predictions"]} == set(CLASSES)
    assert all(len(item["top"]) == 3 for item in shown["predictions"])
    assert "Conv2d" in {layer["kind"] for layer in shown["layers"]}


def test_controls_take_effect_with_the_next_step_and_are_kept_by_a_resumed_run(tmp_path):
    wishes = {"learning_rate": 0.12, "momentum": 0.3, "weight_decay": 0.001, "per_device_train_batch_size": 8}
    options = {"lr_scheduler_type": "constant", "save_steps": 4, "eval_epochs": 9}
    ask = Ask(after_2=wishes)
    first = trained(tmp_path / "first", ask, **options)
    assert [ask.seen[step] for step in (2, 3, 4)] == [(0.24, 0.6, 12), (0.12, 0.3, 8), (0.12, 0.3, 8)]
    state = first.state
    assert [(c["step"], c["name"], c["before"], c["value"]) for c in state.changes] == [
        (2, "learning_rate", 0.24, 0.12),
        (2, "momentum", 0.6, 0.3),
        (2, "weight_decay", 2e-6, 0.001),
        (2, "per_device_train_batch_size", 12, 8),
    ]
    rate, size = first.args.bias_learning_rate, 8
    assert first.optimizer.param_groups[-1]["lr"] == pytest.approx(rate * size)  # Muon's grow with the batch
    assert first.optimizer.param_groups[-1]["weight_decay"] == pytest.approx(0.001 / rate)
    assert json.loads((tmp_path / "first" / "training_results.json").read_text())["changes"] == state.changes
    # the epoch that was begun with the old size ends there: 12 of 24 images were seen of it
    assert [row["images_seen"] for row in state.steps] == [12, 24, 36, 44, 52, 60]
    assert [row["epoch"] for row in state.steps] == pytest.approx([0.5, 1, 2, 2 + 1 / 3, 2 + 2 / 3, 3])
    checkpoint = str(tmp_path / "first" / "checkpoint-4")
    resumed = trained(tmp_path / "resumed", resume_from_checkpoint=checkpoint, **options)
    assert resumed.args.per_device_train_batch_size == 8
    assert [row["loss"] for row in resumed.state.steps] == [row["loss"] for row in state.steps]
    assert_same(tmp_path / "resumed" / "checkpoint-6", tmp_path / "first" / "checkpoint-6")


@pytest.mark.slow
def test_an_option_that_is_given_anew_wins_over_what_was_changed(tmp_path):
    ask = Ask(after_1={"weight_decay": 0.001})
    trained(tmp_path / "first", ask)
    checkpoint = str(tmp_path / "first" / "checkpoint-4")
    assert make_resumed(tmp_path / "a", checkpoint).args.weight_decay == 0.001
    assert make_resumed(tmp_path / "b", checkpoint, weight_decay=0.5).args.weight_decay == 0.5


def make_resumed(folder, checkpoint, **options):
    return trained(folder, resume_from_checkpoint=checkpoint, **options)


@pytest.mark.parametrize(
    ("optimizer", "entry"),
    [
        ("adamw", "betas"),
        *(pytest.param(*names, marks=pytest.mark.slow) for names in [("sgd", "momentum"), ("adadelta", "rho")]),
    ],
)
def test_momentum_is_what_each_optimizer_calls_so(optimizer, entry, tmp_path):
    trainer = make_trainer(tmp_path, optimizer=optimizer, max_train_steps=2, eval_epochs=9)

    class Change(TrainerCallback):
        def on_step_end(self, trainer, loss):
            if trainer.state.step == 1:
                trainer.live.tracker.wish({"momentum": 0.4, "weight_decay": 0.3})

    trainer.callbacks.append(Change())
    trainer.train()
    groups = trainer.optimizer.param_groups
    assert {group[entry] if entry != "betas" else group[entry][0] for group in groups} == {0.4}
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]  # vectors do not decay


def test_the_learning_rate_changes_in_proportion_along_the_schedule(tmp_path):
    ask = Ask(after_3={"learning_rate": 0.12})
    trainer = trained(tmp_path, ask, eval_epochs=9)
    rates = [row["learning_rate"] for row in trainer.state.steps]
    assert rates == pytest.approx([0.24 * 5 / 6, 0.24 * 4 / 6, 0.24 * 3 / 6, 0.12 * 2 / 6, 0.12 / 6, 0.0])


def test_a_pause_waits_and_changes_nothing(unwatched, tmp_path):
    trainer, steps = make_trainer(tmp_path), []

    class Watcher(threading.Thread):
        def run(self):
            tracker, url = trainer.live.tracker, trainer.live.tracker.server.url
            deadline = time.monotonic() + 20
            while '"paused"' not in tracker.board.snapshot() and time.monotonic() < deadline:
                time.sleep(0.01)
            steps.append(trainer.state.step)
            self.answer = tracker.ask(lambda view: view.predictions(0))  # also while it waits
            steps.append(trainer.state.step)
            assert request(url, "wish", b'{"paused": false}')[0] == 200

    watcher = Watcher()
    watcher.start()
    trainer.callbacks.append(Ask(after_2={"paused": True}))
    trainer.train()
    watcher.join()
    assert steps == [2, 2]
    assert len(watcher.answer) == 6
    assert_same(tmp_path, unwatched)


def test_a_checkpoint_is_saved_and_the_training_stopped_when_asked_to(tmp_path, unwatched):
    with pytest.raises(SystemExit) as stopped:
        trained(tmp_path, Ask(after_2={"save": True}, after_4={"stop": True}), save_total_limit=9)
    assert stopped.value.code == 0
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 3, 4, 5)]
    status = shown_in(tmp_path / "training.html")["status"]
    assert status["state"] == "stopped"
    assert "Stopped by the page" in status["sentence"]
    trained(tmp_path, resume_from_checkpoint="latest")
    assert_same(tmp_path, unwatched)


OTHER = NETWORK | {"layers": [{"channels": 6, "pool_size": 2}]}


def test_a_training_that_starts_again_with_a_network_is_one_that_began_with_it(tmp_path):
    wish = {"network": json.dumps(OTHER)}
    again = trained(tmp_path / "again", Ask(after_3=wish), save_total_limit=9)
    trained(tmp_path / "new", network=OTHER, report_to="none")
    assert_same(tmp_path / "again", tmp_path / "new")
    assert (tmp_path / "again/earlier-1/checkpoint-4/trainer_state.json").exists()  # of the network before it
    assert (tmp_path / "again/earlier-1/best/config.json").exists()
    assert again.state.network == OTHER
    assert json.loads((tmp_path / "again/training_results.json").read_text())["network"] == OTHER
    # a run that is resumed has this network, although the options name another
    trained(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "again/checkpoint-2"))
    assert_same(tmp_path / "resumed", tmp_path / "new")


@pytest.mark.slow
def test_a_training_goes_back_to_a_checkpoint_also_to_one_of_a_network_before(tmp_path, unwatched):
    back = Ask(after_5={"checkpoint": "checkpoint-4"})
    trained(tmp_path / "back", back, save_total_limit=9)
    assert_same(tmp_path / "back", unwatched)
    assert (tmp_path / "back/earlier-1/checkpoint-6").exists()

    class There(Ask):
        def on_step_end(self, trainer, loss):
            if trainer.state.step == 1 and trainer.state.network is not None:
                self.wishes[1] = {"checkpoint": "earlier-1/checkpoint-4"}
            super().on_step_end(trainer, loss)

    options = {"save_total_limit": 9}
    there = trained(tmp_path / "there", There(after_4={"network": json.dumps(OTHER)}), **options)
    assert there.state.network is None
    assert_same(tmp_path / "there", unwatched)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "The network is no JSON: "),
        ("__import__('os').abort()", "The network is no JSON: "),
        ("[]", "The network is no JSON object"),
        ("{}", "The network cannot be used: it has no `model_type`"),
        ('{"model_type": "convnet", "layers": [{"channels": -3}]}', "The network cannot be used: "),
        ('{"model_type": "resnet", "depths": "many"}', "The network cannot be used: "),
        (
            '{"model_type": "convnet", "layers": [{"channels": 16384}, {"channels": 16384}]}',
            "million parameters, more than 268",
        ),
        ('{"model_type": "resnet"}', "`image_size` is 12, but the strides of this CNN come to 32: pass 32 or more."),
        ('{"model_type": "resnet", "auto_map": {"AutoModel": "evil.py"}}', "code of its own (`auto_map`)"),
    ],
)
def test_a_network_is_checked_and_never_evaluated(text, sentence, tmp_path):
    networks = make_trainer(tmp_path, report_to="none").networks
    with pytest.raises(ValueError, match=r"^The network ") as error:
        networks.check(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_is_noticed_at_the_next_step_and_shown(tmp_path):
    trainer = make_trainer(tmp_path, logging_steps=100, eval_epochs=3)
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *a: compute_loss(*a) * (float("nan") if trainer.state.step == 2 else 1.0)
    with pytest.raises(ValueError, match="The loss is nan at step 3: pass a smaller --learning_rate"):
        trainer.train()
    assert trainer.state.step == 3
    shown = shown_in(tmp_path / "training.html")["status"]
    assert (shown["state"], shown["sentence"]) == (
        "failed",
        "The loss is nan at step 3: pass a smaller --learning_rate.",
    )


def test_a_training_that_fails_before_it_begins_leaves_the_page_of_the_one_before(watched, tmp_path):
    shutil.copytree(watched, tmp_path / "copy")
    (tmp_path / "copy/checkpoint-6/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        trained(tmp_path / "copy", resume_from_checkpoint="latest")
    assert shown_in(tmp_path / "copy/training.html")["status"]["state"] == "finished"


def test_nobody_looks_inside_while_nobody_watches(tmp_path, monkeypatch):
    trainer, kept = make_trainer(tmp_path, eval_epochs=3), []
    monkeypatch.setattr(
        "modeling_cnnrnn.training.trainer.random_state_kept", lambda device: kept.append(device) or nullcontext()
    )
    trainer.train()
    assert trainer.live._turn == 1  # for the file, at the evaluation
    # at the beginning, the evaluation and the end; steps without a wish do not even keep the random state
    assert len(kept) == 6


@pytest.mark.parametrize(("seconds", "gap"), [(0.01, 5.0), (0.2, 40.0)])
def test_looks_are_five_seconds_apart_or_more_where_they_take_long(seconds, gap, tmp_path, monkeypatch):
    """Half a percent of the time at most."""
    session, now = make_trainer(tmp_path).live, [100.0]
    monkeypatch.setattr(live_session, "_clocks", lambda: (now[0], now[0]))
    monkeypatch.setattr(Board, "is_watched", property(lambda board: True))
    session.view = SimpleNamespace(
        predictions=lambda turn: [], layers=lambda turn: now.append(now.pop() + seconds) or []
    )
    looks = []
    while now[0] < 300:
        if session._is_due():
            looks.append(now[0])
            session._look()
        now[0] += 0.05
    gaps = [later - sooner for sooner, later in pairwise(looks)]
    assert len(gaps) >= 3
    assert gap <= min(gaps) <= max(gaps) < gap + 0.5


def test_the_page_is_one_of_all_trackers_and_has_options_of_its_own(tmp_path):
    def trackers(**options):
        return find_trackers(TrainingArguments(output_dir=str(tmp_path), **options))

    assert isinstance(trackers(report_to="all")[-1], LiveTracker)
    names = trackers(report_to="tensorboard, live", live_port=8123)
    assert names[0] == "tensorboard"
    assert names[1].server.port == 8123
    with pytest.raises(ValueError, match="`live_port` is 8123, which has no effect without --report_to live"):
        trackers(live_port=8123)
    for several, one in (("all, live", "all"), ("live,none", "none")):
        with pytest.raises(ValueError, match=f"`report_to` is '{several}': '{one}' stands alone"):
            trackers(report_to=several)
    taken = make_trainer(tmp_path).live.tracker.server.port
    with pytest.raises(ValueError, match=f"`live_port` {taken} "):
        create_accelerator(TrainingArguments(output_dir=str(tmp_path / "b"), report_to="live", live_port=taken))
