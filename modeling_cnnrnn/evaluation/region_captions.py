"""
Describe the regions of a picture: a sentence for each box, and of boxes that overlap the one described with most certainty.

The captioner is one that was trained on regions and the words that belong to them (section 3.2 of
https://arxiv.org/abs/1412.2306); the layout of the result is that of dense captioning (https://arxiv.org/abs/1511.07571).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..metrics.pointing import box_iou
from ..models.image_loading_cnnrnn import load_image


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# by default a picture is described as a whole, in 4 parts of two thirds of its sides, and in 9 of half of them
GRID_SIZES = (1, 2, 3)


@torch.inference_mode()
def caption_regions(
    model: Any,
    processor: Any,
    image: Any,
    boxes: Sequence[Box] | None = None,
    grid_sizes: Sequence[int] = GRID_SIZES,
    iou_threshold: float = 0.5,
    max_regions: int | None = None,
    batch_size: int = 16,
    **generate_kwargs: Any,
) -> list[dict[str, Any]]:
    """
    Describe regions of a picture.

    Args:
        model: a captioner, [`CnnRnnForConditionalGeneration`].
        processor: its [`CnnRnnProcessor`].
        image: the picture, as [`load_image`] takes it.
        boxes: regions to describe, in pixels of the upright picture, such as [`detect_boxes`] finds; by default those of
            [`grid_boxes`].
        grid_sizes: sizes of the grids of these.
        iou_threshold: of two boxes whose intersection is more than this share of their union, the one whose sentence has
            the higher score stays; 1 keeps all.
        max_regions: number of regions to return at most.
        batch_size: regions in a batch.
        generate_kwargs: arguments of `generate`, such as `num_beams`.

    Returns:
        `[{"box": (left, top, right, bottom), "text": sentence, "score": probability}]`, best first. The score is the
        geometric mean of the probabilities of the sentence's tokens, end token included.

    Raises:
        ValueError: a box has no area or is not inside the picture, there is no box, the picture is not usable, or
            several sentences a region are asked for.
        OSError: the picture cannot be read.
    """
    if generate_kwargs.get("num_return_sequences", 1) != 1:
        raise ValueError("`num_return_sequences` is more than 1: a region has one sentence.")
    if max_regions is not None and max_regions < 1:
        raise ValueError(f"`max_regions` is {max_regions}: pass 1 or more, or None for all.")
    picture = load_image(image)
    if boxes is None:
        boxes = grid_boxes(picture.width, picture.height, grid_sizes)
    boxes = [_checked(box, picture.width, picture.height) for box in boxes]
    if not boxes:
        raise ValueError("`boxes` is empty: pass at least one, or None for those of a grid.")
    texts: list[str] = []
    scores: list[float] = []
    for start in range(0, len(boxes), batch_size):
        # whole pixels, and at least one, of which a box may have less
        crops = [
            picture.crop((int(left), int(top), max(int(left) + 1, round(right)), max(int(top) + 1, round(bottom))))
            for left, top, right, bottom in boxes[start : start + batch_size]
        ]
        pixel_values = processor(images=crops, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        encoder_outputs = model.get_encoder()(pixel_values, return_dict=True)
        sequences = model.generate(encoder_outputs=encoder_outputs, **generate_kwargs)
        sentences = model.score_sentences(sequences, encoder_outputs)
        means = sentences.log_probs.sum(dim=1) / sentences.mask.sum(dim=1)
        texts += processor.batch_decode(sequences, skip_special_tokens=True)
        scores += means.exp().tolist()
    kept = non_maximum_suppression(np.array(boxes), np.array(scores), iou_threshold)[:max_regions]
    return [{"box": boxes[index], "text": texts[index], "score": scores[index]} for index in kept]


def grid_boxes(width: int, height: int, grid_sizes: Sequence[int] = GRID_SIZES) -> list[Box]:
    """
    Cover a picture with boxes that overlap by half.

    Args:
        grid_sizes: for each n, n x n boxes of 2 / (n + 1) of the picture's sides; 1 is the whole picture.

    Raises:
        ValueError: a size is not positive.
    """
    if not all(size >= 1 for size in grid_sizes):
        raise ValueError(f"`grid_sizes` is {tuple(grid_sizes)}: pass sizes of 1 or more.")
    return [
        (
            column * width / (size + 1),
            row * height / (size + 1),
            (column + 2) * width / (size + 1),
            (row + 2) * height / (size + 1),
        )
        for size in grid_sizes
        for row in range(size)
        for column in range(size)
    ]


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> list[int]:
    """
    Keep of boxes that overlap the one with the highest score.

    Args:
        boxes: `(N, 4)`: left, top, right, bottom.
        scores: `(N,)`.
        iou_threshold: a box is dropped if its intersection with a kept one is more than this share of their union.

    Returns:
        The boxes that are kept, highest score first.
    """
    kept: list[int] = []
    left = np.argsort(-scores, kind="stable")
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[box_iou(boxes[best][None], boxes[left])[0] <= iou_threshold]
    return kept


def _checked(box: Box, width: int, height: int) -> Box:
    left, top, right, bottom = map(float, box)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"`boxes` holds {tuple(box)}, which is no area of a picture of {width} x {height} pixels: pass (left, top, "
            "right, bottom) inside it."
        )
    return left, top, right, bottom
