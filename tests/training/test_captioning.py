"""The steps from options to a captioner, one by one."""

import json

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.command import cnnrnn

from modeling_cnnrnn.training.arguments import (
    CaptionDataArguments,
    CaptionModelArguments,
    StageArguments,
    TrainingArguments,
)
from modeling_cnnrnn.training.captioning import build_captioner, build_datasets, load_splits, prepare_encoder


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def save(tmp_path, **splits) -> str:
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "pictures")
    return str(tmp_path / "pictures")


def test_a_missing_validation_split_is_taken_from_the_training_images(pictures, accelerator, tmp_path):
    rows = datasets.concatenate_datasets([pictures, pictures, pictures, pictures])
    rows = rows.remove_columns("image_id").add_column("image_id", [str(row) for row in range(40)])
    data_args = CaptionDataArguments(dataset_name=save(tmp_path, train=rows))
    train_rows, eval_rows = load_splits(data_args, 3, accelerator)
    assert (len(train_rows), len(eval_rows)) == (38, 2)
    assert not set(train_rows["image_id"]) & set(eval_rows["image_id"])
    again = load_splits(data_args, 3, accelerator)[1]
    assert again["image_id"][:] == eval_rows["image_id"][:]


def test_splits_are_cut_to_the_number_of_images_that_is_asked_for(pictures, accelerator, tmp_path):
    name = save(tmp_path, train=pictures, dev=pictures.select(range(6)))
    data_args = CaptionDataArguments(dataset_name=name, max_train_samples=4, max_eval_samples=99)
    train_rows, eval_rows = load_splits(data_args, 0, accelerator)
    assert (len(train_rows), len(eval_rows)) == (4, 6)


TINY = {"encoder_config": '{"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}'}


def build(pictures, accelerator, tmp_path, data: dict | None = None, model: dict | None = None, **stages):
    data_args = CaptionDataArguments(image_size=32, min_frequency=1, **(data or {}))
    model_args = CaptionModelArguments(hidden_size=16, embedding_size=16, **TINY, **(model or {}))
    args, stage_args = TrainingArguments(output_dir=str(tmp_path)), StageArguments(**stages)
    captioner, processor = build_captioner(data_args, model_args, pictures["captions"][:])
    prepare_encoder(captioner, model_args, args, stage_args, accelerator)
    return captioner, build_datasets(captioner, processor, pictures, pictures, data_args, args, accelerator)


@pytest.mark.parametrize(
    ("model", "stages", "trained"),
    [
        ({}, {}, {"embedder", "stages.0", "stages.1"}),  # all of a CNN from scratch
        ({"freeze_encoder": True}, {}, set()),
        # of a CNN that is unfrozen later, what any stage trains
        ({}, {"unfreeze_encoder_after_steps": 1, "unfreeze_encoder_from_layer": -1}, {"stages.1"}),
        ({}, {"unfreeze_encoder_after_steps": 1}, {"embedder", "stages.0", "stages.1"}),
    ],
)
def test_a_cnn_is_trained_where_a_stage_trains_it(model, stages, trained, pictures, accelerator, tmp_path):
    captioner, _ = build(pictures, accelerator, tmp_path, model=model, **stages)
    names = {name for name, p in captioner.get_encoder().cnn.named_parameters() if p.requires_grad}
    layers = {"embedder": "embedder.", "stages.0": "encoder.stages.0.", "stages.1": "encoder.stages.1."}
    assert {layer for layer, start in layers.items() if any(name.startswith(start) for name in names)} == trained


def test_a_captioner_generates_up_to_the_length_that_is_asked_for(pictures, accelerator, tmp_path):
    captioner, _ = build(pictures, accelerator, tmp_path, model={"max_length": 7})
    sequences = captioner.generate(pixel_values=torch.zeros(1, 3, 32, 32), suppress_tokens=[2])
    assert sequences.shape == (1, 7)


def test_evaluation_sees_every_caption_of_the_plain_images(pictures, accelerator, tmp_path):
    data = {"random_crop": True, "captions_per_image": 2}
    _, (train_dataset, eval_dataset) = build(pictures, accelerator, tmp_path, data)
    assert (train_dataset.augmentation is None, eval_dataset.augmentation is None) == (False, True)
    assert [len(dataset[0]["labels"]) for dataset in (train_dataset, eval_dataset)] == [2, 5]


def test_stored_features_are_drafted_for_training_alone(pictures, accelerator, tmp_path):
    data = {"cache_image_features": True, "draft_decoding": True}
    data |= {"random_crop": True, "num_feature_views": 2}
    _, (train_dataset, eval_dataset) = build(pictures, accelerator, tmp_path, data, {"freeze_encoder": True})
    assert len(train_dataset.image_features) == 2
    assert len(eval_dataset.image_features) == 1
    stores = [path.stem for path in (tmp_path / "image_features").glob("*.safetensors")]
    assert sorted("draft" in name for name in stores) == [False, True, True]


@pytest.mark.slow
def test_a_captioner_learns_and_is_evaluated_from_the_regions_of_a_detector(pictures, tmp_path, capfd):
    """From a folder of files in training, from a column of the dataset in evaluation; images differ in their number."""
    generator = np.random.default_rng(0)
    features = [generator.random((2 + row % 3, 24), np.float32) for row in range(len(pictures))]
    plain = save(tmp_path / "plain", train=pictures, validation=pictures)
    with_column = pictures.add_column("image_features", [own.tolist() for own in features])
    columns = save(tmp_path / "columns", train=with_column, validation=with_column)
    (tmp_path / "regions").mkdir()
    for name, own in zip(pictures["image_id"][:], features, strict=True):
        boxes = np.tile(np.array([8, 4, 24, 30], np.float32), (len(own), 1))
        np.savez(tmp_path / "regions" / f"{name}.npz", features=own, boxes=boxes)
    options = ["--architecture", "up_down", "--hidden_size", 16, "--embedding_size", 16, "--attention_size", 8]
    options += ["--min_frequency", 1, "--num_train_epochs", 2, "--output_dir", tmp_path / "captioner"]
    assert cnnrnn("train", "--dataset_name", plain, "--region_features", tmp_path / "regions", *options) == 0
    config = json.loads((tmp_path / "captioner" / "config.json").read_text())
    assert (config["feature_size"], config["region_size"], config["attention_type"]) == (24, 24, "up_down")
    place = ["--model_name_or_path", tmp_path / "captioner", "--output_dir", tmp_path / "evaluation"]
    assert cnnrnn("evaluate", *place, "--dataset_name", columns, "--split", "validation") == 0
    results = json.loads((tmp_path / "evaluation" / "eval_results.json").read_text())
    trained = json.loads((tmp_path / "captioner" / "training_results.json").read_text())
    assert results["results"]["beam 1"]["CIDEr"] == pytest.approx(trained["best"]["CIDEr"])
    place = ["--model_name_or_path", tmp_path / "captioner", "--output_dir", tmp_path / "with_boxes"]
    data = ["--dataset_name", plain, "--split", "validation"]
    assert cnnrnn("evaluate", *place, *data, "--region_features", tmp_path / "regions") == 0
    assert (tmp_path / "with_boxes" / "gallery.html").stat().st_size > 0
    assert cnnrnn("evaluate", *place, *data) == 1
    assert "this captioner reads regions of a detector: pass `region_features`" in capfd.readouterr().err
