"""
Measure whether words point at the things they name.

Two measures that must never be mixed: the pointing game asks for a point inside a box, the accuracy by overlap for a box of
the right size. Figures of the first are several times those of the second.
"""

from collections.abc import Sequence

import numpy as np


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute intersection over union of boxes `(N, 4)` and `(M, 4)` with each other, `(N, M)`."""
    sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    areas, other_areas = ((array[:, 2:] - array[:, :2]).prod(axis=-1) for array in (boxes, others))
    return intersection / (areas[:, None] + other_areas - intersection)


def pointing_hits(points: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """
    Decide the pointing game (https://arxiv.org/abs/1608.00507): is each point in one of the boxes of its phrase?

    Args:
        points: `(N, 2)`, x and y.
        references: for each phrase boxes `(M, 4)`: left, top, right, bottom, in the unit of the points.

    Returns:
        `(N,)`; a phrase whose point is NaN is missed.

    Raises:
        ValueError: the numbers differ, or a phrase has no box.
    """
    points = np.asarray(points, dtype=float).reshape(-1, 2)
    boxes = _checked(len(points), references)
    return np.array(
        [
            bool(((point >= its[:, :2]) & (point <= its[:, 2:])).all(axis=1).any())
            for point, its in zip(points, boxes, strict=True)
        ],
        dtype=bool,
    )


def overlap_hits(predicted: np.ndarray, references: Sequence[np.ndarray], threshold: float = 0.5) -> np.ndarray:
    """
    Decide whether each predicted box overlaps that of its phrase: intersection over union of `threshold` or more.

    Several boxes of one phrase are one, the smallest that holds them all (https://arxiv.org/abs/1505.04870).

    Args:
        predicted: `(N, 4)`: left, top, right, bottom.
        references: as for [`pointing_hits`].

    Returns:
        `(N,)`; a phrase whose predicted box is NaN is missed.

    Raises:
        ValueError: the numbers differ, or a phrase has no box.
    """
    predicted = np.asarray(predicted, dtype=float).reshape(-1, 4)
    boxes = _checked(len(predicted), references)
    whole = [np.concatenate([its[:, :2].min(axis=0), its[:, 2:].max(axis=0)]) for its in boxes]
    overlaps = [box_iou(box[None], reference[None])[0, 0] for box, reference in zip(predicted, whole, strict=True)]
    return np.array(overlaps, dtype=float) >= threshold


def _checked(count: int, references: Sequence[np.ndarray]) -> list[np.ndarray]:
    boxes = [np.asarray(its, dtype=float).reshape(-1, 4) for its in references]
    if len(boxes) != count:
        raise ValueError(
            f"`references` holds the boxes of {len(boxes)} phrases for {count} predictions: pass one for each."
        )
    for number, its in enumerate(boxes):
        if len(its) == 0:
            raise ValueError(f"`references[{number}]` is empty: leave out phrases without a box.")
    return boxes
