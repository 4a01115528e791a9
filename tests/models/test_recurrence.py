"""Recurrent layers: those of torch, fast at single steps, and their initial weights."""

import pytest
import torch
from support.tiny_models import encoded
from torch import nn
from torch.testing import assert_close

from modeling_cnnrnn.models import recurrence_cnnrnn
from modeling_cnnrnn.models.recurrence_cnnrnn import make_recurrent_layer


@pytest.mark.parametrize("rnn_type", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_one_step_is_the_cell_of_torch(rnn_type):
    options = {"nonlinearity": rnn_type.removeprefix("rnn_")} if rnn_type.startswith("rnn_") else {}
    cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(rnn_type, nn.RNNCell)(5, 7, **options)
    layer = make_recurrent_layer(rnn_type, 5, 7)
    layer.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    inputs, hidden, memory = torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
    state = (hidden, memory) if rnn_type == "lstm" else hidden
    expected = cell(inputs, state)

    state = (hidden[None], memory[None]) if rnn_type == "lstm" else hidden[None]
    outputs, new = layer(inputs[:, None], state)
    assert_close(outputs[:, 0], expected[0] if rnn_type == "lstm" else expected)
    assert_close(new, tuple(e[None] for e in expected) if rnn_type == "lstm" else expected[None])


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("rnn_type", "torch_layer"),
    [
        ("lstm", nn.LSTM(5, 7, batch_first=True)),
        ("gru", nn.GRU(5, 7, batch_first=True)),
        ("rnn_tanh", nn.RNN(5, 7, batch_first=True)),
        ("rnn_relu", nn.RNN(5, 7, batch_first=True, nonlinearity="relu")),
    ],
)
def test_a_recurrent_layer_is_that_of_torch(rnn_type, torch_layer, num_steps):
    layer = make_recurrent_layer(rnn_type, 5, 7)
    layer.load_state_dict(torch_layer.state_dict())
    state = tuple(torch.randn(1, 3, 7) for _ in range(2)) if rnn_type == "lstm" else torch.randn(1, 3, 7)
    inputs = torch.randn(3, num_steps, 5)
    assert_close(layer(inputs, state), torch_layer(inputs, state))


@torch.no_grad()
def test_fused_and_stepwise_recurrence_agree(any_model, pixel_values, monkeypatch):
    words = torch.tensor([[1, 4, 9, 13, 7]]).expand(3, -1)
    fused = any_model(pixel_values, decoder_input_ids=words)
    monkeypatch.setattr(recurrence_cnnrnn, "needs_steps", lambda *_: True)
    stepwise = any_model(pixel_values, decoder_input_ids=words)
    assert_close(fused.logits, stepwise.logits)
    assert_close(fused.past_key_values.state, stepwise.past_key_values.state)


def test_teacher_forcing_without_attention_is_one_call(make_model, pixel_values, labels, monkeypatch):
    calls = []
    forward = nn.LSTM.forward
    monkeypatch.setattr(nn.LSTM, "forward", lambda self, x, *args: calls.append(x.shape[1]) or forward(self, x, *args))
    make_model()(pixel_values, labels=labels)
    assert calls == [1 + labels.shape[1]]  # the image, then the words


@pytest.mark.parametrize("rnn_type", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_recurrent_weights_start_orthogonal_gate_by_gate(make_model, rnn_type):
    model = make_model(rnn_type=rnn_type, num_hidden_layers=2)
    for layer in model.model.decoder.layers:
        for gate in layer.weight_hh_l0.split(14):
            assert_close(gate @ gate.T, torch.eye(14))
        bias = (layer.bias_ih_l0 + layer.bias_hh_l0).split(14)
        for index, gate in enumerate(bias):
            is_forget_gate = rnn_type == "lstm" and index == 1
            assert_close(gate, torch.ones(14) if is_forget_gate else torch.zeros(14))


@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_dropout_stands_between_recurrent_layers(make_model, regions, attention_type):
    model = make_model(attention_type=attention_type, image_injection="initial_state", num_hidden_layers=2)
    model.model.decoder.dropout.forward = torch.zeros_like  # all is dropped: no word reaches the second layer
    words = torch.randint(4, 20, (2, 3, 6))
    first, second = (
        model(encoder_outputs=encoded(regions), decoder_input_ids=w, output_hidden_states=True).decoder_hidden_states
        for w in words
    )
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])
