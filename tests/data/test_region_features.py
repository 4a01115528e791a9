"""Regions of a detector: the layouts that people have them in, and what of them is no region."""

import pickle
from pathlib import Path

import datasets
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_cnnrnn.data.batching import CaptionDataset, collate_captions
from modeling_cnnrnn.data.region_features import load_region_features, open_region_features


IDS = ["a.jpg", "folder/b.png", "c"]
FEATURES = {Path(name).stem: np.random.default_rng(i).random((2 + i, 6), np.float32) for i, name in enumerate(IDS)}
BOXES = {name: np.arange(4 * len(own), dtype=np.float32).reshape(-1, 4) for name, own in FEATURES.items()}


def npy(folder: Path) -> Path:
    for name, own in FEATURES.items():
        np.save(folder / f"{name}.npy", own)
    return folder


def npz(folder: Path) -> Path:
    for name, own in FEATURES.items():
        np.savez_compressed(folder / f"{name}.npz", feat=own, bbox=BOXES[name])
    return folder


def hdf5(folder: Path) -> Path:
    with h5py.File(folder / "all.h5", "w") as file:
        file["a"] = FEATURES["a"]
        for name in ("b", "c"):
            file[f"{name}/features"], file[f"{name}/boxes"] = FEATURES[name], BOXES[name]
    return folder / "all.h5"


def parquet(folder: Path) -> Path:
    table = {"image_id": list(FEATURES), "image_features": list(FEATURES.values()), "boxes": list(BOXES.values())}
    datasets.Dataset.from_dict({name: [np.asarray(v).tolist() for v in own] for name, own in table.items()}).to_parquet(
        folder / "all.parquet"
    )
    return folder / "all.parquet"


@pytest.mark.parametrize("write", [npy, npz, hdf5, parquet])
def test_every_layout_gives_the_regions_of_each_image(tmp_path, write):
    regions = pickle.loads(pickle.dumps(load_region_features(write(tmp_path), IDS)))  # as for the processes of a loader
    assert (len(regions), regions.num_channels, regions.missing) == (3, 6, {})
    for row, name in enumerate(FEATURES):
        np.testing.assert_array_equal(regions[row], FEATURES[name])
        boxes = regions.boxes(row)
        assert boxes is None if write is npy or (write, name) == (hdf5, "a") else np.array_equal(boxes, BOXES[name])


@pytest.fixture
def rows(processor) -> datasets.Dataset:
    word = processor.tokenizer.convert_ids_to_tokens(5)
    return datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (8, 8))] * 3, "captions": [[word]] * 3, "image_id": IDS},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "captions": datasets.List(datasets.Value("string")),
                "image_id": datasets.Value("string"),
            }
        ),
    )


def test_regions_are_padded_in_a_batch_with_their_mask(tmp_path, rows, processor):
    regions = load_region_features(npy(tmp_path), IDS)
    dataset = CaptionDataset(rows, processor, image_features=regions)
    batch = collate_captions([dataset[row] for row in range(3)])
    assert batch["image_features_mask"].sum(dim=1).tolist() == [2, 3, 4]
    for features, mask, own in zip(
        batch["image_features"], batch["image_features_mask"], FEATURES.values(), strict=True
    ):
        assert torch.equal(features[mask], torch.from_numpy(own))
    assert "image_features_mask" not in collate_captions([dataset[1], dataset[1]])


def test_what_is_no_region_is_named_and_has_no_loss(tmp_path, rows, processor):
    folder = npy(tmp_path)
    np.save(folder / "b.npy", np.zeros((0, 6), np.float32))
    (folder / "c.npy").unlink()
    regions = load_region_features(folder, IDS)
    assert list(regions.missing) == [2]
    dataset = CaptionDataset(rows, processor, image_features=regions, broken=regions.missing)
    batch = collate_captions([dataset[row] for row in range(3)])
    (_, no_region), (_, missing) = batch["broken"]
    assert "(0, 6)" in no_region
    assert "there are no features of it" in missing
    assert (batch["labels"][1:] == -100).all()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 5), np.float32), "its regions have 5 features, those of other images 6"),
        (np.zeros(6, np.float32), r"the shape \(6,\)"),
        (np.full((2, 6), np.nan, np.float32), "NaN"),
        (np.array([{}], dtype=object), "allow_pickle=False"),
    ],
)
def test_features_that_do_not_fit_are_refused(tmp_path, features, message):
    folder = npy(tmp_path)
    np.save(folder / "b.npy", features)
    with pytest.raises(ValueError, match=message):
        load_region_features(folder, IDS)[1]


def test_files_of_nothing_are_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    for path, message in (
        (tmp_path, "holds no .npy and no .npz"),
        (tmp_path / "a.txt", "pass a folder of"),
        (tmp_path / "b.h5", "no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_region_features(path, IDS)
    with pytest.raises(ValueError, match="features of none of the 1 images, such as 'other'"):
        load_region_features(npy(tmp_path), ["other"])


def test_a_column_of_the_dataset_holds_them(rows):
    assert open_region_features(rows, None) is None
    rows = rows.add_column("image_features", [own.tolist() for own in FEATURES.values()])
    regions = open_region_features(rows, None)
    np.testing.assert_array_equal(regions[2], FEATURES["c"])
