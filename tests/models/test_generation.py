"""Generation: the same sentence however it is computed, exact beam search, prompts, scores, attention maps."""

import itertools

import pytest
import torch
from torch.testing import assert_close
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode
from transformers.generation.streamers import BaseStreamer

from modeling_cnnrnn import CnnRnnCache, CnnRnnForConditionalGeneration
from modeling_cnnrnn.models.generation_cnnrnn import sentence_mask


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def any_model(any_model) -> CnnRnnForConditionalGeneration:
    """As in conftest, but its sentences end where it likes, not only at the limit."""
    any_model.lm_head.bias[2] += 2
    return any_model


def log_probability(model, pixel_values: torch.Tensor, sentence: torch.Tensor) -> tuple[float, int]:
    """Of one sentence with its start token, up to its end token, by one forward pass; and its number of words."""
    words = sentence[1:].tolist()
    length = words.index(2) + 1 if 2 in words else len(words)
    logits = model(pixel_values[None], decoder_input_ids=sentence[None, :length]).logits[0]
    scores = logits.log_softmax(dim=-1)[torch.arange(length), words[:length]]
    return scores.sum().item(), length


# --- The same sentence however it is computed ------------------------------------------------------------------------


def test_cached_logits_are_the_uncached(any_model, pixel_values):
    words = torch.randint(4, 20, (3, 6))
    expected = any_model(pixel_values, decoder_input_ids=words)
    encoder_outputs = any_model.get_encoder()(pixel_values)
    cache, steps = None, []
    for chunk in words.split([1, 1, 3, 1], dim=1):
        outputs = any_model(encoder_outputs=encoder_outputs, decoder_input_ids=chunk, past_key_values=cache)
        cache = outputs.past_key_values
        steps.append(outputs.logits)
    assert_close(torch.cat(steps, dim=1), expected.logits)
    assert_close(cache.state, expected.past_key_values.state)
    assert cache.get_seq_length() == 6


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cached_generation_is_the_uncached(any_model, pixel_values, num_beams):
    options = {"num_beams": num_beams, "max_new_tokens": 6, "num_return_sequences": num_beams}
    cached = any_model.generate(pixel_values, use_cache=True, **options)
    assert torch.equal(cached, any_model.generate(pixel_values, use_cache=False, **options))


def test_greedy_search_takes_the_best_word_of_each_forward_pass(any_model, pixel_values):
    for image, sentence in zip(pixel_values, any_model.generate(pixel_values, max_new_tokens=6), strict=True):
        words = torch.tensor([[1]])
        while words.shape[1] < 7 and words[0, -1] != 2:
            scores = any_model(image[None], decoder_input_ids=words).logits[0, -1]
            scores[[0, 1, 3]] = -torch.inf  # padding, start and unknown words are never written
            words = torch.cat([words, scores.argmax().view(1, 1)], dim=1)
        assert sentence[: words.shape[1]].tolist() == words[0].tolist()
        assert (sentence[words.shape[1] :] == 0).all()


def test_a_batch_writes_what_its_images_write_alone(any_model, pixel_values):
    for num_beams in (1, 3):
        options = {"num_beams": num_beams, "max_new_tokens": 6}
        together = any_model.generate(pixel_values, **options)
        for image, sentence in zip(pixel_values, together, strict=True):
            (alone,) = any_model.generate(image[None], **options)
            assert sentence[: len(alone)].tolist() == alone.tolist()
            assert set(sentence[len(alone) :].tolist()) <= {0}


@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_one_beam_is_greedy(make_model, pixel_values, monkeypatch, attention_type):
    model = make_model(attention_type=attention_type)
    model.lm_head.bias[2] += 2
    greedy = model.generate(pixel_values)
    # `generate` searches greedily where there is one beam: here beam search has to
    monkeypatch.setattr(GenerationConfig, "get_generation_mode", lambda *_: GenerationMode.BEAM_SEARCH)
    for sentence, beam in zip(greedy, model.generate(pixel_values, early_stopping=True), strict=True):
        length = sentence.tolist().index(2) + 1 if 2 in sentence else len(sentence)
        assert beam[:length].tolist() == sentence[:length].tolist()


