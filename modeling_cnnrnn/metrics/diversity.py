"""Measure captions without references: how varied, how new and how complete they are."""

from collections.abc import Iterable, Sequence

import numpy as np

from .ngrams import count_ngrams, encode
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
