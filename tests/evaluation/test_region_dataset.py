"""A dataset of regions: the right pixels with the right words, and a captioner that learns from it."""

import json

import numpy as np
import pytest
from PIL import Image

from modeling_cnnrnn.data.batching import load_stored_image
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.evaluation.region_dataset import known_sentences, write_region_dataset


QUARTERS = {"red": (0, 0, 32, 24), "green": (32, 0, 64, 24), "blue": (0, 24, 32, 48), "white": (32, 24, 64, 48)}


@pytest.fixture
def picture() -> Image.Image:
    """A picture with a quarter of each colour."""
    image = Image.new("RGB", (64, 48))
    for color, box in QUARTERS.items():
        image.paste(color, box)
    return image


def written(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_each_region_becomes_a_picture_with_its_words(picture, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    snippets = [(box, f"a {color} quarter", 0.5) for color, box in QUARTERS.items()]
    snippets += [(QUARTERS["red"], "red paint", 0.25), (QUARTERS["red"], "a red quarter", 0.75)]
    pictures = [("first", picture, snippets), ("second", picture, snippets[:1])]
    counts = write_region_dataset(tmp_path / "regions" / "train", pictures)
    assert (counts.num_regions, counts.num_snippets, counts.num_left_out) == (5, 6, 0)
    rows = load_caption_dataset(str(tmp_path / "regions"))["train"]
    captions = {"red": ["a red quarter", "red paint"], "first again": ["a red quarter"]}
    for row, color in zip(rows, [*QUARTERS, "first again"], strict=True):
        assert row["captions"] == captions.get(color, [f"a {color} quarter"])
        image = load_stored_image(row["image"])
        assert image.size == (32, 24)
        expected = Image.new("RGB", (1, 1), color.replace("first again", "red")).getpixel((0, 0))
        assert np.abs(np.asarray(image).astype(int) - expected).max() < 8  # of JPEG
    assert [line["source"] for line in written(tmp_path / "regions" / "train")] == 4 * ["first"] + ["second"]


def test_a_margin_widens_boxes_inside_the_picture(picture, tmp_path):
    write_region_dataset(tmp_path / "train", [("one", picture, [((16, 12, 32, 24), "a corner", 1.0)])], margin=0.5)
    (line,) = written(tmp_path / "train")
    assert line["box"] == [8, 6, 40, 30]
    write_region_dataset(tmp_path / "train", [("one", picture, [((0, 0, 60, 48), "all", 1.0)])], margin=0.5)
    (line,) = written(tmp_path / "train")
    assert line["box"] == [0, 0, 64, 48]


def test_snippets_that_say_little_are_left_out_and_counted(picture, tmp_path):
    snippets = [
        (QUARTERS["red"], "a red quarter", 0.3),
        (QUARTERS["red"], "is in the", 0.1),
        (QUARTERS["blue"], "blue", 0.3),
    ]
    pictures = [("one", picture, snippets), ("two", picture, snippets[1:])]
    counts = write_region_dataset(tmp_path / "train", pictures, min_score=0.2, min_words=2)
    assert (counts.num_regions, counts.num_left_out, counts.num_pictures_left_out) == (1, 4, 1)
    assert [line["captions"] for line in written(tmp_path / "train")] == [["a red quarter"]]


def test_a_dataset_without_snippets_is_refused_and_the_old_one_stays(picture, tmp_path):
    write_region_dataset(tmp_path / "train", [("one", picture, [(QUARTERS["red"], "a red quarter", 0.3)])])
    before = written(tmp_path / "train")
    with pytest.raises(ValueError, match=r"No snippet has 4 words and a score of 0\.5: pass a lower"):
        write_region_dataset(tmp_path / "train", [("one", picture, [])], min_score=0.5, min_words=4)
    assert written(tmp_path / "train") == before


def test_sentences_without_a_known_word_are_left_out(tiny_tokenizer):
    sentences = ["a dog", "sesquipedalian", "!?", "a sesquipedalian dog"]
    assert known_sentences(tiny_tokenizer, sentences) == ["a dog", "a sesquipedalian dog"]