# --- Beam search -----------------------------------------------------------------------------------------------------


VARIANTS = list(itertools.product(["lstm", "gru", "rnn_tanh", "rnn_relu"], ["none", "additive"]))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("rnn_type", "attention_type"), VARIANTS)
def test_beam_search_finds_the_best_of_all_sentences(
    make_model, pixel_values, monkeypatch, rnn_type, attention_type, length_penalty
):
    # 64 beams hold every prefix of three words of a vocabulary of 5: nothing is pruned, so the search must be exact
    monkeypatch.setattr(
        CnnRnnForConditionalGeneration, "_validate_generation_mode", GenerationMixin._validate_generation_mode
    )
    limit, num_best = 4, 10
    model = make_model(
        vocab_size=5, unk_token_id=None, rnn_type=rnn_type, attention_type=attention_type, num_hidden_layers=2
    )
    outputs = model.generate(
        pixel_values,
        num_beams=64,
        num_return_sequences=num_best,
        max_new_tokens=limit,
        length_penalty=length_penalty,
        early_stopping="never",
        suppress_tokens=None,  # every token is a word
        output_scores=True,
        return_dict_in_generate=True,
    )
    found = outputs.sequences.unflatten(0, (3, num_best))
    found_scores = outputs.sequences_scores.unflatten(0, (3, num_best))

    words = [0, 1, 3, 4]
    sentences = [(*body, 2) for n in range(limit) for body in itertools.product(words, repeat=n)]
    sentences += list(itertools.product(words, repeat=limit))  # cut off at the limit
    assert len(sentences) == 1 + 4 + 16 + 64 + 256
    padded = torch.tensor([(1, *sentence, *[0] * (limit - len(sentence))) for sentence in sentences])
    for image, best, best_scores in zip(pixel_values, found, found_scores, strict=True):
        logits = model(image.expand(len(sentences), -1, -1, -1), decoder_input_ids=padded[:, :-1]).logits.double()
        log_probabilities = logits.log_softmax(dim=-1)
        scores = []
        for row, sentence in zip(log_probabilities, sentences, strict=True):
            total = sum(row[step, word].item() for step, word in enumerate(sentence))
            scores.append(total / len(sentence) ** length_penalty)
        order = sorted(range(len(sentences)), key=lambda i: -scores[i])[:num_best]
        assert [tuple(s.tolist())[1 : len(sentences[i]) + 1] for s, i in zip(best, order, strict=True)] == [
            sentences[i] for i in order
        ]
        assert_close(best_scores.double(), torch.tensor([scores[i] for i in order]).double(), rtol=1e-4, atol=1e-5)


