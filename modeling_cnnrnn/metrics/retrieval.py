"""Measure the retrieval of captions by images and of images by captions, as Deep Visual-Semantic Alignments does."""

from collections.abc import Sequence

import numpy as np


def retrieval_metrics(
    scores: np.ndarray, captions_per_image: int | Sequence[int] = 5, fold_size: int | None = None
) -> dict[str, dict[str, float]]:
    """
    Compute recall and median rank in both directions.

    An image's rank is that of the best of its captions. Ties count against the model. The median rank is
    `floor(median) + 1` of ranks that begin at 0, as the papers compute it.

    Args:
        scores: similarity of each image and each caption, `(num_images, num_captions)`, larger for more similar ones; the
            captions of an image are consecutive, in the order of the images.
        captions_per_image: number of captions of each image: one number for all, or a list.
        fold_size: average over consecutive folds of this many images: 1000 on COCO's 5,000 test images is 1K in most
            papers, `None` is 5K. For the first 1,000 images alone, 1K in other papers, pass `scores[:1000, :5000]`.

    Returns:
        `{"image_to_text": {"R@1", "R@5", "R@10", "median_rank"}, "text_to_image": {...}}`, the recalls in percent.

    Raises:
        ValueError: the shape does not fit, or a score is NaN.
    """
    scores = np.asarray(scores)
    num_images = len(scores)
    counts = np.broadcast_to(captions_per_image, num_images) if np.ndim(captions_per_image) == 0 else captions_per_image
    counts = np.asarray(counts)
    if not num_images or len(counts) != num_images or scores.shape != (num_images, counts.sum()) or counts.min() < 1:
        each = captions_per_image if np.ndim(captions_per_image) == 0 else "a list of"
        raise ValueError(
            f"`scores` has shape {scores.shape}: with {each} captions for each image it must be (num_images, "
            "num_captions), one caption or more for each image."
        )
    if np.isnan(scores).any():
        raise ValueError("`scores` holds NaN: a rank needs numbers.")
    fold_size = num_images if fold_size is None else fold_size
    if fold_size < 1 or num_images % fold_size:
        raise ValueError(f"`fold_size` is {fold_size}: pass a number that divides the {num_images} images.")
    folds = []
    ends = np.concatenate([[0], np.cumsum(counts)])
    for start in range(0, num_images, fold_size):
        stop = start + fold_size
        folds.append(_ranks(scores[start:stop, ends[start] : ends[stop]], counts[start:stop]))
    return {
        direction: _mean([_summary(ranks[direction]) for ranks in folds])
        for direction in ("image_to_text", "text_to_image")
    }


def _ranks(scores: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Count the wrong candidates that score as high as the right one, or higher."""
    own = np.repeat(np.arange(len(scores)), counts)  # image of each caption
    right = scores[own, np.arange(scores.shape[1])]
    starts = np.cumsum(counts) - counts
    best = np.maximum.reduceat(right, starts)
    right_and_as_good = np.add.reduceat(right >= best[own], starts, dtype=np.int64)
    return {
        "image_to_text": (scores >= best[:, None]).sum(axis=1) - right_and_as_good,
        "text_to_image": (scores >= right).sum(axis=0) - 1,
    }


def _summary(ranks: np.ndarray) -> dict[str, float]:
    recalls = {f"R@{k}": 100 * float((ranks < k).mean()) for k in (1, 5, 10)}
    return recalls | {"median_rank": float(np.floor(np.median(ranks)) + 1)}


def _mean(summaries: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([summary[name] for summary in summaries])) for name in summaries[0]}


def less_hubs(scores: np.ndarray, other_scores: np.ndarray, num_neighbors: int = 10, weight: float = 1.0) -> np.ndarray:
    """
    Lower the scores of captions that fit many images, as cross-domain similarity local scaling does.

    A few captions are near to most images, and come first for too many of them. What a caption scores with the images of
    another set that it fits best, on average, is subtracted from its scores (CSLS, https://arxiv.org/abs/1710.04087). The
    order of the images for a caption stays as it is. Transposed scores, with other captions in place of other images, lower
    those of images that fit many captions; then the order of the captions for an image stays as it is.

    Args:
        scores: of images and captions, `(num_images, num_captions)`.
        other_scores: of other images, such as training images, and the same captions, `(num_others, num_captions)`.
        num_neighbors: number of these images to average over.
        weight: share of the average that is subtracted.

    Raises:
        ValueError: the captions differ in number, or there are fewer images than `num_neighbors`.
    """
    if scores.shape[1:] != other_scores.shape[1:] or not 1 <= num_neighbors <= len(other_scores):
        raise ValueError(
            f"`other_scores` has shape {other_scores.shape}: pass those of {num_neighbors} images or more with the same "
            f"{scores.shape[-1]} captions."
        )
    return scores - weight * np.partition(other_scores, -num_neighbors, axis=0)[-num_neighbors:].mean(axis=0)
