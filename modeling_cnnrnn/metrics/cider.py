"""
CIDEr-D (https://arxiv.org/abs/1411.5726, section 6), the value that coco-caption calls CIDEr.

`cider_d` weights n-grams by the references that it evaluates, as coco-caption does. `CiderD` weights them by a fixed
table, a `DocumentFrequency` of the training references, as self-critical training needs it: there a reward must not
depend on the other images of the batch.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from modeling_cnnrnn.metrics.ngrams import Caption, EncodedCaptions, NGrams, PairedCaptions, count_ngrams, encode, ranges, MAX_N


SIGMA = 6.0  # standard deviation of the length penalty, in words


def cider_d(captions: PairedCaptions) -> tuple[float, np.ndarray]:
    """
    Returns:
        The mean over images and the score of each image, `(num_images,)`: 10 is the best.
    """
    frequencies = [
        _document_frequency(ngrams, captions.image, captions.is_reference) for ngrams in captions.ngrams
    ]
    scores = _cider_d(captions, frequencies, captions.num_references.size)
    return float(scores.mean()), scores


def _document_frequency(ngrams: NGrams, image: np.ndarray, is_reference: np.ndarray) -> np.ndarray:
    """In the references of how many images each n-gram occurs, `(num_ngrams,)`."""
    of_reference = is_reference[ngrams.caption]
    ngram, image = ngrams.ngram[of_reference], image[ngrams.caption[of_reference]]
    is_new = (np.diff(ngram, prepend=-1) != 0) | (np.diff(image, prepend=-1) != 0)
    return np.bincount(ngram[is_new], minlength=ngrams.last_word.size)


def _cider_d(captions: PairedCaptions, frequencies: Sequence[np.ndarray], num_images: int) -> np.ndarray:
    """
    Args:
        frequencies: for n = 1 .. 4, the document frequency of each n-gram of `captions`, `(num_ngrams,)`.
        num_images: number of images that the frequencies were counted on.
    """
    num_pairs = captions.num_references[captions.image_of_prediction]
    num_references = captions.captions.lengths.size - num_pairs.size
    # every prediction meets every reference of its image; the pairs of a prediction stand side by side
    first_reference = np.cumsum(captions.num_references) - captions.num_references
    first_pair = np.cumsum(num_pairs) - num_pairs
    reference = ranges(first_reference[captions.image_of_prediction], num_pairs)
    prediction = np.repeat(np.arange(num_pairs.size), num_pairs)

    similarity = np.zeros(reference.size)
    for ngrams, (predicted, referred), frequency in zip(captions.ngrams, captions.matches, frequencies, strict=True):
        inverse_frequency = np.log(num_images) - np.log(np.maximum(frequency, 1))
        weight = ngrams.count * inverse_frequency[ngrams.ngram]
        norm = np.sqrt(np.bincount(ngrams.caption, weight**2, captions.captions.lengths.size))
        # the clipped dot product: a word said twice is not worth more than the reference says it
        product = np.minimum(weight[predicted], weight[referred]) * weight[referred]
        of_prediction, of_reference = ngrams.caption[predicted] - num_references, ngrams.caption[referred]
        place = first_pair[of_prediction] + of_reference - first_reference[captions.image[of_reference]]
        norms = norm[num_references + prediction] * norm[reference]
        # a norm is 0 where each n-gram is in all images: then the product is 0 too
        similarity += np.bincount(place, product, reference.size) / np.where(norms > 0, norms, 1)

    num_bigrams = np.maximum(captions.captions.lengths - 1, 0)  # what coco-caption takes for the length
    difference = num_bigrams[num_references + prediction] - num_bigrams[reference]
    similarity *= np.exp(-(difference**2) / (2 * SIGMA**2))
    return 10 / MAX_N * np.bincount(prediction, similarity, num_pairs.size) / num_pairs