def test_returned_beams_have_the_score_of_their_words(any_model, pixel_values):
    """A recurrent state that does not follow its beam writes fluent nonsense, and only this notices."""
    outputs = any_model.generate(
        pixel_values,
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=7,
        length_penalty=1.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    beams, images = set(), pixel_values.repeat_interleave(4, dim=0)
    for image, sentence, score in zip(images, outputs.sequences, outputs.sequences_scores, strict=True):
        total, length = log_probability(any_model, image, sentence)
        assert score.item() == pytest.approx(total / length, rel=1e-4, abs=1e-5)
        beams.add((image.sum().item(), tuple(sentence.tolist())))
    assert len(beams) == 12  # no image has a sentence twice


def test_scores_of_the_words_add_up_to_that_of_the_sentence(any_model, pixel_values):
    options = {"max_new_tokens": 6, "output_scores": True, "return_dict_in_generate": True}
    outputs = any_model.generate(pixel_values, num_beams=3, length_penalty=0.0, **options)
    scores = any_model.compute_transition_scores(outputs.sequences, outputs.scores, outputs.beam_indices)
    assert_close(scores.sum(dim=1), outputs.sequences_scores)

    outputs = any_model.generate(pixel_values, suppress_tokens=None, **options)
    scores = any_model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
    for image, sentence, words in zip(pixel_values, outputs.sequences, scores, strict=True):
        total, length = log_probability(any_model, image, sentence)
        assert words[:length].sum().item() == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_num_beams_above_the_vocabulary_is_refused(make_model, pixel_values):
    model = make_model(vocab_size=5, unk_token_id=None)
    with pytest.raises(ValueError, match="`num_beams` is 6 but the vocabulary has 5 words"):
        model.generate(pixel_values, num_beams=6)
    model.generate(pixel_values, num_beams=5, max_new_tokens=2)


# --- Log-probabilities of given sentences ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eos_token_id", "expected"),
    [
        (2, [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        ([2, 7], [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        (torch.tensor([7]), [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        (None, [[1, 1, 1, 1, 1]] * 4),
    ],
)
def test_a_sentence_is_marked_up_to_its_first_end_token(eos_token_id, expected):
    sequences = torch.tensor([[4, 5, 2, 0, 0], [2, 9, 2, 2, 0], [4, 4, 4, 4, 2], [5, 7, 4, 7, 5]])
    assert torch.equal(sentence_mask(sequences, eos_token_id), torch.tensor(expected).bool())


def test_sentences_have_the_log_probabilities_of_their_forward_passes(any_model, pixel_values):
    encoder_outputs = any_model.get_encoder()(pixel_values)
    sequences = any_model.generate(
        encoder_outputs=encoder_outputs, num_beams=4, num_return_sequences=4, max_new_tokens=7
    )
    scores = any_model.score_sentences(sequences, encoder_outputs)
    assert scores.attentions is None
    assert scores.log_probs.shape == scores.mask.shape == (12, sequences.shape[1] - 1)
    images = pixel_values.repeat_interleave(4, dim=0)
    for image, sentence, log_probs, mask in zip(images, sequences, scores.log_probs, scores.mask, strict=True):
        total, length = log_probability(any_model, image, sentence)
        assert mask.tolist() == [True] * length + [False] * (len(mask) - length)
        assert log_probs.sum().item() == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert (log_probs[length:] == 0).all()


def test_a_prompt_does_not_count_in_the_log_probability(tiny_model, pixel_values):
    encoder_outputs = tiny_model.get_encoder()(pixel_values)
    sequences = torch.tensor([[1, 4, 2, 5, 9, 2, 0], [1, 4, 6, 2, 0, 0, 0], [1, 4, 6, 7, 8, 9, 5]])
    scores = tiny_model.score_sentences(sequences, encoder_outputs, num_prompt_tokens=2)
    # an end token in the prompt ends nothing
    expected = [[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert torch.equal(scores.mask, torch.tensor(expected).bool())
    logits = tiny_model(pixel_values, decoder_input_ids=sequences).logits
    assert_close(scores.log_probs[2, 3], logits[2, 3].log_softmax(dim=-1)[8])
    assert (scores.log_probs[~scores.mask] == 0).all()


def test_scored_sentences_have_the_attention_of_each_token(make_model, pixel_values):
    model = make_model(attention_type="additive")
    sequences = torch.randint(4, 20, (6, 5))
    scores = model.score_sentences(sequences, model.get_encoder()(pixel_values), output_attentions=True)
    images = pixel_values.repeat_interleave(2, dim=0)
    expected = model(images, decoder_input_ids=sequences[:, :-1], output_attentions=True).cross_attentions[0]
    assert_close(scores.attentions, expected[:, 0])


def test_scored_sentences_are_of_the_same_number_for_each_image(tiny_model, pixel_values):
    with pytest.raises(ValueError, match="`sequences` holds 4 sentences for 3 images"):
        tiny_model.score_sentences(torch.ones(4, 5).long(), tiny_model.get_encoder()(pixel_values))


# --- Inputs of generate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_stored_features_stand_for_the_pixels(make_model, pixel_values, attention_type, options):
    model = make_model(attention_type=attention_type)
    features, _ = model.get_encoder().get_image_features(pixel_values)
    encoder_outputs = model.get_encoder()(pixel_values)
    sentences = []
    for inputs in (
        {"pixel_values": pixel_values},
        {"image_features": features},
        {"encoder_outputs": encoder_outputs},
        {"encoder_outputs": encoder_outputs.to_tuple()},
    ):
        torch.manual_seed(0)
        sentences.append(model.generate(**inputs, max_new_tokens=5, **options))
    assert all(torch.equal(sentence, sentences[0]) for sentence in sentences)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_the_callers_encoder_outputs_stay_as_they_are(tiny_model, pixel_values, options):
    encoder_outputs = tiny_model.get_encoder()(pixel_values)
    before = encoder_outputs.last_hidden_state.clone()
    tiny_model.generate(encoder_outputs=encoder_outputs, max_new_tokens=3, **options)
    assert torch.equal(encoder_outputs.last_hidden_state, before)


def test_generation_without_an_image_is_refused(tiny_model):
    with pytest.raises(ValueError, match="Pass `pixel_values`, `image_features` or `encoder_outputs`"):
        tiny_model.generate(max_new_tokens=3)


def test_the_cnn_runs_once_for_all_beams_and_words(tiny_model, pixel_values):
    batches = []
    tiny_model.get_encoder().cnn.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    for options in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 4}, {"use_cache": False}):
        tiny_model.generate(pixel_values, max_new_tokens=5, **options)
    assert batches == [3, 3, 3]


def test_a_prompt_is_continued(any_model, pixel_values):
    sentences = any_model.generate(pixel_values, max_new_tokens=6, min_new_tokens=6)
    prompt = sentences[:, :4]  # the start token and three words
    for inputs in (prompt, prompt[:, 1:]):  # the start token is supplied where there is none
        continued = any_model.generate(pixel_values, decoder_input_ids=inputs, max_new_tokens=3, min_new_tokens=3)
        assert torch.equal(continued, sentences)


def test_ragged_prompts_are_continued_as_each_alone(any_model, pixel_values):
    prompts = torch.tensor([[4, 9, 13], [0, 0, 5], [0, 7, 11]])
    length = {"max_new_tokens": 3, "min_new_tokens": 3}
    for options in ({}, {"num_beams": 3}):
        together = any_model.generate(
            pixel_values, decoder_input_ids=prompts, decoder_attention_mask=(prompts != 0).long(), **length, **options
        )
        for image, prompt, sentence in zip(pixel_values, prompts, together, strict=True):
            prompt = prompt[prompt != 0]
            alone = any_model.generate(image[None], decoder_input_ids=prompt[None], **length, **options)
            assert sentence[-3:].tolist() == alone[0, -3:].tolist()


def test_a_prompt_may_be_named_as_a_tokenizer_does(tiny_model, pixel_values):
    prompts = torch.tensor([[4, 9, 13], [0, 0, 5], [0, 7, 11]])
    mask = (prompts != 0).long()
    for options in ({}, {"num_beams": 3}, {"use_cache": False}):
        expected = tiny_model.generate(pixel_values, decoder_input_ids=prompts, decoder_attention_mask=mask, **options)
        assert torch.equal(
            tiny_model.generate(pixel_values, input_ids=prompts, attention_mask=mask, **options), expected
        )


def test_a_prompt_of_the_tokenizer_is_continued(tiny_model, tiny_tokenizer, pixel_values):
    inputs = tiny_tokenizer(
        ["a dog", "two blue circles", "a"],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    generated = tiny_model.generate(pixel_values, **inputs, max_new_tokens=3)
    texts = tiny_tokenizer.batch_decode(generated, skip_special_tokens=True)
    assert texts[0].startswith("a dog ")
    assert texts[1].startswith("two blue circles ")


# --- Outputs of generate ---------------------------------------------------------------------------------------------


def test_sampling_is_reproducible_and_returns_what_was_asked_for(tiny_model, pixel_values):
    samples = []
    for _ in range(2):
        torch.manual_seed(3)
        samples.append(tiny_model.generate(pixel_values, do_sample=True, num_return_sequences=4, max_new_tokens=6))
    assert torch.equal(*samples)
    assert samples[0].shape[0] == 12
    assert len({tuple(sentence) for sentence in samples[0].tolist()}) > 4


def test_samples_are_drawn_from_the_models_distribution(tiny_model, pixel_values):
    """The first word of two thousand sentences, against its probability: pitfall of repeating images in another order."""
    samples = tiny_model.generate(
        pixel_values, do_sample=True, top_k=0, num_return_sequences=2000, max_new_tokens=1, suppress_tokens=None
    )
    counts = torch.stack([sentences[:, 1].bincount(minlength=20) for sentences in samples.unflatten(0, (3, 2000))])
    probabilities = tiny_model(pixel_values, decoder_input_ids=torch.ones(3, 1).long()).logits[:, 0].softmax(dim=-1)
    assert_close(counts / 2000, probabilities, rtol=0, atol=0.05)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}, {"num_beams": 3}, {"temperature": 0.1}])
def test_sampling_options_are_obeyed(any_model, pixel_values, options):
    sentences = any_model.generate(pixel_values, do_sample=True, max_new_tokens=5, **options)
    assert not torch.isin(sentences[:, 1:2], torch.tensor([0, 1, 3])).any()


def test_each_word_has_its_map_over_the_image(make_model, decoder_options, pixel_values):
    if decoder_options["attention_type"] == "none":
        pytest.skip("this decoder does not look at regions")
    model = make_model(**decoder_options)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "output_attentions": True, "return_dict_in_generate": True}
    outputs = model.generate(pixel_values, **options)
    maps = torch.cat([layers[0] for layers in outputs.cross_attentions], dim=2)  # (image, 1, word, region)
    assert maps.shape == (3, 1, 5, 16)
    words = outputs.sequences[:, :-1]
    forward = model(pixel_values, decoder_input_ids=words, output_attentions=True)
    assert_close(maps, forward.cross_attentions[0])
    has_sentinel = decoder_options["attention_type"].startswith("adaptive")
    sentinel_weights = forward.sentinel_weights if has_sentinel else torch.zeros(3, 5)
    assert_close(maps.sum(dim=-1)[:, 0] + sentinel_weights, torch.ones(3, 5))

    beams = model.generate(pixel_values, num_beams=2, **options)
    assert [layers[0].shape for layers in beams.cross_attentions] == [(6, 1, 1, 16)] * 5


def test_decoders_without_attention_have_no_maps(tiny_model, pixel_values):
    outputs = tiny_model.generate(pixel_values, max_new_tokens=3, output_attentions=True, return_dict_in_generate=True)
    assert outputs.cross_attentions is None or all(not layers for layers in outputs.cross_attentions)


def test_words_are_streamed_as_they_are_written(tiny_model, pixel_values):
    class Streamer(BaseStreamer):
        def __init__(self):
            self.words, self.ended = [], False

        def put(self, value):
            self.words += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    (sentence,) = tiny_model.generate(pixel_values[:1], streamer=streamer, max_new_tokens=5).tolist()
    assert streamer.words == sentence
    assert streamer.ended


def test_special_tokens_are_never_written(any_model, pixel_values):
    any_model.lm_head.bias[[0, 1, 3]] += 100
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}):
        sentences = any_model.generate(pixel_values, min_new_tokens=6, max_new_tokens=6, **options)[:, 1:]
        assert not torch.isin(sentences, torch.tensor([0, 1, 3])).any()


def test_sentences_stop_at_the_default_limit_or_at_the_callers(tiny_model, pixel_values):
    tiny_model.lm_head.bias[2] -= 100
    assert tiny_model.generate(pixel_values).shape == (3, 32)
    assert tiny_model.generate(pixel_values, max_new_tokens=40).shape == (3, 41)
    assert tiny_model.generate(pixel_values, max_length=7).shape == (3, 7)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "length_penalty": 9.0}], ids=["greedy", "beams"])
