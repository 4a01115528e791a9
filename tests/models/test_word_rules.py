"""The machine that reads whether words have appeared, and what it does not take."""

import pytest
import torch

from modeling_cnnrnn.models.word_rules_cnnrnn import BadEndings, WordConstraints


CONSTRAINTS = [
    [[3]],
    [[3, 3, 4]],
    [[3, 4], [4, 3]],
    [[[3, 4, 3], [4, 4]], [5]],
    [[[3, 3], [3, 4, 5]], [[4, 5, 3], [6]]],
    [[3], [3], [4, 3]],
]


def appears(phrase: list[int], sentence: list[int]) -> bool:
    return any(sentence[start : start + len(phrase)] == phrase for start in range(len(sentence)))


@pytest.mark.parametrize("constraints", CONSTRAINTS, ids=str)
def test_the_machine_knows_what_has_appeared(constraints):
    machine = WordConstraints(constraints, vocab_size=8)
    generator = torch.Generator().manual_seed(0)
    met = 0
    for _ in range(400):
        length = int(torch.randint(9, (1,), generator=generator))
        sentence = torch.randint(3, 7, (length,), generator=generator).tolist()
        phrases = [[c] if isinstance(c[0], int) else c for c in constraints]
        expected = all(any(appears(phrase, sentence) for phrase in alternatives) for alternatives in phrases)
        assert (machine.read(sentence) == machine.final) == expected
        met += expected
    assert 0 < met < 400


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "pass a list of phrases"),
        ([3, 4], "each constraint is a list of token ids"),
        ([[]], "each constraint is a list of token ids"),
        ([[3, "dog"]], "each constraint is a list of token ids"),
        ([[3], [-1]], "each constraint is a list of token ids"),
        ([[3], [8]], "`force_words_ids` holds token 8, outside the vocabulary of 8"),
        ([[word] for word in range(8)], "`force_words_ids` holds 8 constraints, which can be met in more than 128"),
    ],
    ids=str,
)
def test_constraints_that_are_none_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        WordConstraints(value, vocab_size=8)


@pytest.mark.parametrize("value", [[3, 4], [[]], "with a", [["a"]]], ids=str)
def test_endings_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"`bad_ending_ids` is .*: pass a list of endings"):
        BadEndings(value, torch.tensor([2]), 8)
