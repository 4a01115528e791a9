"""The scripts, run as they stand on a few drawn pictures: what they write, resume, refuse and survive."""

import errno
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import load_from_disk
from PIL import Image
from safetensors.torch import load_file
from support.example_scripts import command, run

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.metrics import caption_metrics


TINY_CNN = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
TINY = {
    "encoder_config": json.dumps(TINY_CNN),
    "image_size": 32,
    "hidden_size": 16,
    "embedding_size": 16,
    "attention_size": 16,
    "attention_type": "additive",
    "min_frequency": 1,
    "per_device_train_batch_size": 4,
    "ema_decay": 0,
    "logging_steps": 1,
    "eval_epochs": 0.5,
    "save_total_limit": 9,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    """Loss at each step up to the last checkpoint, and those on the validation split."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    return [row["loss"] for row in state["steps"]] + [row["loss"] for row in state["evaluations"]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    build_shapes(num_train=24, num_validation=6, num_test=6, image_size=32).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "captioner"
    run("train_captioner", dataset_name=pictures, output_dir=folder, num_train_epochs=2, **TINY)
    return folder


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
    words = [sys.executable, "-c", KILLED, text, str(count), *command("train_captioner", **options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, env=environment, capture_output=True, check=False).returncode


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
    for name in ("model.safetensors", "checkpoint-10/model.safetensors", "checkpoint-10/custom_checkpoint_1.pkl"):
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
    while (status := run_killed(str(tmp_path), moments.randrange(1, 80), **options)) == -signal.SIGKILL:
        killed += 1
    assert status == 0
    assert killed > 1
    assert_same_training(tmp_path, whole)


# accelerate shards on accelerators alone, PyTorch on a CPU too
SHARDED_ON_A_CPU = """
import runpy, sys
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

make = Accelerator.__init__

def make_sharding(self, *args, **kwargs):
    make(self, *args, **kwargs)
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="NO_WRAP"
    )

Accelerator.__init__ = make_sharding
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(sharded, pictures, tmp_path):
    """With an image that cannot be read, and a last batch that does not fill both processes."""
    dataset = load_from_disk(pictures)
    images = dataset["train"].cast_column("image", datasets.Image(decode=False))["image"][:22]
    images[5] = {"bytes": images[5]["bytes"][:60], "path": None}  # of those that the second process opens
    dataset["train"] = dataset["train"].select(range(22)).remove_columns("image").add_column("image", images)
    dataset["train"] = dataset["train"].cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "pictures")
    options = TINY | {"dataset_name": tmp_path / "pictures", "num_train_epochs": 1, "eval_epochs": 1}
    options |= {"dropout": 0.0, "embedding_dropout": 0.0, "feature_dropout": 0.0}
    # BatchNorm sees each small batch alone, so the CNN is one without
    options["encoder_config"] = json.dumps(CONVNEXT)
    run("train_captioner", output_dir=tmp_path / "one", **options | {"per_device_train_batch_size": 8})
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if sharded:
        words.append(str(tmp_path / "sharded_on_a_cpu.py"))
        (tmp_path / "sharded_on_a_cpu.py").write_text(SHARDED_ON_A_CPU)
    words += command("train_captioner", output_dir=tmp_path / "two", **options)
    finished = subprocess.run(
        words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-2000:]

    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    results = [json.loads((tmp_path / name / "training_results.json").read_text()) for name in ("one", "two")]
    for one, two in zip(results[0]["evaluations"], results[1]["evaluations"], strict=True):
        assert two == pytest.approx(one, rel=1e-5)  # the metrics of all sentences, each counted once
    assert list(results[0]["broken_images"]) == [dataset["train"]["image_id"][5]]
    assert results[1]["broken_images"].keys() == results[0]["broken_images"].keys()
    one, two = (CnnRnnForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=1e-3, atol=1e-5)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_a_compiled_cnn_learns_the_same(pictures, tmp_path):
    options = TINY | {"dataset_name": pictures, "dropout": 0.0, "max_train_steps": 3}
    for compiled in (True, False):
        run("train_captioner", output_dir=tmp_path / str(compiled), torch_compile=compiled, **options)
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-4)
    assert weights(tmp_path / "True").keys() == weights(tmp_path / "False").keys()


