"""Trainings that are stopped, killed or out of disk: they resume bit by bit, and lose no earlier checkpoint."""

import errno
import json
import random
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.example_scripts import command, run
from support.nursery import run_python
from support.tiny_training import TINY, losses, weights


pytestmark = pytest.mark.usefixtures("blank_pictures")


def test_a_training_that_was_killed_goes_on_bit_by_bit(trained, pictures, tmp_path):
    """Stopped in the middle of an epoch, two steps after its last checkpoint, and of augmentation and dropout."""
    options = TINY | {"random_crop": True, "gradient_accumulation_steps": 1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run("train_captioner", dataset_name=pictures, output_dir=whole, max_train_steps=8, **options)
    step = torch.optim.AdamW.step
    calls = []

    def killed(*args, **kwargs):
        calls.append(0)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    torch.optim.AdamW.step = killed
    try:
        with pytest.raises(SystemExit, match="resume_from_checkpoint latest"):
            run("train_captioner", dataset_name=pictures, output_dir=stopped, max_train_steps=8, **options)
    finally:
        torch.optim.AdamW.step = step
    run(
        "train_captioner",
        dataset_name=pictures,
        output_dir=stopped,
        max_train_steps=8,
        resume_from_checkpoint="latest",
        **options,
    )
    assert losses(stopped) == losses(whole)
    assert all(
        torch.equal(weights(stopped / "checkpoint-8")[name], tensor)
        for name, tensor in weights(whole / "checkpoint-8").items()
    )


# runs a script that is killed when it touches, for the n-th time, a path with this text in it
KILLED = """
import os, runpy, signal, sys

text, left = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[3:]

def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and text in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_killed(text: str, count: int, **options) -> int:
    """`train_captioner.py` in a process of its own; returns its exit status, -9 if it was killed."""
    return run_python("-c", KILLED, text, count, *command("train_captioner", **options)).returncode


# of dropout, an average, words of its own and a schedule, and checkpoints between evaluations
RESUMED = TINY | {"max_train_steps": 10, "ema_decay": 0.9, "scheduled_sampling_max": 0.5, "save_steps": 1} | {
    "scheduled_sampling_increase": 0.5,
    "eval_epochs": 0.6,
    "random_crop": True,
    "resume_from_checkpoint": "latest",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run("train_captioner", dataset_name=pictures, output_dir=folder, **RESUMED)
    return folder


def assert_same_training(folder: Path, other: Path):
    states = [json.loads((path / "checkpoint-10" / "trainer_state.json").read_text()) for path in (folder, other)]
    for name in ("best", "evaluations"):
        assert states[0][name] == states[1][name]
    # all that is logged but the speed
    rows = [[{k: v for k, v in row.items() if "per_second" not in k} for row in state["steps"]] for state in states]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 11))
    for name in ("model.safetensors", "checkpoint-10/model.safetensors", "checkpoint-10/averaged_weights.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert not list(folder.rglob("*.partial"))


def test_a_training_that_is_killed_while_it_saves_goes_on_bit_by_bit(whole, pictures, tmp_path):
    """In the second epoch, of six steps each."""
    options = RESUMED | {"dataset_name": pictures, "output_dir": tmp_path}
    assert run_killed("checkpoint-9.partial", 3, **options) == -signal.SIGKILL
    assert not (tmp_path / "checkpoint-9").exists()
    run("train_captioner", **options)
    assert_same_training(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_training_that_is_killed_at_any_moment_goes_on_bit_by_bit(seed, whole, pictures, tmp_path):
    """Each time after so many more files were opened, renamed or removed below the folder, which is what can go wrong."""
    options = RESUMED | {"dataset_name": pictures, "output_dir": tmp_path, "save_total_limit": 2}
    moments = random.Random(seed)
    killed = 0
    # each run may go further than those before it: a run that saves nothing new is repeated
    while (status := run_killed(str(tmp_path), moments.randrange(1, 100 * (killed + 1)), **options)) == -signal.SIGKILL:
        killed += 1
    assert status == 0
    assert killed > 1
    assert_same_training(tmp_path, whole)


def test_a_full_disk_loses_only_the_checkpoint_being_written(pictures, tmp_path, monkeypatch):

    save_state, saves = Accelerator.save_state, []

    def full_at_the_second(self, folder, **kwargs):
        saves.append(folder)
        if len(saves) == 2:
            Path(folder, "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_state(self, folder, **kwargs)

    monkeypatch.setattr(Accelerator, "save_state", full_at_the_second)
    with pytest.raises(SystemExit, match="No space left"):
        run("train_captioner", dataset_name=pictures, output_dir=tmp_path, max_train_steps=6, **TINY)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert weights(tmp_path / "checkpoint-3")


def test_a_training_is_not_mixed_with_an_earlier_one(pictures, tmp_path):
    options = TINY | {"dataset_name": pictures, "output_dir": tmp_path}
    run("train_captioner", max_train_steps=3, **options)
    with pytest.raises(SystemExit, match="checkpoint-3 of an earlier training"):
        run("train_captioner", max_train_steps=1, **options)
    run("train_captioner", max_train_steps=1, overwrite_output_dir=True, **options)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
