"""Count the n-grams of many captions at once: one sort for each n, no Python loop over words.

A caption is a string of tokens separated by white space, or a sequence of token ids. An n-gram is named by two
integers, the index of its first n - 1 words among the (n - 1)-grams and its last word, so that four words over a
vocabulary of any size are counted exactly.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count

import numpy as np


Caption = str | Sequence[int] | np.ndarray

MAX_N = 4  # BLEU and CIDEr count n-grams of one to four words


@dataclass(frozen=True)
class EncodedCaptions:
    """
    Captions as one array of numbered words.

    Args:
        words: word ids of all captions, one caption after the other, `(num_words,)`.
        lengths: number of words of each caption, `(num_captions,)`.
    """

    words: np.ndarray
    lengths: np.ndarray

    def __add__(self, other: "EncodedCaptions") -> "EncodedCaptions":
        return EncodedCaptions(np.append(self.words, other.words), np.append(self.lengths, other.lengths))

    @cached_property
    def starts(self) -> np.ndarray:
        """Index of the first word of each caption, `(num_captions,)`."""
        return np.cumsum(self.lengths) - self.lengths

    def take(self, captions: np.ndarray) -> "EncodedCaptions":
        """Select the captions with these indices, in this order."""
        lengths = self.lengths[captions]
        return EncodedCaptions(self.words[ranges(self.starts[captions], lengths)], lengths)


class Numbering(dict[str, int]):
    """Vocabulary that gives each unknown word the next free id."""

    def __init__(self, vocabulary: Mapping[str, int] | None = None):
        super().__init__(vocabulary or {})
        self._free_ids = count(max(self.values(), default=-1) + 1)

    def __missing__(self, word: str) -> int:
        self[word] = number = next(self._free_ids)
        return number


def encode(captions: Sequence[Caption], numbering: Numbering | None = None) -> EncodedCaptions:
    """
    Number the words of `captions`, those that `numbering` knows and new ones; token ids are kept.

    Raises:
        TypeError: captions of words and of ids are mixed, or an id is not an integer.
        ValueError: an id is negative or needs more than 31 bits.
    """
    if len(captions) and all(isinstance(caption, str) for caption in captions):
        numbering = Numbering() if numbering is None else numbering
        lengths = array("q")

        def split(caption: str) -> list[str]:
            words = caption.split()
            lengths.append(len(words))
            return words

        words = map(numbering.__getitem__, chain.from_iterable(map(split, captions)))  # type: ignore[arg-type]
        return EncodedCaptions(np.fromiter(words, np.int64), np.array(lengths))
    arrays = [np.asarray(caption) for caption in captions]
    ids = np.concatenate([ids for ids in arrays if ids.size] or [np.empty(0, np.int64)], axis=None)
    if ids.dtype.kind not in "iu" or any(ids.ndim != 1 for ids in arrays):
        raise TypeError("captions must be all strings, or all flat sequences of integer token ids.")
    if ids.size and not 0 <= ids.min() <= ids.max() < 2**31:
        raise ValueError(f"token ids are between {ids.min()} and {ids.max()}: they must be in [0, 2**31).")
    return EncodedCaptions(ids.astype(np.int64), np.fromiter(map(len, arrays), np.int64, len(arrays)))


@dataclass(frozen=True)
class NGrams:
    """
    The n-grams of all captions for one n. An entry is an n-gram of a caption with its count there.

    Args:
        prefix, last_word: the n-grams, `(num_ngrams,)`, as the index of their first n - 1 words in the previous n's
            `NGrams` (0 for n = 1) and their last word.
        ngram, caption, count: the entries, sorted by n-gram, then by caption, `(num_entries,)`.
    """

    prefix: np.ndarray
    last_word: np.ndarray
    ngram: np.ndarray
    caption: np.ndarray
    count: np.ndarray


def count_ngrams(captions: EncodedCaptions, max_n: int = MAX_N) -> Iterator[NGrams]:
    """Yield the `NGrams` for n = 1 .. `max_n`."""
    words, num_words = captions.words, captions.words.size
    caption_of_word = np.repeat(np.arange(captions.lengths.size), captions.lengths)
    words_left = np.cumsum(captions.lengths)[caption_of_word] - np.arange(num_words)
    base = int(words.max(initial=0)) + 1
    prefix_at = np.zeros(num_words, np.int64)  # index of the (n - 1)-gram that begins at each place
    num_prefixes = 1
    for n in range(1, max_n + 1):
        places = np.flatnonzero(words_left >= n)
        names, places = _sort(prefix_at[places] * base + words[places + n - 1], places, num_prefixes * base)
        caption = caption_of_word[places]
        is_first = differs_from_last(names)  # of its n-gram
        entry = np.flatnonzero(is_first | differs_from_last(caption))
        ngram = np.cumsum(is_first) - 1
        prefix, last_word = np.divmod(names[is_first], base)
        yield NGrams(prefix, last_word, ngram[entry], caption[entry], np.diff(entry, append=places.size))
        prefix_at[places] = ngram
        num_prefixes = prefix.size


def differs_from_last(values: np.ndarray) -> np.ndarray:
    """Return whether each value begins a run of equal values."""
    differs = np.ones(values.size, bool)
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def _sort(names: np.ndarray, places: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort `names`, which are below `limit`, and with them ascending `places`, keeping the order of equal names."""
    place_bits = int(places.max(initial=0)).bit_length()
    if 2**16 < limit < 2 ** (63 - place_bits):
        # both in one integer: sorting integers is faster than sorting indices
        packed = np.sort(names << place_bits | places)
        return packed >> place_bits, packed & ((1 << place_bits) - 1)
    order = np.argsort(names.astype(np.min_scalar_type(limit)), kind="stable")  # a radix sort up to 16 bits
    return names[order], places[order]


