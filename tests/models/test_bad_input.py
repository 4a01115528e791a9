"""Bad input: each mistake gets one clear sentence."""

import pytest
import torch
from transformers import (
    BertConfig,
    SwinConfig,
    ViTConfig,
)

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration


def test_an_empty_batch_is_refused(tiny_model):
    with pytest.raises(ValueError, match="`pixel_values` is an empty batch"):
        tiny_model.generate(torch.zeros(0, 3, 32, 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused(tiny_model, pixel_values, value):
    pixel_values[1, 0, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        tiny_model.generate(pixel_values)


@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (3, 4, 32, 32), (3, 32, 32), (3, 32, 32, 3)])
def test_images_of_another_shape_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match=r"`pixel_values` has shape .*: pass \(batch_size, 3, height, width\)"):
        tiny_model.generate(torch.zeros(shape))


@pytest.mark.parametrize("token", [20, -3])
def test_words_outside_the_vocabulary_are_refused(tiny_model, pixel_values, labels, token):
    wrong = labels.clone()
    wrong[0, 1] = token
    with pytest.raises(ValueError, match=rf"token {token}, outside the vocabulary of 20"):
        tiny_model(pixel_values, decoder_input_ids=wrong)
    with pytest.raises(ValueError, match=rf"token {token}, outside the vocabulary of 20"):
        tiny_model(pixel_values, labels=wrong)


def test_a_last_label_outside_the_vocabulary_is_refused(tiny_model, pixel_values, labels):
    labels[0, -1] = 20  # the only place that is never read
    with pytest.raises(ValueError, match="token 20, outside the vocabulary of 20"):
        tiny_model(pixel_values, labels=labels)


def test_more_captions_than_images_are_refused(tiny_model, pixel_values, labels):
    with pytest.raises(ValueError, match="3 images were given with 6 captions"):
        tiny_model(pixel_values, labels=labels.repeat(2, 1))
    with pytest.raises(ValueError, match="2 images were given with 3 captions"):
        tiny_model(pixel_values[:2], labels=labels[:, None])


@pytest.mark.parametrize("nothing", [0, -100])
def test_labels_without_a_word_are_refused(tiny_model, pixel_values, nothing):
    with pytest.raises(ValueError, match="hold no word to learn"):
        tiny_model(pixel_values, labels=torch.full((3, 4), nothing))


def test_an_image_is_given_in_one_way(tiny_model, pixel_values, labels):
    features, _ = tiny_model.get_encoder().get_image_features(pixel_values)
    for inputs in ({}, {"pixel_values": pixel_values, "image_features": features}):
        with pytest.raises(ValueError, match="either `pixel_values` or `image_features`"):
            tiny_model(**inputs, labels=labels)


def test_words_are_given_in_one_way(tiny_model, pixel_values):
    words = torch.tensor([[1, 4]]).expand(3, -1)
    embeddings = tiny_model.get_input_embeddings()(words)
    for inputs in ({}, {"decoder_input_ids": words, "decoder_inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="either `decoder_input_ids` or `decoder_inputs_embeds`"):
            tiny_model(pixel_values, **inputs)


@pytest.mark.parametrize(
    "encoder",
    [
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32),
        SwinConfig(embed_dim=8, depths=[1], num_heads=[2], image_size=32),
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=30),
    ],
    ids=lambda config: config.model_type,
)
def test_an_encoder_that_is_no_cnn_is_refused(encoder):
    with pytest.raises(ValueError, match=f"'{encoder.model_type}'.*pass a CNN"):
        CnnRnnForConditionalGeneration(CnnRnnConfig(encoder=encoder))


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_cnn_does_not_have_is_refused(make_model, layer):
    with pytest.raises(ValueError, match=f"`vision_feature_layer` is {layer} but the CNN has 3 hidden states"):
        make_model(vision_feature_layer=layer)
