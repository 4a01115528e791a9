"""The example with transformers' own trainer: its loss is the model's, it learns, stops and goes on."""

import copy
import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from support import example_scripts
from transformers import Seq2SeqTrainer

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.data.shapes.drawing import build_shapes


TINY = {
    "image_size": 32,
    "hidden_size": 24,
    "embedding_size": 16,
    "min_frequency": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    build_shapes(num_train=16, num_validation=4, num_test=1, image_size=32).save_to_disk(folder)
    return folder


def run(**options) -> list[float]:
    """`python examples/train_seq2seq_trainer.py --option value ...`, in this process; returns the loss of each step."""
    example_scripts.run("train_seq2seq_trainer", **options)
    state = json.loads((options["output_dir"] / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def test_the_loss_of_a_step_is_the_models_own_over_its_captions(pictures, tmp_path, monkeypatch):
    """Of two accumulated batches, with label smoothing: each token counts alike."""
    compute_loss = Seq2SeqTrainer.compute_loss
    seen = []

    def watched(trainer, model, inputs, *args, **kwargs):
        own = copy.deepcopy(model).train()(**inputs).loss
        seen.append((own.item(), (inputs["labels"] != -100).sum().item()))
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "compute_loss", watched)
    options = TINY | {"dropout": 0.0, "label_smoothing": 0.1, "gradient_accumulation_steps": 2, "max_steps": 1}
    (loss,) = run(dataset_name=pictures, output_dir=tmp_path, max_train_samples=7, **options)
    (own, count), (other, other_count) = seen[:2]
    assert count != other_count  # a mean of means would be another number
    assert loss == pytest.approx((own * count + other * other_count) / (count + other_count), rel=1e-5)


def test_it_learns_and_ends_with_a_folder_that_from_pretrained_loads(pictures, tmp_path):
    options = TINY | {"attention_type": "additive", "image_injection": "initial_state", "dropout": 0.1}
    options |= {"hidden_size": 64, "lr_scheduler_type": "constant", "num_train_epochs": 20}
    losses = run(dataset_name=pictures, output_dir=tmp_path, **options)
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert losses[-1] < losses[40] < losses[0]
    scores = json.loads((tmp_path / "eval_results.json").read_text())
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert scores["eval_CIDEr"] == pytest.approx(max(row.get("eval_CIDEr", 0) for row in state["log_history"]))
    model = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    processor = CnnRnnProcessor.from_pretrained(tmp_path)
    image = datasets.load_from_disk(pictures)["validation"][0]["image"]
    (caption,) = processor.batch_decode(
        model.generate(**processor(images=image, return_tensors="pt")), skip_special_tokens=True
    )
    assert len(caption.split()) > 2


def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(pictures, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = TINY | {"dataset_name": pictures, "max_steps": 6, "save_total_limit": 9, "load_best_model_at_end": False}
    options |= {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    losses = run(output_dir=whole, **options)
    shutil.copytree(whole / "checkpoint-3", stopped / "checkpoint-3")
    begun = (stopped / "checkpoint-3" / "model.safetensors").stat().st_mtime_ns
    assert run(output_dir=stopped, resume_from_checkpoint="latest", **options) == losses
    assert (stopped / "checkpoint-3" / "model.safetensors").stat().st_mtime_ns == begun  # and not done again
    weights = load_file(whole / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(stopped / "model.safetensors").items())


def test_smoothing_by_the_trainer_is_refused(pictures, tmp_path):
    with pytest.raises(SystemExit, match=r"`label_smoothing_factor` is 0.1: the model smooths, pass --label_smoothing"):
        run(dataset_name=pictures, output_dir=tmp_path, label_smoothing_factor=0.1, **TINY)
