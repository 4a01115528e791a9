"""The texts of tokens, as a program without the tokenizer joins them to sentences."""

from typing import Any

import numpy as np

from ..models.processing_cnnrnn import CnnRnnProcessor


NUM_CHECKS = 200  # sentences of random words


def token_texts(processor: CnnRnnProcessor, vocab_size: int) -> dict[str, list]:
    """
    Find the text that each token adds to a sentence.

    Returns:
        `pieces`, the text of each token with the space before it; `unspaced`, the tokens that follow each other without a
        space: words of scripts without spaces.
    """
    plain = processor.batch_decode([[i] for i in range(vocab_size)], skip_special_tokens=True)
    first = next((i for i, text in enumerate(plain) if text.isascii() and text.isalpha()), None)
    if first is None:
        first = next(i for i, text in enumerate(plain) if text)
    rows: list[list[int]] = [[first, i] for i in range(vocab_size)]
    once = [text[len(plain[first]) :] for text in processor.batch_decode(rows, skip_special_tokens=True)]
    twice = processor.batch_decode([[*row, row[1]] for row in rows], skip_special_tokens=True)
    again = [text[len(plain[first]) + len(piece) :] for text, piece in zip(twice, once, strict=True)]
    unspaced = [i for i in range(vocab_size) if once[i].startswith(" ") and again[i] == once[i].lstrip()]
    return {"pieces": once, "unspaced": unspaced}


def check_texts(captioner: Any, processor: CnnRnnProcessor) -> None:
    """
    Compare the sentences of an exported captioner with those of its tokenizer.

    Raises:
        ValueError: they differ: the text of a token depends on more than the one before it.
    """
    vocab_size = len(captioner.settings["pieces"])
    generator = np.random.default_rng(0)
    sentences = [generator.integers(0, vocab_size, 8).tolist() for _ in range(NUM_CHECKS)]
    decoded = processor.batch_decode(sentences, skip_special_tokens=True)
    for token_ids, expected in zip(sentences, decoded, strict=True):
        text = captioner.decode(token_ids)
        if text != expected:
            raise ValueError(
                f"`tokenizer` decodes {token_ids} to {expected!r} and its tokens, one by one, to {text!r}: an export needs a "
                "tokenizer whose words join with spaces, such as `build_tokenizer` makes."
            )
