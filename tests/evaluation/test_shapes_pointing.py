"""Whether words point at the drawn objects that they name."""

import numpy as np
import pytest
import torch

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnForImageTextRetrieval
from modeling_cnnrnn.data.batching import CaptionDataset
from modeling_cnnrnn.data.shapes import boxes_of
from modeling_cnnrnn.data.shapes.language import named_things
from modeling_cnnrnn.evaluation.shapes_pointing import PointedWord, point_words, pointing_scores


def word(slot: str, x: float, y: float, *boxes: tuple[float, ...], middle: tuple[float, float] = (0.0, 0.0)):
    return PointedWord(slot, np.array([x, y]), np.array(middle), np.array([0.125, 0.125]), np.array(boxes))


def test_words_are_counted_by_what_they_say():
    left, right = (0.0, 0.2, 0.4, 0.6), (0.6, 0.2, 1.0, 0.6)
    scores = pointing_scores(
        [
            word("color", 0.1, 0.3, left, middle=(0.1, 0.3)),
            word("color", 0.3, 0.1, left),  # a cell lower, and half a cell to the right, all are inside
            word("kind", 0.7, 0.3, left, right),
            word("kind", 0.55, 0.3, right, left),
        ]
    )
    assert scores["pointing"] == 0.5
    assert scores["pointing_color"] == scores["pointing_kind"] == 0.5
    assert scores["pointing_middle"] == 0.25
    assert scores["pointing_shifted"] == 1.0
    assert (scores["shift_x"], scores["shift_y"]) == (0.5, 1.0)
    assert scores["pointing_chance"] == pytest.approx((2 * 0.16 + 2 * 0.32) / 4)


def test_a_word_points_at_the_cell_that_it_fits_best(pictures, processor, tiny_encoder_config):
    config = CnnRnnAlignmentConfig.from_tokenizer(processor.tokenizer, encoder=tiny_encoder_config, embedding_size=8)
    model = CnnRnnForImageTextRetrieval(config).eval()
    rows = pictures.select(range(3))
    dataset, captions, boxes = CaptionDataset(rows, processor), rows["captions"][:], boxes_of(rows)
    pointed = iter(point_words(model, dataset, captions, boxes))
    for row in range(3):
        image = model.get_image_features(dataset[row]["pixel_values"][None], output_boxes=True)
        for caption in captions[row][:2]:
            ids = torch.tensor(processor.encode_captions([caption]))
            vectors = model.get_text_features(ids).last_hidden_state[0]
            for place, (_, slot, name) in enumerate(named_things(caption)):
                if slot is not None:
                    scores = image.last_hidden_state[0, :-1] @ vectors[place]
                    found = next(pointed)
                    np.testing.assert_array_equal(found.center, image.centers[0, scores.argmax()].numpy())
                    np.testing.assert_allclose(found.boxes, [box for other, box in boxes[row] if other == name])
                    assert found.slot == slot
    assert next(pointed, None) is None
