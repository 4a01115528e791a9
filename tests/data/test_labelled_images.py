"""Labelled pictures: layouts, columns, what is left out, what is refused, and batches."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil

from modeling_cnnrnn.data.image_batches import LabelledImages
from modeling_cnnrnn.data.labelled_images import load_labelled_dataset, split_last
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.data.shapes.language import Meaning


PICTURES = [Image.new("RGB", (12, 12), (40 * i, 250 - 40 * i, 10)) for i in range(6)]
SMALL = ViTImageProcessorPil(size={"height": 12, "width": 12})


def parquet(path: Path, **columns) -> str:
    images = datasets.Dataset.from_dict({"img": PICTURES}, datasets.Features({"img": datasets.Image()}))
    table = datasets.Dataset.from_dict(columns)
    datasets.concatenate_datasets([images, table], axis=1).to_parquet(path / "train.parquet")
    return str(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder for each class; some pictures are not RGB, and one is broken."""
    for name in ("ant", "bee"):
        (tmp_path / "animals" / name).mkdir(parents=True)
    PICTURES[0].save(tmp_path / "animals/ant/0.png")
    PICTURES[1].convert("L").save(tmp_path / "animals/ant/grey.png")
    PICTURES[2].convert("RGBA").save(tmp_path / "animals/bee/transparent.png")
    PICTURES[3].convert("P").save(tmp_path / "animals/bee/palette.png")
    (tmp_path / "animals/bee/broken.png").write_bytes((tmp_path / "animals/bee/palette.png").read_bytes()[:60])
    return tmp_path / "animals"


def test_a_folder_for_each_class_is_read_whatever_the_kind_of_its_pictures(folder, caplog):
    rows = load_labelled_dataset(folder)["train"]
    assert rows.features["label"].names == ["ant", "bee"]
    pictures = LabelledImages(rows, SMALL, "these")
    assert dict(zip(pictures.image_ids, pictures.labels.tolist(), strict=True)) == {
        "ant/0.png": 0,
        "ant/grey.png": 0,
        "bee/palette.png": 1,
        "bee/transparent.png": 1,
    }
    assert pictures.pixels.shape == (4, 3, 12, 12)
    transparent = pictures.pixels[pictures.image_ids.index("bee/transparent.png")]
    assert torch.equal(transparent, torch.tensor(np.asarray(PICTURES[2])).permute(2, 0, 1))
    assert list(pictures.broken) == ["bee/broken.png"]
    assert "Left out of these: images that cannot be read (1): `bee/broken.png" in caplog.text


def test_a_folder_without_a_picture_is_named(folder, caplog):
    (folder / "cat").mkdir()
    assert load_labelled_dataset(folder)["train"].features["label"].names == ["ant", "bee"]
    assert "folders without a picture, which are no class (1): `cat`" in caplog.text