def test_accumulated_steps_learn_what_one_large_batch_learns(pictures, tmp_path):
    options = TINY | {"dropout": 0.0, "max_train_steps": 3, "lr_scheduler_type": "constant", "eval_epochs": 1}
    # BatchNorm sees each small batch alone, so the CNN is one without
    options["encoder_config"] = json.dumps(CONVNEXT)
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path / "one", **options)
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path / "two", **options)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


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


def test_a_full_disk_loses_only_the_checkpoint_being_written(pictures, tmp_path, monkeypatch):
    from accelerate import Accelerator

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


def test_a_training_is_not_mixed_with_an_earlier_one(pictures, tmp_path):
    options = TINY | {"dataset_name": pictures, "output_dir": tmp_path}
    run("train_captioner", max_train_steps=3, **options)
    with pytest.raises(SystemExit, match="checkpoint-3 of an earlier training"):
        run("train_captioner", max_train_steps=1, **options)
    run("train_captioner", max_train_steps=1, overwrite_output_dir=True, **options)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_pushing_without_a_token_is_refused_before_the_training(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SystemExit, match="needs a token"):
        run("train_captioner", dataset_name=pictures, output_dir=tmp_path, push_to_hub=True, **TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("version", "options", "sentence"),
    [
        (1, {}, "--fsdp_version 2"),
        (2, {"unfreeze_encoder_after_epochs": 1}, "FSDP can only train in one stage"),
        (2, {"self_critical_after_steps": 1}, "FSDP can only train in one stage"),
        (2, {"max_grad_value": 1.0}, "clip gradients by their norm"),
    ],
)
def test_what_fsdp_cannot_do_is_said_before_anything_is_read(version, options, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(Accelerator, "is_fsdp2", version == 2)
    with pytest.raises(SystemExit, match=sentence):
        run("train_captioner", dataset_name=tmp_path / "nothing", output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


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


def rows_of(folder: Path) -> list[dict]:
    """What was logged at each step."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((newest / "trainer_state.json").read_text())["steps"]


@pytest.fixture(scope="module")
def cnn(trained, tmp_path_factory) -> Path:
    """A trained CNN by itself."""
    folder = tmp_path_factory.mktemp("cnn")
    CnnRnnForConditionalGeneration.from_pretrained(trained).get_encoder().cnn.save_pretrained(folder)
    CnnRnnProcessor.from_pretrained(trained).image_processor.save_pretrained(folder)
    return folder


# a frozen CNN through stored features, two steps later its last layer too, and two later self-critical training
STAGES = {name: value for name, value in TINY.items() if name not in ("encoder_config", "image_size")} | {
    "cache_image_features": True,
    "max_train_steps": 6,
    "unfreeze_encoder_after_steps": 2,
    "unfreeze_encoder_from_layer": -1,
    "encoder_learning_rate": 1e-3,
    "self_critical_after_steps": 4,
    "self_critical_learning_rate": 1e-4,
    "self_critical_num_samples": 2,
    "scheduled_sampling_max": 0.5,
    "scheduled_sampling_increase": 0.6,
    "ema_decay": 0.9,
    "save_steps": 1,
    "eval_epochs": 1,
}


@pytest.fixture(scope="module")
def staged(cnn, pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    run("train_captioner", dataset_name=pictures, encoder_name_or_path=cnn, output_dir=folder, **STAGES)
    return folder


def test_each_stage_trains_what_it_says(staged, cnn):
    before = {f"model.encoder.cnn.{name}": tensor for name, tensor in load_file(cnn / "model.safetensors").items()}

    def changed(step: int) -> set[str]:
        now = weights(staged / f"checkpoint-{step}")
        return {name for name, tensor in before.items() if not torch.equal(now[name], tensor)}

    assert not changed(2)
    last_layer = {name for name in changed(3) if ".encoder.stages.1." in name}
    assert changed(3) == last_layer != set()
    assert not any("normalization" in name for name in changed(6))
    stages = [json.loads((staged / f"checkpoint-{n}" / "trainer_state.json").read_text())["stage"] for n in (1, 3, 5)]
    assert stages == ["cross-entropy, frozen CNN", "cross-entropy", "self-critical"]


def test_stages_have_their_own_rates(staged):
    rows = rows_of(staged)
    assert ["encoder_learning_rate" in row for row in rows] == [False, False, True, True, True, True]
    assert rows[3]["learning_rate"] == pytest.approx(1e-4)  # what the first step of the second schedule takes
    assert max(row["learning_rate"] for row in rows[3:]) <= 1e-4 < rows[0]["learning_rate"]


def test_scheduled_sampling_grows_and_ends_with_self_critical_training(staged):
    rows = rows_of(staged)
    sampling = [row.get("scheduled_sampling_probability", 0) for row in rows]
    assert sampling[:4] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert sampling[4:] == [0, 0]
    assert ["reward" in row for row in rows] == [False] * 4 + [True] * 2


def test_the_model_that_is_kept_has_averaged_weights(staged):
    best = json.loads((staged / "training_results.json").read_text())["best"]["step"]
    kept, learned = weights(staged), weights(staged / f"checkpoint-{best}")
    assert not torch.equal(kept["lm_head.weight"], learned["lm_head.weight"])
    averages = torch.load(staged / f"checkpoint-{best}" / "custom_checkpoint_1.pkl")["averages"]
    assert any(torch.equal(kept["lm_head.weight"], tensor) for tensor in averages)


def test_self_critical_training_goes_on_from_the_averaged_weights(staged):
    is_average = []
    for step in (3, 4, 5):
        learned = weights(staged / f"checkpoint-{step}")["lm_head.weight"]
        averages = torch.load(staged / f"checkpoint-{step}" / "custom_checkpoint_1.pkl")["averages"]
        is_average.append(any(torch.equal(learned, tensor) for tensor in averages))
    assert is_average == [False, True, False]


def test_self_critical_training_drops_nothing_out(trained, pictures, tmp_path):
    learned = []
    for dropout in (0.0, 0.5):
        start, output_dir = tmp_path / f"start-{dropout}", tmp_path / f"output-{dropout}"
        model = CnnRnnForConditionalGeneration.from_pretrained(trained)
        model.config.dropout = model.config.embedding_dropout = model.config.feature_dropout = dropout
        model.save_pretrained(start)
        CnnRnnProcessor.from_pretrained(trained).save_pretrained(start)
        options = {"max_train_steps": 2, "self_critical_after_steps": 0, "eval_epochs": 1, "logging_steps": 1}
        run("train_captioner", model_name_or_path=start, dataset_name=pictures, output_dir=output_dir, **options)
        learned.append(weights(output_dir / "checkpoint-2")["lm_head.weight"])
    assert torch.equal(*learned)


@pytest.mark.parametrize("step", [2, 3, 5])
def test_each_stage_is_gone_on_with_bit_by_bit(step, staged, cnn, pictures, tmp_path):
    """From each checkpoint, those at the borders of stages too."""
    run(
        "train_captioner",
        dataset_name=pictures,
        encoder_name_or_path=cnn,
        output_dir=tmp_path,
        features_cache_dir=staged / "image_features",
        resume_from_checkpoint=staged / f"checkpoint-{step}",
        **STAGES,
    )
    assert losses(tmp_path)[step:] == losses(staged)[step:]
    for name in ("model.safetensors", "custom_checkpoint_1.pkl"):
        assert (tmp_path / "checkpoint-6" / name).read_bytes() == (staged / "checkpoint-6" / name).read_bytes()


def test_a_checkpoint_is_not_gone_on_with_in_another_stage(staged, cnn, pictures, tmp_path):
    options = STAGES | {"unfreeze_encoder_after_steps": 3}
    with pytest.raises(SystemExit, match="was saved in the stage 'cross-entropy', but"):
        run(
            "train_captioner",
            dataset_name=pictures,
            encoder_name_or_path=cnn,
            output_dir=tmp_path,
            features_cache_dir=staged / "image_features",
            resume_from_checkpoint=staged / "checkpoint-3",
            **options,
        )


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
    words = [sys.executable, *command("train_captioner", dataset_name=pictures, **options)]
    printed = subprocess.run(
        words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    shown = re.split(r"[\r\n]", printed.stderr)
    (line,) = [line for line in shown if "step 1: loss" in line]
    assert line.strip("\x1b[A ").startswith("step 1: loss")


@pytest.fixture(scope="module")
def evaluated(trained, pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    run(
        "evaluate_captioner",
        model_name_or_path=trained,
        dataset_name=pictures,
        split="test",
        num_beams=[1, 3],
        output_dir=folder,
    )
    return folder


def test_evaluation_writes_scores_beside_their_protocol(evaluated):
    content = json.loads((evaluated / "eval_results.json").read_text())
    assert set(content["results"]["beam 3"]) > {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr", "accuracy"}
    assert content["results"]["perplexity"] > 1
    protocol = content["protocol"]
    assert (protocol["split"], protocol["num_images"], protocol["num_references"]) == ("test", 6, 30)
    assert protocol["num_beams"] == [1, 3]
    assert "torch" in protocol["versions"]


def test_the_results_file_scores_the_same_again(evaluated):
    results = json.loads((evaluated / "captions_results.json").read_text())
    references: dict = {}
    for annotation in json.loads((evaluated / "captions_references.json").read_text())["annotations"]:
        references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    scores = caption_metrics({row["image_id"]: row["caption"] for row in results}, references)
    written = json.loads((evaluated / "eval_results.json").read_text())["results"]["beam 3"]
    assert scores["CIDEr"] == pytest.approx(written["CIDEr"], abs=1e-12)


def test_evaluation_writes_each_image_and_a_page(evaluated):
    rows = [json.loads(line) for line in (evaluated / "per_image.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {"caption", "references", "log_probability", "CIDEr", "is_correct"} <= rows[0].keys()
    assert (evaluated / "gallery.html").read_text().count(rows[0]["references"][0]) >= 1


def test_evaluation_refuses_a_split_that_is_not_there(trained, pictures, tmp_path):
    with pytest.raises(SystemExit, match="has the splits"):
        run("evaluate_captioner", model_name_or_path=trained, dataset_name=pictures, split="dev", output_dir=tmp_path)


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "below").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    Image.new("L", (30, 40)).save(folder / "below" / "b.jpg")
    (folder / "c.jpg").write_text("no picture")
    (folder / "readme.txt").write_text("no picture, and not called one")
    return folder


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_folder_is_captioned_with_its_file_names(ending, trained, photographs, tmp_path, capsys):
    import pandas

    output = tmp_path / f"captions.{ending}"
    run("caption_images", model_name_or_path=trained, images=photographs, output=output, num_return_sequences=2)
    read = {"csv": pandas.read_csv, "jsonl": lambda p: pandas.read_json(p, lines=True), "parquet": pandas.read_parquet}
    table = read[ending](output)
    assert [Path(name).name for name in table["file_name"]] == ["a.png", "a.png", "b.jpg", "b.jpg"]
    printed = capsys.readouterr()
    assert "a.png: " in printed.out
    assert "1 of 3 images could not be read" in printed.err
    assert "c.jpg" in printed.err


def test_captions_begin_with_the_prompt(trained, photographs, capsys):
    run("caption_images", model_name_or_path=trained, images=photographs / "a.png", prompt="a red")
    assert "a.png: a red" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": "nowhere"}, "does not exist"),
        ({"output": "captions.txt"}, "ends in"),
        ({"model_name_or_path": "no/such/model"}, "no/such/model"),
    ],
)
def test_a_mistake_ends_captioning_with_one_sentence(options, sentence, trained, photographs):
    with pytest.raises(SystemExit) as stop:
        run("caption_images", **({"model_name_or_path": trained, "images": photographs} | options))
    assert sentence in stop.value.code
