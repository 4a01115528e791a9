"""Options of generating sentences, and what holds where they are not given."""

import pytest
from transformers import GenerationConfig

from modeling_cnnrnn.evaluation.arguments import EvaluationArguments, GenerationArguments


CONFIG = GenerationConfig(max_length=9, length_penalty=0.0, no_repeat_ngram_size=2)


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({}, {"max_length": 9, "length_penalty": 0.0, "no_repeat_ngram_size": 2}),
        ({"no_repeat_ngram_size": 0}, {"max_length": 9, "length_penalty": 0.0, "no_repeat_ngram_size": 0}),
        (
            {"max_length": 5, "length_penalty": 1.0},
            {"max_length": 5, "length_penalty": 1.0, "no_repeat_ngram_size": 2},
        ),
    ],
)
def test_what_is_not_given_is_as_the_captioner_says(given, held):
    args = EvaluationArguments(model_name_or_path="captioner", **given)
    assert args.generation() == [{"num_beams": 1} | given]
    assert args.preferences(CONFIG) == held


def test_a_captioner_that_says_nothing_has_the_defaults_of_transformers():
    held = EvaluationArguments(model_name_or_path="captioner").preferences(GenerationConfig(max_length=24))
    assert held == {"max_length": 24, "length_penalty": 1.0, "no_repeat_ngram_size": 0}


def test_a_captioner_is_asked_for_nothing_that_is_not_given():
    assert GenerationArguments().generate_kwargs(None) == {"num_return_sequences": 1, "num_beams": 3}
    given = GenerationArguments(length_penalty=1.0, no_repeat_ngram_size=0).generate_kwargs(None)
    assert given == {"num_return_sequences": 1, "num_beams": 3, "length_penalty": 1.0, "no_repeat_ngram_size": 0}
