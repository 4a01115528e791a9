"""Regions of a picture, each with its sentence."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_cnnrnn.evaluation.figures import save_region_figure
from modeling_cnnrnn.evaluation.region_captions import (
    caption_regions,
    grid_boxes,
    non_maximum_suppression,
)
from modeling_cnnrnn.metrics.pointing import box_iou


@pytest.fixture
def picture() -> Image.Image:
    """Noise in another colour in each quarter."""
    noise = np.random.default_rng(0).integers(0, 90, (60, 80, 3))
    noise[:30, :40, 0] += 160
    noise[30:, :40, 1] += 160
    noise[30:, 40:, 2] += 160
    return Image.fromarray(noise.astype(np.uint8))


def test_a_region_is_described_as_its_crop_alone(model, tiny_processor, picture):
    """The sentence and its probability, token by token, are those of the crop as a picture of its own."""
    boxes = [(0, 0, 40, 30), (40, 30, 80, 60), (10, 5, 70, 55)]
    found = caption_regions(model, tiny_processor, picture, boxes, iou_threshold=1.0, num_beams=2, batch_size=2)
    assert sorted(region["box"] for region in found) == sorted(boxes)
    for region in found:
        pixel_values = tiny_processor(images=picture.crop(region["box"]), return_tensors="pt")["pixel_values"]
        sequence = model.generate(pixel_values=pixel_values, num_beams=2)[0]
        labels = sequence[1:]
        with torch.no_grad():
            logits = model(pixel_values, decoder_input_ids=sequence[None, :-1]).logits[0]
        mean = logits.log_softmax(-1).gather(1, labels[:, None]).mean()
        assert region["text"] == tiny_processor.decode(sequence, skip_special_tokens=True)
        assert region["score"] == pytest.approx(mean.exp().item(), rel=1e-4)


def test_regions_come_best_first_and_no_more_than_asked_for(model, tiny_processor, picture):
    found = caption_regions(model, tiny_processor, picture, iou_threshold=1.0)
    scores = [region["score"] for region in found]
    assert len(found) == 1 + 4 + 9
    assert scores == sorted(scores, reverse=True)
    assert caption_regions(model, tiny_processor, picture, iou_threshold=1.0, max_regions=3) == found[:3]


def test_of_regions_that_overlap_the_surest_stays(model, tiny_processor, picture):
    alone = caption_regions(model, tiny_processor, picture, iou_threshold=1.0)
    kept = caption_regions(model, tiny_processor, picture, iou_threshold=0.3)
    assert kept[0] == alone[0]
    assert 1 < len(kept) < len(alone)
    ious = box_iou(*(2 * [np.array([region["box"] for region in kept])]))
    assert (ious - np.eye(len(kept)) <= 0.3).all()
    for region in alone:
        if region not in kept:  # something surer is in its way
            surer = [other for other in kept if other["score"] >= region["score"]]
            assert box_iou(np.array([region["box"]]), np.array([other["box"] for other in surer])).max() > 0.3


def test_iou_is_that_of_counted_pixels():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 20, (12, 2, 2)), axis=1).reshape(12, 4)
    boxes[:, 2:] += 1
    masks = np.zeros((12, 21, 21), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    counted = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    np.testing.assert_allclose(box_iou(boxes, boxes), counted)


def test_suppression_is_that_of_the_plain_loop():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.random((50, 2, 2)), axis=1).reshape(50, 4)
    scores = rng.random(50)
    kept: list[int] = []
    for index in sorted(range(50), key=lambda i: -scores[i]):
        if all(box_iou(boxes[index][None], boxes[other][None]) <= 0.4 for other in kept):
            kept.append(index)
    assert non_maximum_suppression(boxes, scores, 0.4) == kept
    assert 5 < len(kept) < 45


def test_a_grid_covers_the_picture_with_boxes_that_overlap_by_half():
    boxes = np.array(grid_boxes(90, 60, [2]))
    np.testing.assert_allclose(boxes, [[0, 0, 60, 40], [30, 0, 90, 40], [0, 20, 60, 60], [30, 20, 90, 60]])
    assert grid_boxes(90, 60, [1]) == [(0, 0, 90, 60)]


@pytest.mark.parametrize(
    "box", [(0, 0, 81, 60), (-1, 0, 10, 10), (10, 10, 10, 20), (10, 20, 20, 10), (float("nan"), 0, 10, 10)]
)
def test_a_box_outside_the_picture_or_of_no_area_is_named(model, tiny_processor, picture, box):
    with pytest.raises(ValueError, match=r"no area of a picture of 80 x 60 pixels"):
        caption_regions(model, tiny_processor, picture, [box])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"boxes": []}, "`boxes` is empty"),
        ({"grid_sizes": [0]}, "`grid_sizes` is"),
        ({"max_regions": 0}, "`max_regions` is 0"),
        ({"num_return_sequences": 2, "num_beams": 2}, "a region has one sentence"),
    ],
)
def test_what_makes_no_sense_is_refused(model, tiny_processor, picture, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        caption_regions(model, tiny_processor, picture, **options)


def test_a_box_of_less_than_a_pixel_is_described(model, tiny_processor, picture):
    (region,) = caption_regions(model, tiny_processor, picture, [(79.2, 59.1, 79.6, 59.4)])
    assert region["box"] == (79.2, 59.1, 79.6, 59.4)


def test_boxes_are_drawn_over_the_picture(tmp_path):
    picture = Image.new("RGB", (80, 60), "white")
    regions = [
        {"box": (0, 0, 40, 30), "text": "a red quarter", "score": 0.5},
        {"box": (20, 10, 70, 50), "text": "$5 & <more>", "score": 0.25},
    ]
    save_region_figure(tmp_path / "new" / "regions.png", picture, regions)
    drawn = np.asarray(Image.open(tmp_path / "new" / "regions.png").convert("RGB")).astype(int)
    blue, orange = (31, 119, 180), (255, 127, 14)
    for color in (blue, orange):
        assert (np.abs(drawn - color).sum(axis=-1) < 30).sum() > 500
    assert drawn.shape[1] > drawn.shape[0] * 80 / 60 + 100  # the sentences stand beside the picture
