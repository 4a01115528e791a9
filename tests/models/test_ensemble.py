"""Ensembles: one captioner alone is itself, two write what the average of their probabilities says, and all of it is saved."""

import itertools

import pytest
import torch
from support.nursery import run_python
from support.tiny_models import TINY_CNNS
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, GenerationMixin

from modeling_cnnrnn import (
    CnnRnnEnsemble,
    CnnRnnEnsembleConfig,
    CnnRnnEnsembleProcessor,
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
    ImageToTextPipeline,
    build_tokenizer,
    pipeline,
)


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 4},
    "constrained": {"num_beams": 2, "force_words_ids": [[7]]},
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def first(make_model) -> CnnRnnForConditionalGeneration:
    model = make_model(attention_type="additive")
    model.lm_head.bias[2] += 2
    return model


@pytest.fixture
def second(make_model) -> CnnRnnForConditionalGeneration:
    """Another CNN, another decoder."""
    model = make_model(
        encoder=TINY_CNNS["convnext"].to_dict(), rnn_type="gru", image_injection="bias_every_step", hidden_size=9
    )
    model.lm_head.bias[2] += 2
    return model


# --- What it writes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["probabilities", "log_probabilities"])
@pytest.mark.parametrize("way", WAYS)
def test_an_ensemble_of_one_is_its_captioner(first, pixel_values, way, average):
    ensemble = CnnRnnEnsemble.from_captioners([first], average=average)
    found = []
    for model in (first, ensemble):
        torch.manual_seed(0)
        found.append(model.generate(pixel_values, max_new_tokens=6, **WAYS[way]))
    assert torch.equal(*found)


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
@pytest.mark.parametrize("average", ["probabilities", "log_probabilities"])
def test_two_write_the_best_of_all_sentences_by_their_average(make_model, pixel_values, monkeypatch, average, weights):
    monkeypatch.setattr(CnnRnnEnsemble, "_validate_generation_mode", GenerationMixin._validate_generation_mode)
    limit, num_best = 4, 5
    captioners = [
        make_model(vocab_size=5, unk_token_id=None, attention_type="additive"),
        make_model(vocab_size=5, unk_token_id=None, encoder=TINY_CNNS["convnext"].to_dict(), rnn_type="gru"),
    ]
    ensemble = CnnRnnEnsemble.from_captioners(captioners, weights, average)
    outputs = ensemble.generate(
        pixel_values,
        num_beams=64,  # every prefix of three words: nothing is pruned
        num_return_sequences=num_best,
        max_new_tokens=limit,
        length_penalty=0.0,
        early_stopping="never",
        suppress_tokens=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    words = [0, 1, 3, 4]
    sentences = [(*body, 2) for n in range(limit) for body in itertools.product(words, repeat=n)]
    sentences += list(itertools.product(words, repeat=limit))
    padded = torch.tensor([(1, *sentence, *[0] * (limit - len(sentence))) for sentence in sentences])
    shares = [0.5, 0.5] if weights is None else [0.75, 0.25]
    found = outputs.sequences.unflatten(0, (3, num_best)), outputs.sequences_scores.unflatten(0, (3, num_best))
    for image, sequences, scores in zip(pixel_values, *found, strict=True):
        images = image.expand(len(sentences), -1, -1, -1)
        both = [c(images, decoder_input_ids=padded[:, :-1]).logits.double().softmax(dim=-1) for c in captioners]
        if average == "probabilities":
            mean = shares[0] * both[0] + shares[1] * both[1]
        else:
            mean = both[0] ** shares[0] * both[1] ** shares[1]
            mean /= mean.sum(dim=-1, keepdim=True)
        totals = [
            (sum(row[step, word].log().item() for step, word in enumerate(sentence)), sentence)
            for row, sentence in zip(mean, sentences, strict=True)
        ]
        best = sorted(totals, reverse=True)[:num_best]
        assert [tuple(s.tolist())[1 : len(b) + 1] for s, (_, b) in zip(sequences, best, strict=True)] == [
            sentence for _, sentence in best
        ]
        assert_close(scores.double(), torch.tensor([score for score, _ in best]).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["greedy", "beams", "diverse"])
def test_cache_batch_and_encoded_images_change_no_word(first, second, pixel_values, monkeypatch, way):
    ensemble = CnnRnnEnsemble.from_captioners([first, second])
    taken, make = [], CnnRnnEnsemble._fast_writer
    monkeypatch.setattr(CnnRnnEnsemble, "_fast_writer", lambda *args: taken.append(make(*args)) or taken[-1])
    options = {"max_new_tokens": 6, **WAYS[way]}
    expected = ensemble.generate(pixel_values, **options)
    assert taken[0] is not None  # the loops on packed weights; those without a cache are transformers'
    assert torch.equal(ensemble.generate(pixel_values, use_cache=False, **options), expected)
    encoder_outputs = ensemble.get_encoder()(pixel_values)
    for _ in range(2):  # the caller's stay as they are
        assert torch.equal(ensemble.generate(encoder_outputs=encoder_outputs, **options), expected)
    each = len(expected) // 3
    for image, sentences in zip(pixel_values, expected.split(each), strict=True):
        alone = ensemble.generate(image[None], **options)
        assert torch.equal(alone, sentences[:, : alone.shape[1]])


def test_each_word_has_the_log_probability_of_the_average(first, second, pixel_values):
    ensemble = CnnRnnEnsemble.from_captioners([first, second])
    encoder_outputs = ensemble.get_encoder()(pixel_values)
    outputs = ensemble.generate(
        encoder_outputs=encoder_outputs, **WAYS["beams"], output_scores=True, return_dict_in_generate=True
    )
    found = ensemble.compute_transition_scores(outputs.sequences, outputs.scores, outputs.beam_indices)
    expected = ensemble.score_sentences(outputs.sequences, encoder_outputs)
    assert_close(found, expected.log_probs, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_average(first, second, pixel_values, labels):
    ensemble = CnnRnnEnsemble.from_captioners([first, second])
    words = torch.cat([torch.ones(3, 1).long(), labels[:, :-1]], dim=1)
    both = [model(pixel_values, decoder_input_ids=words).logits.softmax(dim=-1) for model in (first, second)]
    log_probs = ((both[0] + both[1]) / 2).log().gather(2, labels[..., None]).squeeze(2)
    is_word = labels != 0
    assert_close(ensemble(pixel_values, labels=labels).loss, -log_probs[is_word].mean())
    assert_close(ensemble(pixel_values, labels=labels, num_items_in_batch=1).loss, -log_probs[is_word].sum())


def test_captioners_of_other_vocabularies_are_refused(make_model, first):
    with pytest.raises(ValueError, match="`vocab_size` is 21 in captioner 1 and 20 in the first: an ensemble needs"):
        CnnRnnEnsemble.from_captioners([first, make_model(vocab_size=21)])
    with pytest.raises(ValueError, match="`eos_token_id` is 4 in captioner 1 and 2 in the first"):
        CnnRnnEnsemble.from_captioners([first, make_model(eos_token_id=4)])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit_are_refused(first, weights):
    with pytest.raises(ValueError, match=r"`weights` is .* for 2 captioners: pass a positive number for each"):
        CnnRnnEnsemble.from_captioners([first, first], weights)


def test_what_an_ensemble_cannot_see_is_refused(first, pixel_values):
    ensemble = CnnRnnEnsemble.from_captioners([first, first])
    with pytest.raises(ValueError, match=r"pass \(batch_size, 2, 3, height, width\)"):
        ensemble.generate(pixel_values[:, None].expand(-1, 3, -1, -1, -1))
    with pytest.raises(ValueError, match="`image_features` are of one captioner alone"):
        ensemble.generate(image_features=torch.zeros(3, 4, 16))


# --- Pictures and folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def processors(tiny_tokenizer) -> list[CnnRnnProcessor]:
    """Of captioners that see pictures in different sizes."""
    return [CnnRnnProcessor.from_image_size(size, tiny_tokenizer) for size in (32, 48)]


def test_each_captioner_sees_its_own_pixels(first, second, processors, pictures):
    processor, ensemble = CnnRnnEnsembleProcessor(processors), CnnRnnEnsemble.from_captioners([first, second])
    images = pictures["image"][:3]
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (3, 2, 3, 48, 48)
    encoded = ensemble.get_encoder()(pixel_values)
    for captioner, own, outputs in zip((first, second), processors, encoded.captioners, strict=True):
        expected = captioner.get_encoder()(own(images=images, return_tensors="pt")["pixel_values"])
        assert_close(outputs.last_hidden_state, expected.last_hidden_state)


def test_an_ensemble_is_a_folder_of_captioners(first, second, processors, pictures, tmp_path):
    ensemble = CnnRnnEnsemble.from_captioners([first, second], weights=[2, 1], average="log_probabilities")
    ensemble.generation_config.max_length = 9
    processor = CnnRnnEnsembleProcessor(processors)
    ensemble.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = ImageToTextPipeline(ensemble, processor=processor)(pictures["image"][:2], batch_size=2)
    loaded_processor = AutoProcessor.from_pretrained(tmp_path)
    for auto_class in (AutoModelForImageTextToText, AutoModel):
        loaded = auto_class.from_pretrained(tmp_path)
        assert loaded.config.weights == [2, 1]
        assert ImageToTextPipeline(loaded, processor=loaded_processor)(pictures["image"][:2]) == expected
    assert pipeline("image-to-text", model=str(tmp_path))(pictures["image"][:2]) == expected
    alone = CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "captioner_1")
    pixel_values = processors[1](images=pictures["image"][:2], return_tensors="pt")["pixel_values"]
    assert torch.equal(alone.generate(pixel_values), second.generate(pixel_values))
    config = CnnRnnEnsembleConfig.from_pretrained(tmp_path)
    assert {name: v.shape for name, v in CnnRnnEnsemble(config).state_dict().items()} == {
        name: v.shape for name, v in ensemble.state_dict().items()
    }


STRANGER = """
import sys
from datasets import load_from_disk
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

model = AutoModelForImageTextToText.from_pretrained("ensemble", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("ensemble", trust_remote_code=True)
images = load_from_disk("pictures")["image"][:]
inputs = processor(images=images, return_tensors="pt")
words = model.generate(**inputs, num_beams=2)
pipe = pipeline("image-to-text", model="ensemble", trust_remote_code=True)
texts = [records[0]["generated_text"] for records in pipe(images, generate_kwargs={"num_beams": 2})]
assert texts == processor.batch_decode(words, skip_special_tokens=True)
assert "modeling_cnnrnn" not in sys.modules
print(words.tolist())
"""


@pytest.mark.slow
def test_an_ensemble_is_loaded_without_this_package(first, second, processors, pictures, tmp_path):
    ensemble, processor = CnnRnnEnsemble.from_captioners([first, second]), CnnRnnEnsembleProcessor(processors)
    ensemble.save_pretrained(tmp_path / "ensemble")
    processor.save_pretrained(tmp_path / "ensemble")
    some = pictures.select(range(2))
    some.save_to_disk(tmp_path / "pictures")
    done = run_python("-P", "-c", STRANGER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = ensemble.generate(**processor(images=some["image"], return_tensors="pt"), num_beams=2)
    assert done.stdout.strip() == str(expected.tolist())


def test_processors_of_other_words_are_refused(processors):
    other = CnnRnnProcessor.from_image_size(32, build_tokenizer(["a cat sits"], min_frequency=1))
    with pytest.raises(ValueError, match=r"Captioner 1 has other words than the first \(such as '.*'\)"):
        CnnRnnEnsembleProcessor([processors[0], other])
