"""Rows of image, captions and image_id: what is left out and said, grouped by image, split, and checked."""

import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
from support.caption_datasets import (
    IMAGES,
    captions,
    embedded,
    imagefolder,
    karpathy_json,
    number_of,
    numbers,
    parquet,
    picture,
    shards,
    summarize,
    write,
)

from modeling_cnnrnn.data.arguments import DatasetArguments
from modeling_cnnrnn.data.loading import (
    FEATURES,
    check_images,
    group_by_image,
    load_caption_dataset,
    load_dataset_from,
    references_by_image,
    split_dataset,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_images_are_not_decoded_while_loading(tmp_path, monkeypatch):
    long = shards(lambda n: [embedded(n, image_id=n, caption=text) for text in captions(n)])
    folder = write(tmp_path / "data", long)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kwargs: pytest.fail("decoded"))
    rows = load_caption_dataset(str(folder))["train"]
    assert references_by_image(rows) == {str(n): captions(n) for n in numbers("train")}


def test_columns_are_exactly_image_captions_and_image_id(tmp_path):
    rows = load_caption_dataset(str(write(tmp_path / "data", imagefolder("csv"))))["train"]
    features = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    assert rows.features == {**features, "image_id": datasets.Value("string")}


def test_split_column_is_guessed_if_one_split_holds_several(tmp_path):
    names = {0: "train", 1: "restval", 2: "val", 3: "test"}
    files = {"train.parquet": parquet([embedded(n, caption=captions(n), split=names[n]) for n in names])}
    splits = load_caption_dataset(str(write(tmp_path / "data", files)))
    found = {split: [number for *_, number in rows] for split, rows in summarize(splits).items()}
    assert found == {"train": [0, 1], "validation": [2], "test": [3]}


@dataclass
class OptionsOfAScript(DatasetArguments):
    split: str = "test"


def test_options_name_the_dataset(tmp_path):
    folder = write(tmp_path / "data", {"dataset_coco.json": karpathy_json()})
    options = {
        "dataset_name": str(folder / "dataset_coco.json"),
        "image_dir": str(write(tmp_path / "elsewhere", IMAGES)),
        "image_id_column": "file_name",
    }
    rows = load_dataset_from(OptionsOfAScript(**options))["test"]
    assert rows["image_id"][:] == ["images/0005.jpg"]


# ---- what is left out, and what is refused ----


def records(folder: Path, rows: list[dict]) -> str:
    """A dataset that names its images."""
    return str(write(folder, {**IMAGES, "train.json": json.dumps(rows)}) / "train.json")


def test_captions_are_cleaned_and_empty_ones_left_out(tmp_path, caplog):
    rows = [
        {"file_name": "0000.jpg", "captions": ["A dog\nruns. ", "  ", "\r\n"]},
        {"file_name": "0001.jpg", "captions": [" "]},
        {"file_name": "0002.jpg", "captions": []},
    ]
    splits = load_caption_dataset(records(tmp_path, rows))
    assert splits["train"]["captions"][:] == [["A dog runs."]]
    assert "Left out of train: empty captions (3): of `0000.jpg`, `0001.jpg`." in caplog.messages
    assert "Left out of train: images without a caption (2): `0001.jpg`, `0002.jpg`." in caplog.messages


def test_images_not_found_are_named(tmp_path, caplog):
    rows = [{"file_name": name, "caption": "A dog."} for name in ("0000.jpg", "9999.jpg", "9998.jpg")]
    assert len(load_caption_dataset(records(tmp_path, rows))["train"]) == 1
    assert any("not found" in message and "(2): `9999.jpg`, `9998.jpg`" in message for message in caplog.messages)


def test_columns_are_logged_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO", "modeling_cnnrnn")
    load_caption_dataset(records(tmp_path, [{"file_name": "0000.jpg", "caption": "A dog."}]))
    (message,) = caplog.messages
    assert "image from the file in `file_name`, captions from `caption`, image_id from `file_name`" in message
    assert "train (1 images)" in message


# ---- one row per image ----


@pytest.fixture
def long_rows() -> datasets.Dataset:
    """Three pictures, the rows of which are mixed."""
    order = [0, 1, 0, 2, 1, 0]
    columns = {
        "image": [{"bytes": picture(n), "path": None} for n in order],
        "captions": [[f"Sentence {row}."] for row in range(6)],
        "image_id": [f"id{n}" for n in order],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def test_references_are_grouped_by_image(long_rows):
    grouped_captions = {"id0": [0, 2, 5], "id1": [1, 4], "id2": [3]}
    references = references_by_image(long_rows)
    assert references == {key: [f"Sentence {row}." for row in rows] for key, rows in grouped_captions.items()}


def test_group_by_image_keeps_the_picture_of_the_captions(long_rows):
    rows = group_by_image(long_rows)
    assert [number_of(image) for image in rows["image"]] == [0, 1, 2]
    assert dict(zip(rows["image_id"], rows["captions"], strict=True)) == references_by_image(long_rows)
    assert group_by_image(rows) is rows


def test_captions_that_every_row_repeats_count_once():
    columns = {"image_id": ["a", "a"], "captions": [["One.", "Two."], ["One.", "Two."]], "image": [None, None]}
    rows = datasets.Dataset.from_dict(columns, features=FEATURES.copy())
    assert group_by_image(rows)["captions"][:] == [["One.", "Two."]]


def test_split_keeps_the_captions_of_an_image_together(long_rows):
    splits = split_dataset(long_rows, validation_share=0.3, seed=1)
    train, validation = (set(splits[split]["image_id"]) for split in ("train", "validation"))
    assert len(train) == 2
    assert len(validation) == 1
    assert not train & validation
    assert len(splits["train"]) + len(splits["validation"]) == 6
    again = split_dataset(long_rows, validation_share=0.3, seed=1)
    assert again["validation"]["image_id"][:] == splits["validation"]["image_id"][:]


def test_split_of_one_image_is_refused(long_rows):
    with pytest.raises(ValueError, match="two or more"):
        split_dataset(long_rows.select([0]))
    with pytest.raises(ValueError, match="validation_share"):
        split_dataset(long_rows, 1.0)


# ---- broken images ----


@pytest.mark.parametrize("num_proc", [None, 2])
def test_broken_images_are_counted_and_named(tmp_path, num_proc):
    good = picture(1)
    here = write(tmp_path, {"here.jpg": good}) / "here.jpg"
    contents = {"good": good, "cut": good[: len(good) // 2], "text": b"no picture", "gone": None, "here": None}
    columns = {
        "image": [{"bytes": content, "path": str(here.with_stem(name))} for name, content in contents.items()],
        "captions": [["A dog."]] * len(contents),
        "image_id": list(contents),
    }
    rows = datasets.Dataset.from_dict(columns, features=FEATURES.copy())
    usable, broken = check_images(rows, num_proc)
    assert usable["image_id"][:] == ["good", "here"]
    assert [image_id for image_id, _ in broken] == ["cut", "text", "gone"]
    assert all(f"{image_id}.jpg" in reason for image_id, reason in broken)
