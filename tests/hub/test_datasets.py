"""Captioning datasets on a Hub: pushed, loaded by their name, and trained from."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.example_scripts import run
from support.hub_client import in_a_client
from support.repositories import CNN

from modeling_cnnrnn import (
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
)
from modeling_cnnrnn.data.batching import load_stored_image
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.data.shapes.drawing import build_shapes


pytestmark = pytest.mark.usefixtures("blank_pictures")


def rows_of(splits) -> dict[str, list]:
    """Every column of every row, with the pixels of the images."""
    rows: dict[str, list] = {}
    for split, dataset in splits.items():
        rows[split] = []
        for row in dataset:
            image = load_stored_image(row.pop("image"))
            rows[split].append(row | {"pixels": image.tobytes().hex()})
    return rows


def push_and_load(folder: Path) -> dict:
    """Push datasets and load them by name; returns both."""
    image_dir = folder / "photographs" / "train"
    image_dir.mkdir(parents=True)
    for number in range(6):
        Image.linear_gradient("L").rotate(60 * number).convert("RGB").save(image_dir / f"{number}.jpg")
    lines = [{"file_name": f"{number}.jpg", "captions": ["a slope", f"turned by {60 * number}"]} for number in range(6)]
    (image_dir / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ours = {
        "me/shapes": build_shapes(num_train=16, num_validation=4, num_test=4, image_size=32),
        "me/photographs": load_caption_dataset(str(folder / "photographs")),
    }
    results: dict = {}
    for name, splits in ours.items():
        splits.push_to_hub(name, private=True)
        results[name] = {
            "pushed": rows_of(load_caption_dataset(str(folder / "photographs")) if "photo" in name else splits),
            "loaded": rows_of(load_caption_dataset(name)),
        }
    return results


def train(folder: Path) -> None:
    """Train from a dataset of the Hub."""
    options = {"dataset_name": "me/shapes", "output_dir": folder, "max_train_steps": 2, "min_frequency": 1}
    sizes = dict.fromkeys(("hidden_size", "embedding_size", "attention_size"), 16)
    encoder = json.dumps({"model_type": "resnet", **CNN})
    run("train_captioner", **options, **sizes, encoder_config=encoder, image_size=32)


@pytest.fixture(scope="module")
def pushed_datasets(shared_hub, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("datasets")
    return in_a_client(shared_hub, folder / "home", push_and_load, folder)


@pytest.mark.parametrize("name", ["me/shapes", "me/photographs"])
def test_a_pushed_dataset_is_what_it_was(pushed_datasets, name):
    results = pushed_datasets[name]
    assert {split: len(rows) for split, rows in results["loaded"].items()} == (
        {"train": 16, "validation": 4, "test": 4} if name == "me/shapes" else {"train": 6}
    )
    assert results["loaded"] == results["pushed"]


def test_a_captioner_is_trained_straight_from_the_server(shared_hub, pushed_datasets, tmp_path):
    in_a_client(shared_hub, tmp_path / "home", train, tmp_path / "trained")
    model = CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert model.config.vocab_size == len(CnnRnnProcessor.from_pretrained(tmp_path / "trained").tokenizer)
