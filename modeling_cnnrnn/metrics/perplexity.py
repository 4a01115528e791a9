"""Compute the perplexity of a captioning model on a corpus."""

import math
from collections.abc import Iterable

import numpy as np


def perplexity(log_probs: Iterable[np.ndarray], labels: Iterable[np.ndarray], ignore_index: int = -100) -> float:
    """
    Compute the exponential of the mean negative log-probability of a token, over all tokens of the corpus.

    Long captions weigh more than short ones, and the end token counts as a token because it is a label.

    Args:
        log_probs: natural logarithm of the probability that the model gives each label, one array for each batch (or
            each caption), of any shape.
        labels: the labels, in arrays of the same shapes.
        ignore_index: label of the positions that are left out (padding).

    Raises:
        ValueError: shapes differ, a counted log-probability is positive or NaN, or no position counts.
    """
    total, num_tokens = 0.0, 0
    for batch_log_probs, batch_labels in zip(log_probs, labels, strict=True):
        batch_log_probs, batch_labels = np.asarray(batch_log_probs), np.asarray(batch_labels)
        if batch_log_probs.shape != batch_labels.shape:
            raise ValueError(f"`log_probs` {batch_log_probs.shape} and `labels` {batch_labels.shape} differ in shape.")
        counted = batch_log_probs[batch_labels != ignore_index].astype(np.float64)
        if not (counted <= 0).all():
            raise ValueError("`log_probs` holds a value that is positive or NaN: pass the output of a log-softmax.")
        total += float(counted.sum())
        num_tokens += counted.size
    if not num_tokens:
        raise ValueError("no label counts, all are `ignore_index`: pass at least one token.")
    return math.exp(-total / num_tokens)