def test_columns_are_found_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    name = parquet(tmp_path, fine_label=["x", "y"] * 3, category=[0, 1, 2] * 2)
    rows = load_labelled_dataset(name)["train"]
    assert rows.features["label"].names == ["x", "y"]
    assert "image from `img`, label from `fine_label` (other columns of classes: `category`)" in caplog.text
    numbers = load_labelled_dataset(name, label_column="category")["train"]
    assert numbers.features["label"].names == ["0", "1", "2"]
    assert numbers["label"][:] == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("labels", "classes", "kept"),
    [
        (["cat", "ant", "", None, "cat", " "], ["ant", "cat"], [1, 0, 1]),
        ([7, -1, 3, 7, -100, None], ["3", "7"], [1, 0, 1]),
        ([True, False, True, True, False, None], ["False", "True"], [1, 0, 1, 1, 0]),
    ],
    ids=["names", "numbers", "truth"],
)
def test_pictures_without_a_label_are_counted_and_named(tmp_path, caplog, labels, classes, kept):
    rows = load_labelled_dataset(parquet(tmp_path, label=labels))["train"]
    assert rows.features["label"].names == classes
    assert rows["label"][:] == kept
    assert f"images without a label ({6 - len(kept)})" in caplog.text
    assert "`train-5`" in caplog.text


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"weight": [1.0] * 6}, {}, "no column of labels among `img`, `weight`: name it with `label_column`"),
        (
            {"label": [1, 2] * 3},
            {"label_column": "kind"},
            "`label_column` is `kind`, but the columns are `img`, `label`",
        ),
        ({"label": [1, 2] * 3}, {"image_column": "photo"}, "`image_column` is `photo`, but the columns are"),
        ({"label": ["a"] * 6}, {}, "holds only the class `a`: a classifier takes two or more"),
        ({"label": [-1] * 6}, {}, "holds no class"),
        ({"label": [[1], [2]] * 3}, {}, "one class for each picture is needed"),
        ({"label": [0.5] * 6}, {}, "one class for each picture is needed"),
    ],
)
def test_a_dataset_that_cannot_be_learned_is_refused_in_a_sentence(tmp_path, columns, options, sentence):
    with pytest.raises(ValueError, match="cannot be used") as error:
        load_labelled_dataset(parquet(tmp_path, **columns), **options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_outside_the_dataset_is_opened(tmp_path, caplog):
    PICTURES[0].save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    PICTURES[1].save(tmp_path / "data/inside.png")
    names = ["inside.png", str(tmp_path / "secret.png"), "../secret.png", "absent.png"]
    table = datasets.Dataset.from_dict({"file_name": names, "label": [0, 1, 1, 0]})
    table.to_parquet(tmp_path / "data/train.parquet")
    rows = load_labelled_dataset(tmp_path / "data/train.parquet")["train"]
    assert len(LabelledImages(rows, SMALL)) == 1
    assert "images outside" in caplog.text
    assert "images not found" in caplog.text


def test_a_drawn_picture_is_of_the_class_of_its_only_kind_of_thing(tmp_path):
    drawn = build_shapes(num_train=40, num_validation=4, num_test=4, image_size=32)
    drawn.save_to_disk(tmp_path / "drawn")
    rows = load_labelled_dataset(tmp_path / "drawn")["train"]
    single = [
        (picture["image"], names)
        for picture, names in (
            (row, {thing.name for thing in Meaning.from_json(row["scene"]).things}) for row in drawn["train"]
        )
        if len(names) == 1
    ]
    assert len(rows) == len(single) > 2
    for row, (image, names) in zip(rows, single, strict=True):
        assert {rows.features["label"].int2str(row["label"])} == names
        assert row["image"].tobytes() == image.tobytes()


def test_the_last_rows_are_held_out():
    rows = datasets.Dataset.from_dict({"label": list(range(5))})
    train, held_out = split_last(rows, 2)
    assert (train["label"][:], held_out["label"][:]) == ([0, 1, 2], [3, 4])
    with pytest.raises(ValueError, match="`num_validation_images` is 5, but there are 5 images"):
        split_last(rows, 5)


@pytest.fixture
def rows() -> datasets.Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    content = {"image": [Image.fromarray(p) for p in pixels], "label": [0, 1] * 3, "image_id": list("abcdef")}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(2), "image_id": datasets.Value("string")}
    return datasets.Dataset.from_dict(content, datasets.Features(features))


@pytest.mark.parametrize(
    "processor",
    [
        SMALL,
        ViTImageProcessorPil(size={"height": 8, "width": 9}),
        ConvNextImageProcessorPil(size={"shortest_edge": 10}),
    ],
)
def test_pixels_are_those_of_the_image_processor(rows, processor):
    pictures = LabelledImages(rows, processor)
    expected = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    assert_close(pictures.normalize(pictures.collate(range(6))["pixel_values"]), expected.float(), rtol=0, atol=0.02)


def test_each_picture_is_mirrored_in_every_second_epoch(rows):
    pictures = LabelledImages(rows, SMALL, flip="alternating", seed=3)
    batches = []
    for epoch in range(4):
        pictures.epoch = epoch
        batches.append(pictures.collate(range(6))["pixel_values"])
    assert torch.equal(batches[0], batches[2])
    assert torch.equal(batches[1], batches[3])
    assert torch.equal(batches[0].flip(3), batches[1])
    plain = [torch.equal(a, b) for a, b in zip(batches[0], pictures.pixels, strict=True)]
    assert 0 < sum(plain) < 6


def test_shifted_pictures_are_cut_out_of_reflected_ones(rows):
    pictures = LabelledImages(rows, SMALL, max_shift=2)
    padded = np.pad(pictures.pixels.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    seen = set()
    for epoch in range(3):
        pictures.epoch = epoch
        for row, picture in zip((4, 1), pictures.collate([4, 1])["pixel_values"], strict=True):
            cuts = {(y, x): padded[row, :, y : y + 12, x : x + 12] for y in range(5) for x in range(5)}
            (place,) = [place for place, cut in cuts.items() if np.array_equal(cut, picture.numpy())]
            seen.add(place)
    assert len(seen) > 2


def test_batches_depend_on_seed_epoch_and_row_alone(rows):
    first, second = (LabelledImages(rows, SMALL, max_shift=2, flip="random", seed=1) for _ in range(2))
    first.epoch = second.epoch = 5
    second.collate([0, 2])
    assert torch.equal(first.collate([3, 0])["pixel_values"], second.collate([0, 3])["pixel_values"].flip(0))
    second.epoch = 6
    assert not torch.equal(first.collate(range(6))["pixel_values"], second.collate(range(6))["pixel_values"])