def test_a_stop_string_ends_a_sentence_where_it_is_complete(model, tiny_processor, pixel_values, options):
    model.lm_head.bias.data[2] -= 100  # no sentence ends by itself
    tokenizer = tiny_processor.tokenizer
    whole = tokenizer.batch_decode(model.generate(pixel_values[:1], max_new_tokens=8), skip_special_tokens=True)[0]
    stop = " ".join(whole.split()[2:4])
    words = model.generate(
        pixel_values[:1], max_new_tokens=8, stop_strings=[stop, "xyzzy"], tokenizer=tokenizer, **options
    )
    text = tokenizer.decode(words[0], skip_special_tokens=True)
    assert text.endswith(stop)
    assert text.count(stop) == 1
    if not options:
        assert whole.startswith(text)
    # a prompt that holds it is no end
    prompt = tokenizer([stop], return_tensors="pt", add_special_tokens=False)["input_ids"]
    told = model.generate(pixel_values[:1], input_ids=prompt, max_new_tokens=3, stop_strings=stop, tokenizer=tokenizer)
    assert told.shape[1] > prompt.shape[1]


def test_assisted_generation_is_refused(tiny_model, pixel_values):
    with pytest.raises(ValueError, match="stateful"):
        tiny_model.generate(pixel_values, assistant_model=tiny_model)


