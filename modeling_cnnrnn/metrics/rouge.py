"""Compute ROUGE-L (https://aclanthology.org/W04-1013) as coco-caption does: beta 1.2, the best reference for each part."""

from collections.abc import Sequence

import numpy as np


BETA = 1.2


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """
    Compute ROUGE-L.

    Args:
        predictions: one tokenized caption for each image.
        references: the tokenized references of each image.

    Returns:
        The mean over images and the score of each image, `(num_images,)`.
    """
    scores = np.array(list(map(_rouge_l, predictions, references)))
    return float(scores.mean()), scores


def _rouge_l(prediction: str, references: Sequence[str]) -> float:
    # split at single spaces: an empty caption is one empty word, as in coco-caption
    words = prediction.split(" ")
    places: dict[str, int] = {}
    for i, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << i
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        common = _common_subsequence(places, len(words), reference_words)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference_words))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(places: dict[str, int], length: int, words: Sequence[str]) -> int:
    """
    Compute the length of the longest common subsequence of `words` and the sentence of `length` words that has each word
    at the bits `places[word]`.

    One row of the dynamic programme is one integer (https://doi.org/10.1007/BF01840358, in Hyyro's later form), whose zero
    bits mark where the row grows.
    """
    row = full = (1 << length) - 1
    for word in words:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return length - row.bit_count()
