"""Diverse and constrained beam search, and rules for words: what a brute force finds, on packed weights and without."""

import itertools

import pytest
import torch
from support.tiny_models import encoded
from torch.testing import assert_close
from transformers import GenerationMixin

from modeling_cnnrnn import CnnRnnForConditionalGeneration
from modeling_cnnrnn.models.generation_cnnrnn import CnnRnnGenerationMixin


ALL_OUTPUTS = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
}
SEARCHES = {
    "beams": {"num_beams": 4, "num_return_sequences": 3},
    "diverse": {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7, "num_return_sequences": 5},
    "constrained": {"num_beams": 3, "force_words_ids": [[7], [[5, 6], [11]]], "num_return_sequences": 3},
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def model(make_model) -> CnnRnnForConditionalGeneration:
    """A captioner whose sentences end where it likes, not only at the limit."""
    model = make_model(attention_type="additive", num_hidden_layers=2)
    model.lm_head.bias[2] += 2
    return model


@pytest.fixture(params=["fast", "plain"])
def any_writer(request, monkeypatch):
    """The loops on packed weights and those with the model's forward pass."""
    if request.param == "plain":
        monkeypatch.setattr(CnnRnnGenerationMixin, "_fast_writer", lambda *args: None)


# --- Every sentence that there is --------------------------------------------------------------------------------------

LIMIT = 4
WORDS = [0, 1, 3, 4]  # of a vocabulary of 5, in which 1 starts and 2 ends a sentence
SENTENCES = [(*body, 2) for n in range(LIMIT) for body in itertools.product(WORDS, repeat=n)]
SENTENCES += list(itertools.product(WORDS, repeat=LIMIT))  # cut off at the limit


def has(sentence: tuple, *phrase: int) -> bool:
    return any(sentence[start : start + len(phrase)] == phrase for start in range(len(sentence)))


def bigrams_differ(sentence: tuple) -> bool:
    bigrams = list(itertools.pairwise((1, *sentence)))
    return len(set(bigrams)) == len(bigrams)


def ends_in(sentence: tuple, *ending: int) -> bool:
    body = sentence[:-1] if sentence[-1] == 2 else sentence
    return (1, *body)[-len(ending) :] == ending


RULES = {
    "one word": ({"force_words_ids": [[3]]}, lambda s: has(s, 3)),
    "two words": ({"force_words_ids": [[3], [0]]}, lambda s: has(s, 3) and has(s, 0)),
    "a phrase": ({"force_words_ids": [[4, 4, 3]]}, lambda s: has(s, 4, 4, 3)),
    "alternatives": (
        {"force_words_ids": [[[0, 3], [4]], [1, 1]]},
        lambda s: (has(s, 0, 3) or has(s, 4)) and has((1, *s), 1, 1),
    ),
    "two phrases": ({"force_words_ids": [[3, 4], [4, 0]]}, lambda s: has(s, 3, 4) and has(s, 4, 0)),
    "no word": ({"bad_words_ids": [[3], [4, 0]]}, lambda s: not has(s, 3) and not has(s, 4, 0)),
    "no bigram twice": ({"no_repeat_ngram_size": 2}, bigrams_differ),
    "no bad ending": (
        {"bad_ending_ids": [[3], [0, 4]]},
        lambda s: not ends_in(s, 3) and not ends_in(s, 0, 4),
    ),
    "all of it": (
        {"force_words_ids": [[3]], "bad_ending_ids": [[3], [4]], "no_repeat_ngram_size": 2, "bad_words_ids": [[0, 0]]},
        lambda s: has(s, 3) and not ends_in(s, 3) and not ends_in(s, 4) and bigrams_differ(s) and not has(s, 0, 0),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("any_writer")
def test_the_best_of_all_sentences_that_keep_a_rule_are_found(make_model, pixel_values, monkeypatch, rule):
    # 64 beams hold every prefix of three words: nothing is pruned
    monkeypatch.setattr(
        CnnRnnForConditionalGeneration, "_validate_generation_mode", GenerationMixin._validate_generation_mode
    )
    options, keeps = RULES[rule]
    model = make_model(vocab_size=5, unk_token_id=None, attention_type="additive")
    allowed = [sentence for sentence in SENTENCES if keeps(sentence)]
    num_best = min(6, len(allowed))
    outputs = model.generate(
        pixel_values,
        num_beams=64,
        num_return_sequences=num_best,
        max_new_tokens=LIMIT,
        length_penalty=0.7,
        early_stopping="never",
        suppress_tokens=None,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    padded = torch.tensor([(1, *sentence, *[0] * (LIMIT - len(sentence))) for sentence in allowed])
    found = outputs.sequences.unflatten(0, (3, num_best)), outputs.sequences_scores.unflatten(0, (3, num_best))
    for image, sequences, scores in zip(pixel_values, *found, strict=True):
        logits = model(image.expand(len(allowed), -1, -1, -1), decoder_input_ids=padded[:, :-1]).logits.double()
        expected = []
        for row, sentence in zip(logits.log_softmax(dim=-1), allowed, strict=True):
            total = sum(row[step, word].item() for step, word in enumerate(sentence))
            expected.append((total / len(sentence) ** 0.7, sentence))
        expected.sort(reverse=True)
        best_scores, best = zip(*expected[:num_best], strict=True)
        assert [tuple(s.tolist())[1 : len(b) + 1] for s, b in zip(sequences, best, strict=True)] == list(best)
        assert_close(scores.double(), torch.tensor(best_scores).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("any_writer")
def test_a_sentence_that_is_cut_off_does_not_end_badly(model, pixel_values):
    model.lm_head.bias[2] -= 100  # no sentence ends by itself
    whole = model.generate(pixel_values, max_new_tokens=5)
    endings = [sentence[-1:] for sentence in whole.tolist()]
    found = model.generate(pixel_values, max_new_tokens=5, bad_ending_ids=endings)
    assert torch.equal(found[:, :-1], whole[:, :-1])
    assert not {*found[:, -1].tolist()} & {*whole[:, -1].tolist()}


# --- Diverse beam search -----------------------------------------------------------------------------------------------


def diverse_reference(model, image, num_groups: int, size: int, penalty: float, limit: int) -> list[tuple]:
    """Algorithm 1 of the paper, word by word from whole forward passes; a group stops when it has its sentences."""
    running = [[((1,), 0.0)] for _ in range(num_groups)]
    ended = [[] for _ in range(num_groups)]
    for length in range(1, limit + 1):
        counts = [0.0] * model.config.vocab_size
        for group in range(num_groups):
            if len(ended[group]) >= size:
                continue
            candidates = []
            for words, score in running[group]:
                logits = model(image[None], decoder_input_ids=torch.tensor([words])).logits[0, -1]
                for word, log_prob in enumerate(logits.log_softmax(dim=-1).tolist()):
                    if word not in (0, 1, 3):
                        total = score + log_prob
                        candidates.append((total - penalty * counts[word], total, (*words, word)))
            candidates = sorted(candidates, reverse=True)[: 2 * size]
            is_end = [words[-1] == 2 or length == limit for _, _, words in candidates]
            ending = [c for c, end in zip(candidates[:size], is_end, strict=False) if end]
            going = [c for c, end in zip(candidates, is_end, strict=True) if not end][:size]
            ended[group] += [(total / length, words) for _, total, words in ending]
            running[group] = [(words, total) for _, total, words in going]
            for _, _, words in ending + going:
                counts[words[-1]] += 1
    best = [sentence for sentences in ended for sentence in sorted(sentences, reverse=True)[:size]]
    return sorted(best, reverse=True)


@pytest.mark.parametrize(("num_groups", "size"), [(4, 1), (2, 3)])
@pytest.mark.usefixtures("any_writer")
def test_diverse_beam_search_is_that_of_the_paper(model, pixel_values, num_groups, size):
    num_beams, options = num_groups * size, {"max_new_tokens": 6, "early_stopping": True}
    outputs = model.generate(
        pixel_values,
        num_beams=num_beams,
        num_beam_groups=num_groups,
        diversity_penalty=3.0,
        num_return_sequences=num_beams,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    found = outputs.sequences.unflatten(0, (3, -1)), outputs.sequences_scores.unflatten(0, (3, -1))
    differ = []
    for image, sequences, scores in zip(pixel_values, *found, strict=True):
        expected = diverse_reference(model, image, num_groups, size, 3.0, 6)
        assert [tuple(s.tolist())[: len(words)] for s, (_, words) in zip(sequences, expected, strict=True)] == [
            words for _, words in expected
        ]
        assert_close(scores, torch.tensor([score for score, _ in expected]), rtol=1e-4, atol=1e-5)
        differ.append(len({words for _, words in expected}) > size)
    plain = model.generate(pixel_values, num_beams=num_beams, num_return_sequences=num_beams, **options)
    assert any(differ)
    assert not torch.equal(plain, outputs.sequences)


def test_groups_without_a_penalty_would_be_alike(model, pixel_values):
    groups = model.generate(
        pixel_values, num_beams=6, num_beam_groups=2, diversity_penalty=1e-9, num_return_sequences=6, max_new_tokens=6
    )
    one = model.generate(pixel_values, num_beams=3, num_return_sequences=3, max_new_tokens=6)
    twice = one.unflatten(0, (3, 3)).repeat_interleave(2, dim=1).flatten(0, 1)
    assert torch.equal(groups, twice)


# --- All searches ------------------------------------------------------------------------------------------------------


def random_regions(num_images: int) -> torch.Tensor:
    return torch.randn(num_images, 6, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("search", ["diverse", "constrained"])
def test_packed_weights_forward_passes_and_no_cache_give_the_same(model, monkeypatch, search):
    options = {**SEARCHES[search], "max_new_tokens": 8, **ALL_OUTPUTS}
    for extra in ({}, {"decoder_input_ids": torch.tensor([[1, 4], [1, 7], [1, 5], [1, 9]])}):
        found = []
        for make in (CnnRnnGenerationMixin._fast_writer, lambda *args: None):
            monkeypatch.setattr(CnnRnnGenerationMixin, "_fast_writer", make)
            found.append(model.generate(encoder_outputs=encoded(random_regions(4)), **options, **extra))
        found.append(model.generate(encoder_outputs=encoded(random_regions(4)), use_cache=False, **options, **extra))
        for other in found[1:]:
            for name in ("sequences", "beam_indices", "sequences_scores", "scores", "logits"):
                assert_close(other[name], found[0][name], rtol=1e-4, atol=1e-5)
        assert_close(found[1].cross_attentions, found[0].cross_attentions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.usefixtures("any_writer")
def test_each_word_of_the_n_best_has_its_log_probability(model, pixel_values, search):
    encoder_outputs = model.get_encoder()(pixel_values)
    outputs = model.generate(encoder_outputs=encoder_outputs, **SEARCHES[search], max_new_tokens=8, **ALL_OUTPUTS)
    found = model.compute_transition_scores(outputs.sequences, outputs.scores, outputs.beam_indices)
    expected = model.score_sentences(outputs.sequences, encoder_outputs)
    assert_close(found, expected.log_probs, rtol=1e-4, atol=1e-5)
    assert_close(found.sum(dim=1) / expected.mask.sum(dim=1), outputs.sequences_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.usefixtures("any_writer")
def test_words_appear_in_the_prompt_or_after_it(model, pixel_values, num_beams):
    options = {"num_beams": num_beams, "force_words_ids": [[7], [[5, 6], [11]]], "max_new_tokens": 8}
    for sentence in model.generate(pixel_values, **options).tolist():
        assert has(tuple(sentence), 7)
        assert has(tuple(sentence), 5, 6) or has(tuple(sentence), 11)
    prompts = torch.tensor([[5, 6], [4, 5], [7, 7]])
    continued = model.generate(pixel_values, decoder_input_ids=prompts, **options)
    for sentence, prompt in zip(continued.tolist(), prompts.tolist(), strict=True):
        assert sentence[1:3] == prompt
        assert has(tuple(sentence), 7)
        assert has(tuple(sentence), 5, 6) or has(tuple(sentence), 11)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_stop_string_ends_the_sentences_of_every_search(model, tiny_tokenizer, pixel_values, search):
    model.lm_head.bias[2] -= 100  # no sentence ends by itself
    if search == "constrained":  # a sentence that stops without its words does not count
        stop = tiny_tokenizer.decode([7])
    else:
        sentence = model.generate(pixel_values[:1], **SEARCHES[search], max_new_tokens=8)[0]
        stop = tiny_tokenizer.decode(sentence[3:4])
    sequences = model.generate(
        pixel_values[:1],
        **SEARCHES[search],
        max_new_tokens=8,
        length_penalty=0.0,
        stop_strings=[stop],
        tokenizer=tiny_tokenizer,
    )
    texts = tiny_tokenizer.batch_decode(sequences, skip_special_tokens=True)
    assert any(text.endswith(stop) for text in texts)
    assert all(text.count(stop) == text.endswith(stop) for text in texts)


def test_a_function_takes_the_place_of_the_search(model, pixel_values):
    def greedy(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        for _ in range(5):
            outputs = model(decoder_input_ids=input_ids, encoder_outputs=kwargs["encoder_outputs"])
            scores = logits_processor(input_ids, outputs.logits[:, -1])
            input_ids = torch.cat([input_ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
        return input_ids

    options = {"max_new_tokens": 5, "min_new_tokens": 5}
    found = model.generate(pixel_values, custom_generate=greedy, **options)
    assert torch.equal(found, model.generate(pixel_values, **options))


def test_words_that_cannot_appear_are_an_error(model, pixel_values):
    for options in ({"max_new_tokens": 2}, {"suppress_tokens": [7]}):
        with pytest.raises(ValueError, match=r"with all of `force_words_ids` was found for 3 of 3 images"):
            model.generate(pixel_values, num_beams=2, force_words_ids=[[7], [5, 6]], **options)
