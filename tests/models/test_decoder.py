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
    activate = {"tanh": torch.tanh, "relu": torch.relu}[attention.activation]
    energies = torch.stack([attention.score(activate(attention.query(hidden) + attention.key(a))) for a in regions])
    weights = energies.exp() / energies.exp().sum()
    beta = 1 / (1 + torch.exp(-attention.gate(hidden))) if attention.gate is not None else 1
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


def maxout_by_hand(gates: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-critical Sequence Training: c = f c + i max(g_1, g_2), h = o tanh c."""
    i, f, g, g2, o = gates.unflatten(-1, (5, -1)).unbind(-2)
    memory = memory / (1 + torch.exp(-f)) + torch.where(g > g2, g, g2) / (1 + torch.exp(-i))
    return memory.tanh() / (1 + torch.exp(-o)), memory


def linear_output_by_hand(gates: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Show and Tell, equations 4 to 8: c = f c + i tanh g, m = o c."""
    i, f, g, o = gates.unflatten(-1, (4, -1)).unbind(-2)
    memory = memory / (1 + torch.exp(-f)) + g.tanh() / (1 + torch.exp(-i))
    return memory / (1 + torch.exp(-o)), memory


CELLS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}
CELLS_BY_HAND = {"lstm_maxout": maxout_by_hand, "lstm_linear_output": linear_output_by_hand}


