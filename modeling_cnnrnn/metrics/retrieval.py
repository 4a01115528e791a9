"""Measure the retrieval of captions by images and of images by captions, as Deep Visual-Semantic Alignments does."""

from collections.abc import Sequence

import numpy as np


def retrieval_metrics(
    scores: np.ndarray, captions_per_image: int = 5, fold_size: int | None = None
) -> dict[str, dict[str, float]]:
    """
    Compute recall and median rank in both directions.

    An image's rank is that of the best of its captions. Ties count against the model. The median rank is
    `floor(median) + 1` of ranks that begin at 0, as the papers compute it.

    Args:
        scores: similarity of each image and each caption, `(num_images, num_images * captions_per_image)`, larger for
            more similar ones; the captions of an image are consecutive, in the order of the images.
        captions_per_image: number of captions of each image.
        fold_size: average over consecutive folds of this many images: 1000 on COCO's 5,000 test images is 1K in most
            papers, `None` is 5K. For the first 1,000 images alone, 1K in other papers, pass `scores[:1000, :5000]`.

    Returns:
        `{"image_to_text": {"R@1", "R@5", "R@10", "median_rank"}, "text_to_image": {...}}`, the recalls in percent.

    Raises:
        ValueError: the shape does not fit, or a score is NaN.
    """
    scores = np.asarray(scores)
    num_images = len(scores)
    if not num_images or scores.shape != (num_images, num_images * captions_per_image):
        raise ValueError(
            f"`scores` has shape {scores.shape}: with {captions_per_image} captions for each image it must be "
            f"(num_images, num_images * {captions_per_image})."
        )
    if np.isnan(scores).any():
        raise ValueError("`scores` holds NaN: a rank needs numbers.")
    fold_size = num_images if fold_size is None else fold_size
    if fold_size < 1 or num_images % fold_size:
        raise ValueError(f"`fold_size` is {fold_size}: pass a number that divides the {num_images} images.")
    folds = []
    for start in range(0, num_images, fold_size):
        stop = start + fold_size
        folds.append(_ranks(scores[start:stop, start * captions_per_image : stop * captions_per_image]))
    return {
        direction: _mean([_summary(ranks[direction]) for ranks in folds])
        for direction in ("image_to_text", "text_to_image")
    }


def _ranks(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Count the wrong candidates that score as high as the right one, or higher."""
    num_images, num_captions = scores.shape
    own = np.repeat(np.arange(num_images), num_captions // num_images)  # image of each caption
    right = scores[own, np.arange(num_captions)]
    best = right.reshape(num_images, -1).max(axis=1)
    right_and_as_good = (right.reshape(num_images, -1) >= best[:, None]).sum(axis=1)
    return {
        "image_to_text": (scores >= best[:, None]).sum(axis=1) - right_and_as_good,
        "text_to_image": (scores >= right).sum(axis=0) - 1,
    }


def _summary(ranks: np.ndarray) -> dict[str, float]:
    recalls = {f"R@{k}": 100 * float((ranks < k).mean()) for k in (1, 5, 10)}
    return recalls | {"median_rank": float(np.floor(np.median(ranks)) + 1)}


def _mean(summaries: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([summary[name] for summary in summaries])) for name in summaries[0]}
