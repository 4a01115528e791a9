"""Pictures on their way into batches: decoded once, JPEGs at a part of their size if asked for."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from support.counting import counted_pictures
from transformers import ConvNextImageProcessorPil

from modeling_cnnrnn import CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.data.batching import CaptionDataset, RandomResizedCrop, load_stored_image
from modeling_cnnrnn.training.features import compute_image_features


@pytest.fixture
def photograph() -> np.ndarray:
    """What JPEGs are made for: large things with small ones on them, `(300, 400, 3)`."""
    rng = np.random.default_rng(0)
    layers = [np.kron(rng.normal(size=(300 // s, 400 // s, 3)), np.ones((s, s, 1))) * s for s in (100, 50, 10, 2)]
    image = sum(np.pad(layer, [(0, 300 - layer.shape[0]), (0, 400 - layer.shape[1]), (0, 0)]) for layer in layers)
    return ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


@pytest.fixture
def make_dataset(photograph, tmp_path):
    """`make_dataset(draft=True, ...)`: a dataset of the photograph in a file."""

    def make(file_name="photograph.jpg", image_processor=None, **options) -> CaptionDataset:
        image = Image.fromarray(photograph)
        exif = image.getexif()
        exif[0x0112] = 6  # the camera was held upright
        image.save(tmp_path / file_name, quality=90, exif=exif)
        rows = datasets.Dataset.from_dict(
            {"image": [str(tmp_path / file_name)], "image_id": ["1"], "captions": [["a dog", "a cat"]]}
        ).cast_column("image", datasets.Image())
        tokenizer = build_tokenizer(["a dog", "a cat"], min_frequency=1)
        processor = CnnRnnProcessor.from_image_size(48, tokenizer, center_crop=True)
        if image_processor is not None:
            processor = CnnRnnProcessor(image_processor, tokenizer)
        return CaptionDataset(rows, processor, **options)

    return make


def test_draft_decoding_is_close_to_plain_decoding(make_dataset):
    plain, draft = make_dataset(), make_dataset(draft=True)
    assert plain._open(0).size == (300, 400)
    assert draft._open(0).size == (75, 100)  # a quarter, and upright
    difference = (plain[0]["pixel_values"] - draft[0]["pixel_values"]).abs()
    assert 0 < difference.mean() < 0.02  # standard deviations of a pixel
    assert difference.quantile(0.99) < 0.1
    other = make_dataset(draft=True, file_name="photograph.png")
    assert torch.equal(make_dataset(file_name="photograph.png")[0]["pixel_values"], other[0]["pixel_values"])


def test_draft_decoding_leaves_half_as_much_again_as_is_needed(make_dataset):
    # a quarter is 75 x 100 pixels, 1.5 times the 48 of the other test; ConvNeXt's processor resizes to 60 before it crops
    convnext = ConvNextImageProcessorPil(size={"shortest_edge": 48}, crop_pct=0.8)
    assert make_dataset(draft=True, image_processor=convnext)._open(0).size == (150, 200)
    # a crop that may be 0.7 of the width
    crop = RandomResizedCrop((0.49, 1.0), (1.0, 1.0))
    assert make_dataset(draft=True, augmentation=crop)._open(0).size == (150, 200)
    stretched = RandomResizedCrop((1.0, 1.0), (0.5, 1.0))
    assert make_dataset(draft=True, augmentation=stretched)._open(0).size == (150, 200)
    wide = CnnRnnProcessor.from_image_size((48, 200), make_dataset().processor.tokenizer).image_processor
    assert make_dataset(draft=True, image_processor=wide)._open(0).size == (300, 400)
    as_it_is = ConvNextImageProcessorPil(size={"shortest_edge": 48}, do_resize=False)
    assert make_dataset(draft=True, image_processor=as_it_is)._open(0).size == (300, 400)


def test_draft_decoding_says_what_is_wrong_with_an_image(photograph, tmp_path):
    Image.fromarray(photograph).save(tmp_path / "photograph.jpg")
    content = (tmp_path / "photograph.jpg").read_bytes()
    for broken in (content[: len(content) // 2], content[:100], b"no image"):
        with pytest.raises(ValueError, match="is not an image that can be read"):
            load_stored_image({"bytes": broken, "path": None}, needed_side=64)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        load_stored_image(str(tmp_path / "missing.jpg"), needed_side=64)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}])
def test_a_row_without_an_image_is_named(cell):
    with pytest.raises(ValueError, match="`image 17`: the row has no image"):
        load_stored_image(cell, name="image 17")


def test_a_broken_image_is_called_by_its_file_name():
    with pytest.raises(ValueError, match=r"`0017\.jpg` \(8 bytes\) is not an image"):
        load_stored_image({"bytes": b"no image", "path": "0017.jpg"})


def test_a_broken_image_that_is_preloaded_teaches_nothing(pictures, processor):
    columns = pictures.select(range(2)).cast_column("image", datasets.Image(decode=False)).to_dict()
    columns["image"][1] = {"bytes": b"no image", "path": "0001.png"}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    for preload in (False, True):
        good, broken = (CaptionDataset(rows, processor, preload=preload)[index] for index in range(2))
        assert len(good["labels"]) == 5
        assert broken["labels"] == []
        assert "`0001.png`" in broken["error"]


@pytest.mark.parametrize(
    "options", [{"augmentation": RandomResizedCrop()}, {"image_features": np.zeros((10, 4, 8), np.float16)}]
)
def test_preloading_is_refused_where_it_has_no_effect(pictures, processor, options):
    with pytest.raises(ValueError, match=f"`preload` has no effect with `{next(iter(options))}`"):
        CaptionDataset(pictures, processor, preload=True, **options)


@pytest.fixture
def resizing(processor) -> CnnRnnProcessor:
    """For `pictures`, which PIL would copy if they had their size already."""
    return CnnRnnProcessor.from_image_size(28, processor.tokenizer)


@pytest.mark.parametrize("augmentation", [None, RandomResizedCrop()], ids=["whole", "cropped"])
def test_a_training_example_costs_one_decoding_and_no_copy(pictures, resizing, augmentation):
    dataset = CaptionDataset(pictures, resizing, augmentation=augmentation)
    with counted_pictures() as counts:
        dataset[3]
    assert counts == {"decoded": 1}


def test_a_row_of_features_costs_one_decoding_and_no_copy(pictures, resizing, tiny_model, tmp_path):
    with counted_pictures() as counts:
        compute_image_features(tiny_model, resizing, pictures.select(range(3)), tmp_path)
    assert counts == {"decoded": 3}


def test_a_picture_for_the_pipeline_costs_one_decoding_and_no_copy(pipe, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    with counted_pictures() as counts:
        pipe(tmp_path / "image.png")
    assert counts == {"decoded": 1}