class DecoderByHand:
    """The decoder as its papers write it: one image, one sentence, one step at a time."""

    def __init__(self, model: CnnRnnForConditionalGeneration, regions: torch.Tensor, image: torch.Tensor):
        self.model, self.config, self.decoder = model, model.config, model.model.decoder
        self.regions, self.image = regions, image
        shape = (2, self.config.num_hidden_layers, self.config.hidden_size)
        self.states = torch.zeros(shape, dtype=regions.dtype)
        if self.config.image_injection == "initial_state":
            initial = self.decoder.initial_state.weight @ image + self.decoder.initial_state.bias
            initial = initial if self.config.initial_state_activation == "linear" else initial.tanh()
            count = initial.numel() // (shape[1] * shape[2])
            self.states[:count] = initial.view(count, *shape[1:])

    def cell(self, layer: int, inputs: torch.Tensor, more: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Read a vector with a layer; `more` is added to its gates. Returns the new state h."""
        rnn = self.decoder.layers[layer]
        gates = rnn.weight_ih_l0 @ inputs + rnn.bias_ih_l0 + more
        hidden, memory = (s[layer] for s in self.states.clone())
        if self.config.rnn_type in CELLS_BY_HAND:
            gates = gates + rnn.weight_hh_l0 @ hidden + rnn.bias_hh_l0
            new = CELLS_BY_HAND[self.config.rnn_type](gates, memory)
        else:
            state = (hidden[None], memory[None]) if self.config.rnn_type == "lstm" else hidden[None]
            # the product with the input is in `gates` already
            weights = (torch.eye(len(gates), dtype=gates.dtype), rnn.weight_hh_l0, torch.zeros_like(gates))
            new = CELLS[self.config.rnn_type](gates[None], state, *weights, rnn.bias_hh_l0)
            new = [s[0] for s in (new if isinstance(new, tuple) else (new,))]
        for kind, value in enumerate(new):
            self.states[kind, layer] = value
        return new[0]

    def adapt(self, inputs: torch.Tensor, previous: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Knowing When to Look, with the layers of its code where there are any."""
        attention, (hidden, memory) = self.decoder.attention, self.states[:, -1]
        gate = 1 / (1 + torch.exp(-(attention.sentinel_input(inputs) + attention.sentinel_hidden.weight @ previous)))
        sentinel = gate * memory.tanh()
        if self.config.attention_type == "adaptive_mlp":
            sentinel, hidden = attention.sentinel_layer(sentinel).clamp(min=0), attention.hidden_layer(hidden).tanh()
        keys = [attention.key.weight @ region for region in self.regions] + [attention.sentinel_key(sentinel)]
        energies = torch.stack([attention.score.weight[0] @ (attention.query(hidden) + key).tanh() for key in keys])
        weights = energies.exp() / energies.exp().sum()
        output = weights[:-1] @ self.regions + weights[-1] * sentinel + hidden
        if self.config.attention_type == "adaptive_mlp":
            output = attention.output_layer(output).tanh()
        return output, weights[:-1]

    def step(self, word: torch.Tensor, is_first: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read an embedded word. Returns the logits of the next, and the attention."""
        kind, deep = self.config.attention_type, self.decoder.deep_output
        inputs, more, weights, context = [word], 0.0, None, None
        if self.decoder.has_image_input:
            is_seen = is_first or self.config.image_injection == "bias_every_step"
            inputs.append(self.image if is_seen else torch.zeros_like(self.image))
        previous = self.states[0, -1].clone()
        if kind in ("additive", "att2in"):
            context, weights = attend_by_hand(self.decoder.attention, previous, self.regions)
        if kind == "additive":
            inputs.append(context)
        elif kind == "att2in":  # input gate, forget gate, candidates, output gate
            zeros, candidates = torch.zeros_like(previous), self.decoder.attention.context(context)
            more = torch.cat([zeros, zeros, candidates, zeros])
        elif kind == "up_down":
            inputs.append(previous)
        output = self.cell(0, torch.cat(inputs), more)
        if kind == "up_down":
            context, weights = attend_by_hand(self.decoder.attention, output, self.regions)
            output = torch.cat([output, context])
        for layer in range(1, self.config.num_hidden_layers):
            output = self.cell(layer, output)
        if kind.startswith("adaptive"):
            output, weights = self.adapt(torch.cat(inputs), previous)
        if deep is not None:  # the output layer of Show, Attend and Tell
            output = word + deep.hidden.weight @ output + deep.hidden.bias + deep.context.weight @ context
            output = output.tanh() if self.config.deep_output == "tanh" else output
        return self.model.lm_head.weight @ output + self.model.lm_head.bias, weights

    def read(self, words: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns logits and attentions of each word."""
        steps = [self.decoder.embed_tokens.weight[word] for word in words]
        if self.config.embedding_activation == "relu":
            steps = [step.clamp(min=0) for step in steps]
        if self.config.image_injection == "first_token":
            steps.insert(0, self.image)
        results = [self.step(step, index == 0) for index, step in enumerate(steps)]
        logits, attentions = zip(*results[-len(words) :], strict=True)  # what is said of the image alone is no word
        return torch.stack(logits), torch.stack(attentions) if attentions[0] is not None else None


@torch.no_grad()
def test_decoder_follows_its_equations(any_model, regions):
    model, regions = any_model.double(), regions.double()
    model.model.decoder.apply(randomize_biases)
    words = torch.tensor([[1, 4, 9, 13, 7], [1, 5, 11, 3, 6], [1, 19, 8, 12, 4]])
    outputs = model(encoder_outputs=encoded(regions), decoder_input_ids=words, output_attentions=True)
    for index in range(3):
        image = regions[index].mean(dim=0) * (1 + model.config.image_projection)  # see `encoded`
        logits, attentions = DecoderByHand(model, regions[index], image).read(words[index].tolist())
        assert_close(outputs.logits[index], logits)
        if attentions is None:
            assert outputs.cross_attentions is None
        else:
            assert_close(outputs.cross_attentions[0][index, 0], attentions)


def randomize_biases(module: nn.Module):
    """Biases start from zero: a forgotten one would go unnoticed."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("bias"):
            nn.init.normal_(parameter)


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
    if any_model.config.attention_type != "none":
        (attentions,) = outputs.cross_attentions
        assert attentions.shape == (3, 1, 4, 16)
        sentinel = (
            outputs.sentinel_weights if any_model.config.attention_type.startswith("adaptive") else torch.zeros(())
        )
        assert_close(attentions[:, 0].sum(dim=-1) + sentinel, torch.ones(3, 4))


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
