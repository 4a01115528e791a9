"""One step of several processes, or of accumulated batches, is that of one process with all their batches."""

import json

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import load_from_disk
from support.example_scripts import command, run
from support.nursery import run_python
from support.tiny_training import CONVNEXT, TINY, losses

from modeling_cnnrnn import CnnRnnForConditionalGeneration


pytestmark = pytest.mark.usefixtures("blank_pictures")


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
    words = ["-c", SHARDED_ON_A_CPU] if sharded else []
    words += command("train_captioner", output_dir=tmp_path / "two", **options)
    finished = run_python(*words, number=2)
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


def test_accumulated_steps_learn_what_one_large_batch_learns(pictures, tmp_path):
    options = TINY | {"dropout": 0.0, "max_train_steps": 3, "lr_scheduler_type": "constant", "eval_epochs": 1}
    # BatchNorm sees each small batch alone, so the CNN is one without
    options["encoder_config"] = json.dumps(CONVNEXT)
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path / "one", **options)
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path / "two", **options)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


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
