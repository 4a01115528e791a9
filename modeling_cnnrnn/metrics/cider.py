"""
Compute CIDEr-D (https://arxiv.org/abs/1411.5726, section 6), the value that coco-caption calls CIDEr.

`cider` weights n-grams by the references that it evaluates, as coco-caption does. `CiderD` weights them by a fixed
`DocumentFrequency` of training references, as self-critical training needs it (https://arxiv.org/abs/1612.00563): a
reward must not depend on the other images of its batch.
"""

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..files import atomic_path
from .ngrams import (
    MAX_N,
    Caption,
    EncodedCaptions,
    NGrams,
    Numbering,
    PairedCaptions,
    count_ngrams,
    differs_from_last,
    encode,
    ranges,
)


_LAST_KEY = np.iinfo(np.int64).max  # no n-gram; ends each table, so that a search always lands inside

SIGMA = 6.0  # standard deviation of the length penalty, in words


def cider(captions: PairedCaptions) -> tuple[float, np.ndarray]:
    """
    Compute CIDEr-D, weighted by the references of these captions.

    Returns:
        The mean over images and the score of each image, `(num_images,)`; a perfect score is 10.
    """
    frequencies = []
    for ngrams in captions.ngrams:
        of_reference = captions.is_reference[ngrams.caption]
        images = captions.image[ngrams.caption[of_reference]]
        frequencies.append(_document_frequency(ngrams.ngram[of_reference], images, ngrams.prefix.size))
    scores = _cider_d(captions, frequencies, captions.num_references.size)
    return float(scores.mean()), scores


def _document_frequency(ngram: np.ndarray, image: np.ndarray, num_ngrams: int) -> np.ndarray:
    """Count the images of each n-gram in the sorted pairs of `ngram` and `image`, `(num_ngrams,)`."""
    return np.bincount(ngram[differs_from_last(ngram) | differs_from_last(image)], minlength=num_ngrams)


def _cider_d(captions: PairedCaptions, frequencies: Sequence[np.ndarray], num_images: int) -> np.ndarray:
    """
    Compute CIDEr-D with given document frequencies.

    Args:
        frequencies: for n = 1 .. 4, the number of images whose references hold each n-gram, `(num_ngrams,)`.
        num_images: number of images that were counted.

    Returns:
        The score of each prediction, `(num_predictions,)`.
    """
    lengths = captions.captions.lengths
    num_pairs = captions.num_references[captions.image_of_prediction]
    num_references = lengths.size - num_pairs.size
    # every prediction is compared with every reference of its image; the pairs of a prediction are consecutive
    first_reference = np.cumsum(captions.num_references) - captions.num_references
    first_pair = np.cumsum(num_pairs) - num_pairs
    reference = ranges(first_reference[captions.image_of_prediction], num_pairs)
    prediction = num_references + np.repeat(np.arange(num_pairs.size), num_pairs)

    similarity = np.zeros(reference.size)
    for ngrams, (predicted, referred), frequency in zip(captions.ngrams, captions.matches, frequencies, strict=True):
        inverse_frequency = np.log(num_images) - np.log(np.maximum(frequency, 1))
        weight = ngrams.count * inverse_frequency[ngrams.ngram]
        norm = np.sqrt(np.bincount(ngrams.caption, weight * weight, lengths.size))
        # clipped: repeating a word scores no more than its count in the reference
        product = np.minimum(weight[predicted], weight[referred]) * weight[referred]
        by, of = ngrams.caption[predicted], ngrams.caption[referred]
        pair = first_pair[by - num_references] + of - first_reference[captions.image[of]]
        norms = norm[prediction] * norm[reference]
        # a norm of 0 leaves a product of 0: there is no such n-gram, or each is in all images
        similarity += np.bincount(pair, product, reference.size) / np.where(norms > 0, norms, 1)

    difference = lengths[prediction] - lengths[reference]
    similarity *= np.exp(-(difference**2) / (2 * SIGMA**2))
    return 10 / MAX_N * np.bincount(prediction - num_references, similarity, num_pairs.size) / num_pairs


