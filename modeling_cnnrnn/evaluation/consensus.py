"""Rank several captions of an image by how close each is to the others."""

from collections.abc import Sequence

import numpy as np

from ..metrics import CiderD, DocumentFrequency, tokenize_captions


# all n-grams weigh the same: none is known
EQUAL_WEIGHTS = DocumentFrequency.from_references([["a"], ["b"]])


def rank_by_consensus(
    captions: Sequence[Sequence[str]], document_frequency: DocumentFrequency = EQUAL_WEIGHTS
) -> list[list[int]]:
    """
    Rank the captions of each image by their mean CIDEr-D with the others (https://arxiv.org/abs/1505.04467, section 3.1).

    Args:
        captions: raw captions of each image.
        document_frequency: in how many images of a training set n-grams occur, counted in captions as `tokenize_captions`
            makes them; by default all n-grams weigh the same.

    Returns:
        For each image the places of its captions, the closest to the others first; on a tie the first stays first.
    """
    scorer = CiderD(document_frequency)
    orders = []
    for of_image in captions:
        texts = tokenize_captions(list(of_image))
        if len(texts) < 2:
            orders.append([*range(len(texts))])
            continue
        others = [[*texts[:place], *texts[place + 1 :]] for place in range(len(texts))]
        orders.append(np.argsort(-scorer.score(texts, others), kind="stable").tolist())
    return orders
