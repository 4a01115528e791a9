"""BLEU-1 to BLEU-4 (https://aclanthology.org/P02-1040) with coco-caption's smoothing and closest reference length."""

import math
from collections.abc import Sequence

import numpy as np

from .ngrams import MAX_N, PairedCaptions


def bleu(captions: PairedCaptions) -> tuple[list[float], np.ndarray]:
    """
    Compute BLEU.

    Returns:
        BLEU-1 .. BLEU-4 of the corpus, which is not a mean over images, and those of each image, `(4, num_images)`.
    """
    is_reference, image = captions.is_reference, captions.image
    lengths = captions.captions.lengths
    length = lengths[~is_reference]
    guesses = np.maximum(length - np.arange(MAX_N)[:, None], 0)
    correct = np.zeros_like(guesses)
    for n, (ngrams, (prediction, reference)) in enumerate(zip(captions.ngrams, captions.matches, strict=True)):
        entry, first = np.unique(prediction, return_index=True)
        if entry.size:  # reduceat refuses an empty array
            most = np.maximum.reduceat(ngrams.count[reference], first)
            clipped = np.minimum(ngrams.count[entry], most)
            correct[n] = np.bincount(image[ngrams.caption[entry]], clipped, length.size)

    # the closest reference length, the shorter one on a tie: the smallest (distance, length) packed in one integer
    base = int(lengths.max(initial=0)) + 1
    distance = np.abs(lengths[is_reference] - length[image[is_reference]])
    first = np.cumsum(captions.num_references) - captions.num_references
    closest = np.minimum.reduceat(distance * base + lengths[is_reference], first) % base

    corpus = _bleu(correct.sum(1).tolist(), guesses.sum(1).tolist(), int(length.sum()), int(closest.sum()))
    per_image = map(_bleu, correct.T.tolist(), guesses.T.tolist(), length.tolist(), closest.tolist())
    return corpus, np.array(list(per_image)).T


def _bleu(correct: Sequence[int], guesses: Sequence[int], length: int, reference_length: int) -> list[float]:
    # coco-caption's arithmetic with its constants, in Python floats: NumPy's powers differ in the last bit
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    brevity_penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(MAX_N):
        product *= (correct[n] + 1e-15) / (guesses[n] + 1e-9)
        scores.append(product ** (1 / (n + 1)) * brevity_penalty)
    return scores