class DocumentFrequency:
    """
    Number of images in whose references each n-gram of one to four words occurs.

    N-grams of a single image are left out: they have the weight of an unknown n-gram. Build a table with
    `from_references`, keep it beside the checkpoint with `save` and `load`.

    Args:
        num_images: number of images that were counted.
        keys: for n = 1 .. 4, the n-grams: index of the first n - 1 words in the table before, shifted by 31 bits, plus
            the last word. Sorted, and ended by a key that belongs to no n-gram.
        counts: for n = 1 .. 4, the number of images of each n-gram.
        vocabulary: ids of the words, if captions are strings.
    """

    def __init__(
        self,
        num_images: int,
        keys: Sequence[np.ndarray],
        counts: Sequence[np.ndarray],
        vocabulary: Mapping[str, int] | None = None,
    ):
        self.num_images, self.vocabulary = num_images, vocabulary
        self.keys, self.counts = list(keys), list(counts)

    def __repr__(self) -> str:
        words = "token ids" if self.vocabulary is None else f"{len(self.vocabulary)} words"
        return f"DocumentFrequency({self.num_images} images, {sum(map(len, self.keys)) - MAX_N} n-grams of {words})"

    @classmethod
    def from_references(cls, references: Sequence[Sequence[Caption]]) -> "DocumentFrequency":
        """
        Count the n-grams of training references.

        Args:
            references: the captions of each training image: all sequences of token ids, or all strings of tokens (see
                `tokenize_captions`). Count the same kind of tokens that is scored later, with or without the end token.
        """
        numbering = Numbering()
        captions = encode([caption for captions in references for caption in captions], numbering)
        image = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
        keys, counts = [], []
        index = np.zeros(1, np.int64)  # of the kept (n - 1)-grams
        for ngrams in count_ngrams(captions):
            frequency = _document_frequency(ngrams.ngram, image[ngrams.caption], ngrams.prefix.size)
            kept = frequency > 1
            keys.append(np.append(index[ngrams.prefix[kept]] << 31 | ngrams.last_word[kept], _LAST_KEY))
            counts.append(np.append(frequency[kept], 0))
            index = np.cumsum(kept) - 1
        return cls(len(references), keys, counts, numbering if numbering else None)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file whole or not at all."""
        tensors = {f"keys_{n}": keys for n, keys in enumerate(self.keys, start=1)}
        tensors |= {f"counts_{n}": counts for n, counts in enumerate(self.counts, start=1)}
        metadata = {"num_images": str(self.num_images), "vocabulary": json.dumps(self.vocabulary)}
        with atomic_path(path) as partial:
            save_file(tensors, partial, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DocumentFrequency":
        """Read a table that `save` has written."""
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            keys = [file.get_tensor(f"keys_{n}") for n in range(1, MAX_N + 1)]
            counts = [file.get_tensor(f"counts_{n}") for n in range(1, MAX_N + 1)]
        return cls(int(metadata["num_images"]), keys, counts, json.loads(metadata["vocabulary"]))

    def look_up(self, all_ngrams: Sequence[NGrams]) -> list[np.ndarray]:
        """Look up the number of images of each n-gram, `(num_ngrams,)` for n = 1 .. 4; 0 if unknown or in one image."""
        frequencies = []
        index = np.zeros(1, np.int64)
        for ngrams, keys, counts in zip(all_ngrams, self.keys, self.counts, strict=True):
            # an unknown prefix has index -1, which makes the key negative and the n-gram unknown
            wanted = index[ngrams.prefix] << 31 | ngrams.last_word
            place = np.searchsorted(keys, wanted)
            known = keys[place] == wanted
            index = np.where(known, place, -1)
            frequencies.append(np.where(known, counts[place], 0))
        return frequencies


class CiderD:
    """
    Compute CIDEr-D with a fixed document frequency: the reward of self-critical training.

    ```python
    cider_d = CiderD(DocumentFrequency.load("document_frequency.safetensors"), references={image_id: [ids, ...], ...})
    samples = model.generate(pixel_values=pixel_values, do_sample=True, num_return_sequences=5)
    rewards = cider_d.score(cut_after_eos(samples[:, 1:].cpu(), eos_token_id), image_ids=image_ids)
    ```

    The end token counts as a word if references and samples have it; without it, training rewards captions that break
    off after "with a". References, samples and table must be of the same kind of tokens.

    Args:
        document_frequency: the table.
        references: the references of each image, which `image_ids` of `score` name; they are numbered once, here.
    """

    def __init__(
        self,
        document_frequency: DocumentFrequency,
        references: Mapping[Hashable, Sequence[Caption]] | None = None,
    ):
        self.document_frequency = document_frequency
        # kept between calls: an unknown word has the same id in references and samples
        vocabulary = document_frequency.vocabulary
        self._numbering = None if vocabulary is None else Numbering(vocabulary)
        self._index = {image: index for index, image in enumerate(references or {})}
        self._references, self._num_references = self._encode_references(list((references or {}).values()))
        self._first_reference = np.cumsum(self._num_references) - self._num_references

    def score(
        self,
        samples: Sequence[Caption],
        references: Sequence[Sequence[Caption]] | None = None,
        image_ids: Sequence[Hashable] | None = None,
    ) -> np.ndarray:
        """
        Score samples.

        Args:
            samples: captions to score, those of an image consecutively as `generate` returns them with
                `num_return_sequences`: the number of samples is a multiple of the number of images.
            references: the references of each image of the batch. Pass either these or `image_ids`.
            image_ids: the name of each image among the references of the constructor.

        Returns:
            The score of each sample, `(num_samples,)`.

        Raises:
            ValueError: the samples do not divide among the images, or an image has no references.
            KeyError: an image is not among the constructor's references.
            TypeError: captions are strings and the table counts ids, or the other way round.
        """
        if (references is None) == (image_ids is None):
            raise ValueError("Pass either `references` or `image_ids`.")
        if references is None:
            image = np.array([self._index[image] for image in image_ids or ()], dtype=np.int64)
            num_references = self._num_references[image]
            encoded = self._references.take(ranges(self._first_reference[image], num_references))
        else:
            encoded, num_references = self._encode_references(references)
        if not len(samples) or len(samples) % max(num_references.size, 1):
            raise ValueError(f"{len(samples)} samples for {num_references.size} images: pass as many for each image.")
        image_of_sample = np.repeat(np.arange(num_references.size), len(samples) // num_references.size)
        captions = PairedCaptions(encoded + self._encode(samples), num_references, image_of_sample)
        frequencies = self.document_frequency.look_up(captions.ngrams)
        return _cider_d(captions, frequencies, self.document_frequency.num_images)

    def _encode(self, captions: Sequence[Caption]) -> EncodedCaptions:
        if len(captions) and isinstance(captions[0], str) != (self._numbering is not None):
            raise TypeError(f"{self.document_frequency} does not fit {captions[0]!r}: score what was counted.")
        return encode(captions, self._numbering)

    def _encode_references(self, references: Sequence[Sequence[Caption]]) -> tuple[EncodedCaptions, np.ndarray]:
        num_references = np.fromiter(map(len, references), np.int64, len(references))
        if not num_references.all():
            raise ValueError(f"image {int(np.argmin(num_references))} of {len(references)} has no references.")
        return self._encode(list(chain.from_iterable(references))), num_references


def cut_after_eos(sequences: np.ndarray, eos_token_id: int) -> list[np.ndarray]:
    """
    Cut generated sequences after their first end token, which they keep.

    Args:
        sequences: token ids without the decoder's start token, `(num_samples, length)`; an array or a CPU tensor.
    """
    sequences = np.asarray(sequences)
    is_end = sequences == eos_token_id
    lengths = np.where(is_end.any(1), is_end.argmax(1) + 1, sequences.shape[1])
    return [sequence[:length] for sequence, length in zip(sequences, lengths, strict=True)]
