"""The decoder: its equations, where the image enters, and what must not change its words."""

from typing import get_args

import pytest
import torch
from support.tiny_models import encoded
from torch import nn
from torch.testing import assert_close

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration
from modeling_cnnrnn.models.attention_cnnrnn import ATTENTIONS, CnnRnnAttention


def attend_by_hand(attention: CnnRnnAttention, hidden: torch.Tensor, regions: torch.Tensor):
    """Show, Attend and Tell, region by region: e_i = w tanh(W_h h + W_a a_i), alpha = softmax e, z = beta sum alpha a."""
    energies = torch.stack([attention.score(torch.tanh(attention.query(hidden) + attention.key(a))) for a in regions])
    weights = energies.exp() / energies.exp().sum()
    beta = 1 / (1 + torch.exp(-attention.gate(hidden)))
    return beta * sum(weight * region for weight, region in zip(weights, regions, strict=True)), weights.squeeze(-1)


def test_attention_is_a_loop_over_regions(tiny_config):
    attention = CnnRnnAttention(tiny_config).double()
    regions, hidden = torch.randn(2, 6, 12).double(), torch.randn(4, 14).double()  # two captions of each image
    context, weights = attention(hidden, regions, attention.key(regions))
    for index in range(4):
        expected = attend_by_hand(attention, hidden[index], regions[index // 2])
        assert_close((context[index], weights[index]), expected)


def test_every_choice_of_the_configuration_is_an_attention():
    assert get_args(CnnRnnConfig.__annotations__["attention_type"]) == ("none", *ATTENTIONS)


CELLS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


def decode_by_hand(model: CnnRnnForConditionalGeneration, regions: torch.Tensor, words: list[int]):
    """The decoder as its papers write it: one image, one sentence, one step at a time. Returns logits and attentions."""
    config, decoder = model.config, model.model.decoder
    size, image = config.embedding_size, regions.mean(dim=0)
    states = torch.zeros(2, config.num_hidden_layers, config.hidden_size, dtype=regions.dtype)
    if config.image_injection == "initial_state":
        initial = torch.tanh(decoder.initial_state.weight @ image + decoder.initial_state.bias)
        count = initial.numel() // (config.num_hidden_layers * config.hidden_size)
        states[:count] = initial.view(count, config.num_hidden_layers, config.hidden_size)

    def cell(layer: int, preactivation: torch.Tensor) -> torch.Tensor:
        rnn = decoder.layers[layer]
        hidden, memory = (s[layer][None] for s in states.clone())
        identity = torch.eye(len(preactivation), dtype=regions.dtype)
        new = CELLS[config.rnn_type](
            preactivation[None],
            (hidden, memory) if config.rnn_type == "lstm" else hidden,
            identity,  # the product with the input is in `preactivation` already
            rnn.weight_hh_l0,
            torch.zeros_like(preactivation),
            rnn.bias_hh_l0,
        )
        new = new if isinstance(new, tuple) else (new,)
        for kind, value in enumerate(new):
            states[kind, layer] = value[0]
        return new[0][0]

    steps = [decoder.embed_tokens.weight[word] for word in words]
    if config.image_injection == "first_token":
        steps.insert(0, image)
    weight, bias = decoder.layers[0].weight_ih_l0, decoder.layers[0].bias_ih_l0
    logits, attentions = [], []
    for index, step in enumerate(steps):
        output = weight[:, :size] @ step + bias
        if config.image_injection == "bias_every_step" or (config.image_injection == "bias_first_step" and index == 0):
            output = output + weight[:, size : 2 * size] @ image
        if decoder.attention is not None:
            context, alphas = attend_by_hand(decoder.attention, states[0, -1].clone(), regions)
            output = output + weight[:, -size:] @ context
            attentions.append(alphas)
        output = cell(0, output)
        for layer in range(1, config.num_hidden_layers):
            rnn = decoder.layers[layer]
            output = cell(layer, rnn.weight_ih_l0 @ output + rnn.bias_ih_l0)
        logits.append(model.lm_head.weight @ output + model.lm_head.bias)
    spoken = slice(len(steps) - len(words), None)  # what is said of the image alone is no word
    return torch.stack(logits[spoken]), torch.stack(attentions[spoken]) if attentions else None


@torch.no_grad()
def test_decoder_follows_its_equations(any_model, regions):
    model, regions = any_model.double(), regions.double()
    model.model.decoder.layers.apply(randomize_biases)
    words = torch.tensor([[1, 4, 9, 13, 7], [1, 5, 11, 3, 6], [1, 19, 8, 12, 4]])
    outputs = model(encoder_outputs=encoded(regions), decoder_input_ids=words, output_attentions=True)
    for index in range(3):
        logits, attentions = decode_by_hand(model, regions[index], words[index].tolist())
        assert_close(outputs.logits[index], logits)
        if attentions is None:
            assert outputs.cross_attentions is None
        else:
            assert_close(outputs.cross_attentions[0][index, 0], attentions)


def randomize_biases(module: nn.Module):
    """Biases start from zero: a forgotten one would go unnoticed."""
    if isinstance(module, nn.RNNBase):
        nn.init.normal_(module.bias_ih_l0)
        nn.init.normal_(module.bias_hh_l0)


@torch.no_grad()
@pytest.mark.parametrize("image_injection", ["first_token", "initial_state", "bias_first_step", "bias_every_step"])
def test_image_enters_at_its_step_and_at_no_other(make_model, regions, image_injection):
    model = make_model(image_injection=image_injection, rnn_type="rnn_relu")
    decoder = model.model.decoder
    for weight in (decoder.layers[0].weight_hh_l0, decoder.layers[0].bias_hh_l0):
        weight.zero_()  # without memory, each step shows what enters there
    words = torch.tensor([[1, 4, 9], [1, 4, 9], [1, 4, 9]])
    logits = model(encoder_outputs=encoded(regions), decoder_input_ids=words).logits
    depends = [not torch.equal(step[0], step[1]) for step in logits.unbind(1)]
    assert (
        depends
        == {
            "first_token": [False, False, False],
            "initial_state": [False, False, False],
            "bias_first_step": [True, False, False],
            "bias_every_step": [True, True, True],
        }[image_injection]
    )


def test_logits_are_of_the_words_and_not_of_the_image(any_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    outputs = any_model(pixel_values, decoder_input_ids=words, output_attentions=True, output_hidden_states=True)
    assert outputs.logits.shape == (3, 4, 20)
    assert [h.shape[:2] for h in outputs.decoder_hidden_states] == [(3, 4)] * (1 + any_model.config.num_hidden_layers)
    if any_model.config.attention_type == "additive":
        (attentions,) = outputs.cross_attentions
        assert attentions.shape == (3, 1, 4, 16)
        assert_close(attentions.sum(dim=-1), torch.ones(3, 1, 4))


@torch.no_grad()
def test_every_decoder_looks_at_the_image(any_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    logits = any_model(pixel_values, decoder_input_ids=words).logits
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one(any_model, pixel_values, labels):
    words = any_model.prepare_decoder_input_ids_from_labels(labels)
    together = any_model(pixel_values, decoder_input_ids=words).logits
    alone = [any_model(p[None], decoder_input_ids=w[None]).logits for p, w in zip(pixel_values, words, strict=True)]
    assert_close(together, torch.cat(alone))


@torch.no_grad()
def test_masked_tokens_are_not_read(any_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    expected = any_model(pixel_values, decoder_input_ids=words)
    padded = torch.tensor([[0, 7, 1, 4, 5, 9, 13]]).expand(3, -1)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 1]]).expand(3, -1)
    outputs = any_model(pixel_values, decoder_input_ids=padded, decoder_attention_mask=mask)
    assert_close(outputs.logits[:, mask[0].bool()], expected.logits)
    assert_close(outputs.past_key_values.state, expected.past_key_values.state)


@torch.no_grad()
def test_image_features_and_encoder_outputs_stand_for_the_pixels(any_model, pixel_values, labels):
    encoder = any_model.get_encoder()
    expected = any_model(pixel_values, labels=labels)
    features, _ = encoder.get_image_features(pixel_values)
    assert features.shape == (3, 16, 16)
    outputs = encoder(pixel_values)
    for inputs in ({"image_features": features}, {"encoder_outputs": outputs}, {"encoder_outputs": outputs.to_tuple()}):
        again = any_model(**inputs, labels=labels)
        assert torch.equal(again.logits, expected.logits)
        assert torch.equal(again.loss, expected.loss)


@torch.no_grad()
def test_embeddings_stand_for_the_words(tiny_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    embeddings = tiny_model.get_input_embeddings()(words)
    outputs = tiny_model(pixel_values, decoder_inputs_embeds=embeddings)
    assert torch.equal(outputs.logits, tiny_model(pixel_values, decoder_input_ids=words).logits)
