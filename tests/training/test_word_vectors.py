"""Word vectors of GloVe and fastText as the first embeddings of a captioner."""

import gzip
import logging

import numpy as np
import pytest
import torch
from support.tiny_models import changed, snapshot

from modeling_cnnrnn.training.word_vectors import load_word_vectors


GLOVE = {"dog": 1.0, ". . .": 7.0, "square": 3.0, "zebra": 4.0}


def write(path, words: dict[str, float], header: str = "", size: int = 12):
    lines = [f"{word} " + " ".join(f"{value + i / 16}" for i in range(size)) for word, value in words.items()]
    text = (header + "\n" if header else "") + "\n".join(lines) + "\n"
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


@pytest.mark.parametrize(("name", "header"), [("glove.txt", ""), ("wiki.vec", "4 12"), ("wiki.vec.gz", "4 12")])
def test_the_words_that_are_found_have_their_vectors(tiny_model, tiny_tokenizer, tmp_path, caplog, name, header):
    before, embeddings = snapshot(tiny_model), tiny_model.get_input_embeddings().weight
    with caplog.at_level(logging.INFO):
        assert load_word_vectors(tiny_model, tiny_tokenizer, write(tmp_path / name, GLOVE, header)) == 2
    assert "2 of 16 words found" in caplog.text
    dog, square = tiny_tokenizer.convert_tokens_to_ids(["dog", "square"])
    assert embeddings[dog].tolist() == [1 + i / 16 for i in range(12)]
    assert embeddings[square].tolist() == [3 + i / 16 for i in range(12)]
    assert changed(before, tiny_model) == {"model.decoder.embed_tokens.weight"}
    others = [row for row in range(20) if row not in (dog, square)]
    assert torch.equal(embeddings[others], before["model.decoder.embed_tokens.weight"][others])


def test_a_word_in_small_letters_wins_over_one_with_capitals(tiny_model, tiny_tokenizer, tmp_path):
    path = write(tmp_path / "x.vec", {"Dog": 5.0, "DOG": 6.0, "dog": 1.0, "Square": 3.0, "dOG": 9.0})
    assert load_word_vectors(tiny_model, tiny_tokenizer, path) == 2
    rows = tiny_tokenizer.convert_tokens_to_ids(["dog", "square"])
    np.testing.assert_array_equal(tiny_model.get_input_embeddings().weight[rows, 0].detach(), [1.0, 3.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog 1 2 3\n", "line 1 of .* is no word with 12 numbers .* pass --embedding_size 3"),
        ("dog " + "1 " * 12 + "\ndog x" + " 1" * 11 + "\n", "line 2"),
        ("dog nan" + " 1" * 11 + "\n", "NaN"),
        ("zebra" + " 1" * 12 + "\n", "none of the 16 words"),
        ("", "none of the 16 words"),
    ],
)
def test_what_is_no_vector_is_refused(tiny_model, tiny_tokenizer, tmp_path, text, message):
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_word_vectors(tiny_model, tiny_tokenizer, tmp_path / "words.txt")
