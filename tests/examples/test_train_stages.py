"""Trainings in stages: what each trains, at which rate, in which average."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.example_scripts import run
from support.tiny_training import TINY, losses, weights

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor


pytestmark = pytest.mark.usefixtures("blank_pictures")


def rows_of(folder: Path) -> list[dict]:
    """What was logged at each step."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((newest / "trainer_state.json").read_text())["steps"]


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
    averages = load_file(staged / f"checkpoint-{best}" / "averaged_weights.safetensors").values()
    assert any(torch.equal(kept["lm_head.weight"], tensor) for tensor in averages)


def test_self_critical_training_goes_on_from_the_averaged_weights(staged):
    is_average = []
    for step in (3, 4, 5):
        learned = weights(staged / f"checkpoint-{step}")["lm_head.weight"]
        averages = load_file(staged / f"checkpoint-{step}" / "averaged_weights.safetensors").values()
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
    for name in ("model.safetensors", "averaged_weights.safetensors"):
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
