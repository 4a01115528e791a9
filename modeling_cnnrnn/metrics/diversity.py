"""Measure captions without references: how varied, how new and how complete they are, and those of one image among them."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from .bleu import bleu
from .ngrams import MAX_N, PairedCaptions, count_ngrams, encode
from .words import tokenize_captions


# A caption that ends in one of these breaks off: "a man with a". Words that can end a sentence ("on", "by") are not here.
UNFINISHED_ENDINGS = frozenset(
    [
        *("a", "an", "the", "his", "her", "its", "their", "this", "these", "some"),
        *("with", "of", "at", "for", "to", "from", "into", "and", "or", "as", "while", "next", "in"),
        *("is", "are", "has", "that", "very"),
    ]
)


def caption_health(
    predictions: Sequence[str],
    training_captions: Iterable[str] | None = None,
    unknown_word: str = "<unk>",
) -> dict[str, float]:
    """
    Describe a set of predictions without references. Words are those of `tokenize_captions`.

    Args:
        predictions: raw captions.
        training_captions: raw captions of the training set, to count new captions.
        unknown_word: the model's token for an unknown word.

    Returns:
        - `captions` and `vocabulary`: number of captions and of different words;
        - `mean_length`: mean number of words in a caption;
        - `unique`: share of different captions;
        - `distinct-1` .. `distinct-4`: share of different n-grams (https://arxiv.org/abs/1510.03055);
        - `novel`: share of captions that are not in the training set, if it is given;
        - `unfinished`: share of captions that are empty or end like "a man with a";
        - `unknown`: share of captions with an unknown word.

    Raises:
        ValueError: there are no predictions.
    """
    if not len(predictions):
        raise ValueError("`predictions` is empty: pass at least one caption.")
    captions = tokenize_captions(predictions)
    words = [caption.split() for caption in captions]
    encoded = encode(captions)
    health = {
        "captions": len(captions),
        "vocabulary": len({word for caption in words for word in caption}),
        "mean_length": float(encoded.lengths.mean()),
        "unique": len(set(captions)) / len(captions),
    }
    for n, ngrams in enumerate(count_ngrams(encoded), start=1):
        health[f"distinct-{n}"] = ngrams.prefix.size / max(int(ngrams.count.sum()), 1)
    if training_captions is not None:
        known = set(tokenize_captions(training_captions))
        health["novel"] = float(np.mean([caption not in known for caption in captions]))
    unfinished = [not caption or caption[-1] in UNFINISHED_ENDINGS for caption in words]
    health["unfinished"] = float(np.mean(unfinished))
    health["unknown"] = float(np.mean([unknown_word.lower() in caption for caption in words]))
    return health


def set_diversity(captions: Sequence[Sequence[str]]) -> dict[str, float]:
    """
    Measure how much the captions of each image differ from one another. Words are those of `tokenize_captions`.

    Args:
        captions: raw captions of each image, the same number K of two or more for each.

    Returns:
        - `set-distinct-1`, `set-distinct-2`: the number of different words, or pairs of words, of the captions of an image,
          as a share of all their words; the mean over images (https://arxiv.org/abs/1703.10476, Div-1 and Div-2);
        - `mbleu-4`: BLEU-4 of the k-th captions against the others of their image, the mean over k; lower is more diverse;
        - `self-cider`: -log_K of the largest square root of an eigenvalue of the captions' similarities, as a share of the
          sum of all, the mean over images (https://arxiv.org/abs/1903.12020): 0 for equal captions, 1 for captions that
          have nothing in common. Similarity is CIDEr's cosine, weighted by the images of these captions.

    Raises:
        ValueError: the images have different numbers of captions, or less than two.
    """
    sizes = sorted({len(of_image) for of_image in captions})
    if len(sizes) != 1 or sizes[0] < 2:
        raise ValueError(f"`captions` holds {sizes} captions per image: pass the same number for all, two or more.")
    texts = [tokenize_captions(list(of_image)) for of_image in captions]
    words = [[text.split() for text in of_image] for of_image in texts]
    distinct = np.zeros((len(words), 2))
    for image, of_image in enumerate(words):
        total = max(sum(map(len, of_image)), 1)
        for n in (1, 2):
            distinct[image, n - 1] = len({ngram for caption in of_image for ngram in _ngrams(caption, n)}) / total
    bleus = []
    for k in range(sizes[0]):
        others = [[*of_image[:k], *of_image[k + 1 :]] for of_image in texts]
        bleus.append(bleu(PairedCaptions.from_captions([of_image[k] for of_image in texts], others))[0][3])
    return {
        "set-distinct-1": float(distinct[:, 0].mean()),
        "set-distinct-2": float(distinct[:, 1].mean()),
        "mbleu-4": float(np.mean(bleus)),
        "self-cider": float(np.mean([_self_cider(kernel) for kernel in _similarities(words)])),
    }


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _similarities(words: Sequence[Sequence[Sequence[str]]]) -> Iterable[np.ndarray]:
    """Compute CIDEr's cosines between the captions of each image, the mean over n = 1 .. 4, `(K, K)`."""
    counts = [[[Counter(_ngrams(c, n)) for c in of_image] for n in range(1, MAX_N + 1)] for of_image in words]
    images = [Counter(g for of_image in counts for g in set().union(*of_image[n])) for n in range(MAX_N)]
    for of_image in counts:
        kernel = np.zeros((len(of_image[0]), len(of_image[0])))
        for n, vectors in enumerate(of_image):
            ngrams = sorted(set().union(*vectors))
            # an n-gram of all images weighs something too, or captions of it alone would be like nothing
            weights = np.array([1 + np.log(len(words) / images[n][ngram]) for ngram in ngrams])
            table = weights * np.array([[vector[ngram] for ngram in ngrams] for vector in vectors], dtype=float)
            norms = np.linalg.norm(table, axis=1, keepdims=True)
            table /= np.where(norms > 0, norms, 1)
            # captions that are too short for an n-gram are alike in having none
            missing = norms == 0
            kernel += table @ table.T + missing @ missing.T
        yield kernel / MAX_N


def _self_cider(kernel: np.ndarray) -> float:
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
    return float(-np.log(roots.max() / roots.sum()) / np.log(len(kernel)))
