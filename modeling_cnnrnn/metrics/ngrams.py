"""N-grams of many captions at once: one sort for each n, no Python loop over words.

A caption is a string of tokens separated by white space, or a sequence of token ids. An n-gram is named by two
integers, the index of its first n - 1 words among the (n - 1)-grams and its last word, so that four words over a
vocabulary of any size are counted exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count

import numpy as np


Caption = str | Sequence[int] | np.ndarray

_SEPARATOR = "\0"  # between captions, while they are numbered

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

    def take(self, captions: np.ndarray) -> "EncodedCaptions":
        """The captions with these indices, in this order."""
        starts = np.cumsum(self.lengths) - self.lengths
        return EncodedCaptions(self.words[ranges(starts[captions], self.lengths[captions])], self.lengths[captions])


class _Numbering(dict[str, int]):
    """A vocabulary that gives each unknown word the next free id."""

    def __init__(self, vocabulary: Mapping[str, int]):
        super().__init__(vocabulary)
        self._free_ids = count(max(vocabulary.values(), default=-1) + 1)

    def __missing__(self, word: str) -> int:
        self[word] = number = next(self._free_ids)
        return number


def encode(captions: Sequence[Caption], vocabulary: dict[str, int] | None = None) -> EncodedCaptions:
    """
    Numbers the words of `captions`. Token ids stay what they are. Words get their id in `vocabulary`; those that it
    lacks get new ids after its last, so that two different unknown words stay different.

    Raises:
        TypeError: if captions of words and of ids are mixed, or an id is not an integer.
        ValueError: if an id is negative or needs more than 31 bits.
    """
    if all(isinstance(caption, str) for caption in captions):
        # one split for all captions: half the time of a split for each
        words = f" {_SEPARATOR} ".join(captions).split()  # type: ignore[arg-type]
        number = _Numbering(vocabulary or {})
        ids = np.fromiter(map(number.__getitem__, words), np.int64, len(words))
        is_separator = ids == number[_SEPARATOR]
        ends = np.append(np.flatnonzero(is_separator), ids.size)[: len(captions)]
        if len(captions) and np.count_nonzero(is_separator) != len(captions) - 1:
            raise ValueError("a caption holds the NUL character as a word: remove it.")
        return EncodedCaptions(ids[~is_separator], np.diff(ends, prepend=-1) - 1)
    if vocabulary is not None or any(isinstance(caption, str) for caption in captions):
        raise TypeError("captions mix words and token ids: pass all of them as strings or all as sequences of ids.")
    arrays = [np.asarray(caption) for caption in captions]
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    words = np.concatenate([array for array in arrays if array.size] or [np.empty(0, np.int64)])
    if words.dtype.kind not in "iu" or words.ndim != 1:
        raise TypeError(f"token ids have type {words.dtype}: pass each caption as a flat sequence of integers.")
    if words.size and not 0 <= words.min() <= words.max() < 2**31:
        raise ValueError(f"token ids lie between {words.min()} and {words.max()}: they must be in [0, 2**31).")
    return EncodedCaptions(words.astype(np.int64), lengths)


@dataclass(frozen=True)
class NGrams:
    """
    The n-grams of all captions for one n. An entry is an n-gram of a caption with its count there.

    Args:
        prefix, last_word: what the n-grams are, `(num_ngrams,)`: index of the first n - 1 words in the previous n's
            `NGrams` (0 for n = 1) and the last word.
        ngram, caption, count: the entries, sorted by n-gram, then by caption, `(num_entries,)`.
    """

    prefix: np.ndarray
    last_word: np.ndarray
    ngram: np.ndarray
    caption: np.ndarray
    count: np.ndarray


def count_ngrams(captions: EncodedCaptions, max_n: int = MAX_N) -> Iterator[NGrams]:
    """Yields the `NGrams` for n = 1 .. `max_n`."""
    words, num_words = captions.words, captions.words.size
    caption_of_word = np.repeat(np.arange(captions.lengths.size), captions.lengths)
    words_left = np.cumsum(captions.lengths)[caption_of_word] - np.arange(num_words)
    base = int(words.max(initial=0)) + 1
    place_bits = num_words.bit_length()
    ngram_at = np.zeros(num_words, np.int64)  # index of the (n - 1)-gram that begins at each word
    num_prefixes = 1
    for n in range(1, max_n + 1):
        places = np.flatnonzero(words_left >= n)
        names = ngram_at[places] * base + words[places + n - 1]
        largest = num_prefixes * base
        if 2**16 < largest < 2 ** (63 - place_bits):
            # name and place in one integer: faster than sorting indices
            packed = np.sort(names << place_bits | places)
            names, places = packed >> place_bits, packed & ((1 << place_bits) - 1)
        else:
            order = np.argsort(names.astype(np.min_scalar_type(largest)), kind="stable")  # radix sort below 2**16
            names, places = names[order], places[order]
        caption = caption_of_word[places]
        new_ngram = np.diff(names, prepend=-1) != 0
        first = np.flatnonzero(new_ngram | (np.diff(caption, prepend=-1) != 0))
        ngram = np.cumsum(new_ngram) - 1
        prefix, last_word = np.divmod(names[new_ngram], base)
        yield NGrams(prefix, last_word, ngram[first], caption[first], np.diff(first, append=places.size))
        ngram_at[places] = ngram
        num_prefixes = last_word.size


class PairedCaptions:
    """
    Predictions beside the references of their images, with their n-grams counted once for every metric.

    Args:
        references: encoded references, those of the first image, then those of the second, and so on.
        num_references: number of references of each image, all at least 1, `(num_images,)`.
        predictions: encoded predictions.
        image: image of each prediction, `(num_predictions,)`; one after the other where left out.
    """

    def __init__(
        self,
        references: EncodedCaptions,
        num_references: np.ndarray,
        predictions: EncodedCaptions,
        image: np.ndarray | None = None,
    ):
        self.captions = references + predictions
        self.num_references = num_references
        self.image_of_prediction = np.arange(num_references.size) if image is None else image
        self.image = np.append(np.repeat(np.arange(num_references.size), num_references), self.image_of_prediction)
        self.is_reference = np.arange(self.image.size) < references.lengths.size

    @classmethod
    def from_captions(cls, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> "PairedCaptions":
        """
        Args:
            predictions: one tokenized caption for each image.
            references: the tokenized references of each image.
        """
        num_references = np.fromiter(map(len, references), np.int64, len(references))
        total = int(num_references.sum())
        captions = encode([*chain.from_iterable(references), *predictions])
        return cls(captions.take(np.arange(total)), num_references, captions.take(np.arange(total, total+len(predictions))))

    @cached_property
    def ngrams(self) -> list[NGrams]:
        """`NGrams` of references and predictions together, for n = 1 .. 4."""
        return list(count_ngrams(self.captions))

    @cached_property
    def matches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """
        For n = 1 .. 4: which entry of `ngrams` that belongs to a prediction meets which entry of a reference of the
        same image. Two arrays of indices `(num_pairs,)`, sorted by the first.
        """
        return [self._match(ngrams) for ngrams in self.ngrams]

    def _match(self, ngrams: NGrams) -> tuple[np.ndarray, np.ndarray]:
        # entries are sorted by n-gram and caption, and references stand image by image: their keys come sorted
        key = ngrams.ngram * self.num_references.size + self.image[ngrams.caption]
        of_reference = self.is_reference[ngrams.caption]
        references, predictions = np.flatnonzero(of_reference), np.flatnonzero(~of_reference)
        start = np.searchsorted(key[references], key[predictions], "left")
        stop = np.searchsorted(key[references], key[predictions], "right")
        return np.repeat(predictions, stop - start), references[ranges(start, stop - start)]


def ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`start[0], start[0] + 1, ...` for `length[0]` places, then the same for `start[1]`, and so on."""
    return np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
