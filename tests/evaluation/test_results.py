"""Files of an evaluation: which pictures are chosen, ids as COCO writes them."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import BitImageProcessorPil

from modeling_cnnrnn.data.batching import CaptionDataset
from modeling_cnnrnn.evaluation import results
from modeling_cnnrnn.evaluation.captions import GeneratedCaption
from modeling_cnnrnn.evaluation.results import (
    ScoredCaptions,
    choose_pictures,
    coco_id,
    write_coco_files,
    write_page,
    write_pictures,
)
from modeling_cnnrnn.metrics import CaptionScores


def test_the_best_the_middle_and_the_worst_are_chosen():
    scores = [0.3, 0.9, 0.1, 0.8, 0.5, 0.7, 0.2, 0.6, 0.4, 0.0]
    names = {name: scores[index] for index, name in choose_pictures(scores).items()}
    assert {group: [names[f"{group}-{place}.png"] for place in (1, 2, 3)] for group in ("best", "middle", "worst")} == {
        "best": [0.9, 0.8, 0.7],
        "middle": [0.6, 0.5, 0.4],
        "worst": [0.0, 0.1, 0.2],
    }


def test_few_images_are_chosen_once_each():
    assert choose_pictures([0.1, 0.3, 0.2, 0.0]) == {1: "best-1.png", 2: "middle-1.png", 3: "worst-1.png"}
    assert choose_pictures([0.5]) == {}


def test_wrong_captions_are_shown_that_are_not_shown_already():
    scores = [0.1, 0.9, 0.2, 0.8, 0.7]
    assert choose_pictures(scores, wrong=[0, 2, 3]) == {
        1: "best-1.png",
        4: "middle-1.png",
        0: "worst-1.png",
        2: "wrong-1.png",
        3: "wrong-2.png",
    }


@pytest.mark.parametrize(("image_id", "written"), [("42", 42), ("cat.jpg", "cat.jpg"), ("-1", "-1")])
def test_ids_are_numbers_where_coco_has_numbers(image_id, written):
    assert coco_id(image_id) == written


def test_coco_files_hold_the_images_that_could_be_read(tmp_path):
    captions = [GeneratedCaption(0, "a dog"), GeneratedCaption(2, "a cat")]
    write_coco_files(tmp_path, captions, [["dog", "a hound"], ["broken"], ["cat"]], ["7", "8", "cat.jpg"])
    results, references = (json.loads((tmp_path / f"captions_{n}.json").read_text()) for n in ("results", "references"))
    assert results == [{"image_id": 7, "caption": "a dog"}, {"image_id": "cat.jpg", "caption": "a cat"}]
    assert [image["id"] for image in references["images"]] == [7, "cat.jpg"]
    assert [(row["image_id"], row["caption"]) for row in references["annotations"]] == [
        (7, "dog"),
        (7, "a hound"),
        ("cat.jpg", "cat"),
    ]


def test_attention_maps_lie_on_the_part_of_a_picture_that_is_seen(processor, tmp_path, monkeypatch):
    """The CNN sees the middle of a wide picture; the first word is about its left end, the second about its lower right."""
    size = {"height": 32, "width": 32}
    processor.image_processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=size, do_convert_rgb=True)
    rows = [
        {"image": Image.new("RGB", (512, 128), "white"), "image_id": str(i), "captions": ["a circle"]} for i in range(3)
    ]
    dataset = CaptionDataset(Dataset.from_list(rows), processor)
    attention = np.zeros((2, 4, 4), np.float32)
    attention[0, :, 0] = attention[1, 3, 3] = 1
    middles = (torch.arange(4) + 0.5) / 4
    captions = [
        GeneratedCaption(row, "a circle", 0.0, ["a", "circle"], [0.5, 0.5], attention, (middles, middles))
        for row in range(3)
    ]
    scores = CaptionScores(["0", "1", "2"])
    scores.per_image["CIDEr"] = np.array([0.3, 0.2, 0.1])
    scored = ScoredCaptions(captions, scores, [["a circle"]] * 3)
    write_page(tmp_path / "gallery.html", dataset, scored, 1, "Captions")
    encoded = re.findall(r"data:image/png;base64,([\w+/=]+)", (tmp_path / "gallery.html").read_text())
    veils = [np.asarray(Image.open(io.BytesIO(base64.b64decode(veil))))[..., 1] for veil in encoded[-2:]]
    drawn = []
    monkeypatch.setattr(results, "save_attention_figure", lambda *arguments: drawn.append(arguments))
    write_pictures(tmp_path / "pictures", dataset, scored)
    ((_, _, _, (maps,)),) = drawn
    for opacity, its_map, place in zip(veils, maps, [(slice(0, 32), 12), (30, 19)], strict=True):
        assert opacity.shape == its_map.shape == (32, 32)
        beside = np.r_[0:12, 20:32]  # 384 of 512 pixels are not seen; their edges are found to a pixel
        assert opacity[:, beside].min() > 180
        assert its_map[:, beside].max() < 0.1
        assert np.all(opacity[place] < 30)
        assert np.all(its_map[place] > 0.8)