class PairedCaptions:
    """
    Predictions beside the references of their images, with their n-grams counted once for every metric.

    Args:
        captions: the references, those of the first image, then those of the second, and so on; then the predictions.
        num_references: number of references of each image, at least 1, `(num_images,)`.
        image_of_prediction: image of each prediction, ascending; each image has one if left out.
    """

    def __init__(
        self, captions: EncodedCaptions, num_references: np.ndarray, image_of_prediction: np.ndarray | None = None
    ):
        images = np.arange(num_references.size)
        self.captions = captions
        self.num_references = num_references
        self.image_of_prediction = images if image_of_prediction is None else image_of_prediction
        self.image = np.append(np.repeat(images, num_references), self.image_of_prediction)
        self.is_reference = np.arange(self.image.size) < num_references.sum()

    @classmethod
    def from_captions(cls, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> "PairedCaptions":
        """
        Pair one prediction for each image with the references of the image.

        Args:
            predictions: one tokenized caption for each image.
            references: the tokenized references of each image.
        """
        num_references = np.fromiter(map(len, references), np.int64, len(references))
        return cls(encode([*chain.from_iterable(references), *predictions]), num_references)

    @cached_property
    def ngrams(self) -> list[NGrams]:
        """`NGrams` of references and predictions together, for n = 1 .. 4."""
        return list(count_ngrams(self.captions))

    @cached_property
    def matches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """
        Pairs of entries of `ngrams` for n = 1 .. 4: an entry of a prediction and an entry of a reference of the same image
        that are the same n-gram. Two arrays of indices `(num_pairs,)`, sorted by the first.
        """
        return [self._match(ngrams) for ngrams in self.ngrams]

    def _match(self, ngrams: NGrams) -> tuple[np.ndarray, np.ndarray]:
        # entries are sorted by n-gram and caption, and references are ordered by image: equal keys are consecutive
        key = ngrams.ngram * self.num_references.size + self.image[ngrams.caption]
        of_reference = self.is_reference[ngrams.caption]
        references, predictions = np.flatnonzero(of_reference), np.flatnonzero(~of_reference)
        first = np.flatnonzero(differs_from_last(key[references]))
        run_key = np.append(key[references[first]], -1)  # not a key: a search may end behind the last run
        run = np.searchsorted(run_key[:-1], key[predictions])
        found = run_key[run] == key[predictions]
        run = run[found]
        length = np.diff(first, append=references.size)[run]
        return np.repeat(predictions[found], length), references[ranges(first[run], length)]


def ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Concatenate the ranges that begin at `start` and have `length` numbers each."""
    return np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
