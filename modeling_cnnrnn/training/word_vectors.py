"""Start the word embeddings of a captioner from word vectors: GloVe's text files and fastText's `.vec` files."""

import gzip
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..data.columns import shown


logger = logging.getLogger(__name__)


@torch.no_grad()
def load_word_vectors(model: Any, tokenizer: Any, path: str | os.PathLike) -> int:
    """
    Copy the vectors of the words that a file has into the embeddings; other words keep theirs.

    Args:
        model: its `get_input_embeddings()` are `(vocab_size, embedding_size)`.
        tokenizer: names the words.
        path: lines of a word and its numbers, in UTF-8; a first line of two whole numbers (fastText) is no word. `.gz` too.

    Returns:
        The number of words that were found, which is logged. A word that the file writes with capitals only is found too.

    Raises:
        OSError: there is no such file.
        ValueError: the vectors have another size, a line is no vector, or none of the words is there.
    """
    weight = model.get_input_embeddings().weight
    rows = {word: row for word, row in tokenizer.get_vocab().items() if row not in tokenizer.all_special_ids}
    exact: set[str] = set()
    capital: set[str] = set()
    for word, numbers in _read_lines(path, weight.shape[1]):
        lower = word.lower()
        if word in rows and word not in exact:
            exact.add(word)
        elif lower in rows and lower not in exact | capital:
            capital.add(lower)
        else:
            continue
        weight[rows[word if word in exact else lower]] = torch.from_numpy(numbers).to(weight)
    found = exact | capital
    if not found:
        raise ValueError(f"`word_vectors` is {shown(path, 200)}, and none of the {len(rows)} words is in it.")
    logger.info("Word vectors: %d of %d words found in %s.", len(found), len(rows), path)
    return len(found)


def _read_lines(path: str | os.PathLike, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Read the words with their vectors; a word may hold spaces, as in GloVe's largest file."""
    opened = gzip.open if os.fspath(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            parts = line.rstrip().split(" ")
            if number == 1 and len(parts) == 2 and all(part.isdecimal() for part in parts):
                continue
            word, numbers = " ".join(parts[:-size]), parts[-size:]
            try:
                if not word:
                    raise ValueError
                vector = np.array(numbers, dtype=np.float32)
            except ValueError:
                raise ValueError(_reason(path, number, len(parts) - 1, size)) from None
            if not np.isfinite(vector).all():
                raise ValueError(f"`word_vectors`: line {number} of {shown(path, 200)} holds NaN or infinite numbers.")
            yield word, vector


def _reason(path: str | os.PathLike, number: int, length: int, size: int) -> str:
    remedy = (
        f"pass --embedding_size {length}, or vectors of {size} numbers."
        if length != size
        else "pass a text file of vectors."
    )
    return f"`word_vectors`: line {number} of {shown(path, 200)} is no word with {size} numbers (`embedding_size`): {remedy}"


__all__ = ["load_word_vectors"]
