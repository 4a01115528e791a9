"""Pointing: the two measures, by hand."""

import numpy as np
import pytest

from modeling_cnnrnn.metrics import overlap_hits, pointing_hits
from modeling_cnnrnn.metrics.pointing import box_iou


BOXES = [np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), np.array([[5, 5, 15, 25]])]


def test_a_point_in_any_box_of_its_phrase_is_a_hit():
    assert pointing_hits(np.array([[25, 21], [14, 24]]), BOXES).tolist() == [True, True]
    assert pointing_hits(np.array([[15, 15], [16, 24]]), BOXES).tolist() == [False, False]
    assert pointing_hits(np.array([[5, 21], [np.nan, np.nan]]), BOXES).tolist() == [
        False,
        False,
    ]  # x of one, y of another


def test_boxes_of_a_phrase_overlap_as_one():
    predicted = np.array([[0, 0, 30, 30], [5, 5, 15, 15]])
    assert overlap_hits(predicted, BOXES).tolist() == [True, True]  # 1 and exactly a half
    assert overlap_hits(predicted, BOXES, threshold=0.51).tolist() == [True, False]
    assert overlap_hits(np.array([[0, 0, 10, 10], [np.nan] * 4]), BOXES).tolist() == [False, False]


def test_a_point_in_a_box_of_the_wrong_size_is_a_hit_of_the_first_measure_alone():
    box = np.array([[100.0, 100, 101, 101]])
    reference = [np.array([[0, 0, 200, 200]])]
    assert pointing_hits((box[:, :2] + box[:, 2:]) / 2, reference).all()
    assert not overlap_hits(box, reference).any()


def test_overlap_is_that_of_counted_pixels():
    generator = np.random.default_rng(0)
    boxes = np.sort(generator.integers(0, 12, (30, 2, 2)), axis=1).reshape(-1, 4)
    boxes[:, 2:] += 1
    masks = np.zeros((30, 14, 14), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    expected = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    assert box_iou(boxes, boxes) == pytest.approx(np.array(expected))


def test_phrases_without_boxes_are_refused():
    with pytest.raises(ValueError, match=r"`references\[1\]` is empty"):
        pointing_hits(np.zeros((2, 2)), [BOXES[0], np.zeros((0, 4))])
    with pytest.raises(ValueError, match="boxes of 2 phrases for 3 predictions"):
        overlap_hits(np.zeros((3, 4)), BOXES)