# --- The cache -------------------------------------------------------------------------------------------------------


def filled_cache(model, pixel_values) -> CnnRnnCache:
    return model(pixel_values, decoder_input_ids=torch.tensor([[1, 4], [1, 5], [1, 6]])).past_key_values


def test_the_cache_moves_its_state_with_the_beams(any_model, pixel_values):
    cache, expected = filled_cache(any_model, pixel_values), filled_cache(any_model, pixel_values).state
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert all(torch.equal(new, old[:, [2, 0, 0]]) for new, old in zip(cache.state, expected, strict=True))


def test_the_cache_repeats_and_selects_sequences(any_model, pixel_values):
    cache, before = filled_cache(any_model, pixel_values), filled_cache(any_model, pixel_values)
    cache.batch_repeat_interleave(2)
    assert all(torch.equal(n, o[:, [0, 0, 1, 1, 2, 2]]) for n, o in zip(cache.state, before.state, strict=True))
    cache.batch_select_indices(torch.tensor([0, 5]))
    assert all(torch.equal(n, o[:, [0, 2]]) for n, o in zip(cache.state, before.state, strict=True))
    if before.keys is not None:
        assert torch.equal(cache.keys, before.keys[[0, 2]])
    encoder_outputs = any_model.get_encoder()(pixel_values[[0, 2]])
    words = torch.tensor([[7], [8]])
    outputs = any_model(encoder_outputs=encoder_outputs, decoder_input_ids=words, past_key_values=cache)
    whole = torch.tensor([[1, 4, 7], [1, 6, 8]])
    assert_close(outputs.logits[:, 0], any_model(pixel_values[[0, 2]], decoder_input_ids=whole).logits[:, -1])


def test_the_cache_says_what_it_holds_and_forgets(tiny_model, pixel_values):
    cache = filled_cache(tiny_model, pixel_values)
    assert (len(cache), cache.get_seq_length()) == (1, 2)
    assert not cache.is_compileable
    cache.reset()
    assert (len(cache), cache.get_seq_length(), cache.state) == (0, 0, None)


def test_no_cache_is_returned_where_none_is_wanted(tiny_model, pixel_values, labels):
    words = torch.tensor([[1, 4]]).expand(3, -1)
    assert tiny_model(pixel_values, decoder_input_ids=words, use_cache=False).past_key_values is None
    assert tiny_model(pixel_values, labels=labels).past_key_values is None
