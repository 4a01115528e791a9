"""Training steps: gradients gathered over the steps are those of the plain loop."""

import pytest
import torch
from support.tiny_models import encoded
from torch import nn
from torch.testing import assert_close

from modeling_cnnrnn.models import decoder_cnnrnn
from modeling_cnnrnn.models.attention_cnnrnn import CnnRnnAttention
from modeling_cnnrnn.models.training_steps_cnnrnn import StepLinear


def test_gradients_are_the_same_with_and_without_what_comes_after_the_captions(any_model, pixel_values):
    model = any_model.double().train()
    labels = torch.tensor(
        [[[4, 9, 13, 7, 2], [5, 2, 0, 0, 0]], [[19, 11, 2, 0, 0], [0] * 5], [[2] + [0] * 4, [6, 2] + [0] * 3]]
    )
    gradients = []
    for skip_logits in (False, True):
        model.zero_grad()
        model(pixel_values.double(), labels=labels, skip_logits=skip_logits).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_a_finished_caption_takes_part_in_no_further_step(make_model, pixel_values, labels, monkeypatch):
    model = make_model(attention_type="additive").train()
    rows = []
    call = StepLinear.__call__
    monkeypatch.setattr(StepLinear, "__call__", lambda self, x: rows.append(len(x)) or call(self, x))
    model(pixel_values, labels=labels)
    per_step = len(rows) // 6  # the image, then the words
    assert rows[::per_step] == [3, 3, 3, 2, 1, 1]


def test_a_linear_layer_of_many_steps_has_the_gradients_of_one():
    layer = nn.Linear(5, 7).double()
    steps = [torch.randn(n, 5, dtype=torch.double, requires_grad=True) for n in (3, 2, 2)]
    gradients = []
    for apply in (layer, StepLinear(layer.weight, layer.bias)):
        loss = sum((apply(step) ** 3).sum() for step in steps)
        gradients.append(torch.autograd.grad(loss, (layer.weight, layer.bias, *steps)))
    assert_close(*gradients)


def test_under_autocast_a_linear_layer_of_many_steps_multiplies_in_its_precision():
    layer = nn.Linear(5, 7)
    steps = [torch.randn(n, 5, requires_grad=True) for n in (3, 2, 2)]
    expected = torch.autograd.grad(sum((layer(step) ** 2).sum() for step in steps), (*layer.parameters(), *steps))
    with torch.autocast("cpu", torch.bfloat16):
        apply = StepLinear(layer.weight, layer.bias)
        outputs = [apply(step) for step in steps]
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    loss = sum((output.float() ** 2).sum() for output in outputs)
    gradients = torch.autograd.grad(loss, (*layer.parameters(), *steps))
    assert_close(gradients, expected, rtol=0.05, atol=0.05)  # in float32 each, as `assert_close` checks


# --- Equal to the plain loop, which is taken where it is needed ------------------------------------------------------


@pytest.fixture
def gathered(monkeypatch) -> list[int]:
    """A list that grows by one each time that the steps of a batch are run by `run_training_steps`."""
    runs: list[int] = []
    run = decoder_cnnrnn.run_training_steps
    monkeypatch.setattr(decoder_cnnrnn, "run_training_steps", lambda *args: runs.append(1) or run(*args))
    return runs


def test_gathered_and_plain_steps_agree(make_model, decoder_options, pixel_values, monkeypatch, gathered):
    labels = torch.tensor([[[4, 9, 13, 7, 2], [5, 2, 0, 0, 0]], [[19, 11, 2, 0, 0], [0] * 5], [[6, 2, 0, 0, 0]] * 2])
    has_attention = decoder_options["attention_type"] == "additive"
    options = {"label_smoothing": 0.1, "attention_regularization": 0.5 if has_attention else 0.0, **decoder_options}
    # a decoder without attention steps where torch's fused layers cannot read the whole caption
    monkeypatch.setattr(decoder_cnnrnn, "needs_steps", lambda *_: True)
    losses, gradients = [], []
    for is_plain in (False, True):
        if is_plain:
            monkeypatch.setattr(decoder_cnnrnn, "can_gather", lambda *_: False)
        model = make_model(**options).double().train()
        losses.append(model(pixel_values.double(), labels=labels).loss)
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gathered == [1]
    assert_close(*losses, rtol=1e-12, atol=1e-12)
    assert_close(*gradients, rtol=1e-9, atol=1e-12)


def hook(model):
    model.model.decoder.layers[0].register_forward_hook(lambda *_: None)


def pre_hook(model):
    model.model.decoder.attention.query.register_forward_pre_hook(lambda *_: None)


def backward_hook(model):
    model.model.decoder.attention.gate.register_full_backward_hook(lambda *_: None)


def replaced_forward(model):
    """As `accelerate` does for models on several devices."""
    score = model.model.decoder.attention.score
    score.forward = score.forward


def subclass(model):
    model.model.decoder.attention.__class__ = type("Other", (CnnRnnAttention,), {})


def layer_of_torch(model):
    layer = nn.LSTM(24, 14, batch_first=True)
    layer.load_state_dict(model.model.decoder.layers[0].state_dict())
    model.model.decoder.layers[0] = layer


def parametrization(model):
    torch.nn.utils.parametrize.register_parametrization(model.model.decoder.attention.query, "weight", nn.Identity())


@pytest.mark.parametrize(
    "change",
    [hook, pre_hook, backward_hook, replaced_forward, subclass, layer_of_torch, parametrization],
    ids=lambda change: change.__name__,
)
def test_layers_that_are_watched_or_changed_are_called(make_model, regions, labels, gathered, change):
    losses = []
    for is_changed in (False, True):
        model = make_model(attention_type="additive").train()
        if is_changed:
            change(model)
        losses.append(model(encoder_outputs=encoded(regions), labels=labels).loss)
        losses[-1].backward()
    assert gathered == [1]
    assert_close(*losses)


@pytest.mark.parametrize("mode", ["evaluation", "no gradient", "logits", "attentions", "hidden states"])
def test_only_training_steps_are_gathered(make_model, regions, labels, gathered, mode):
    model = make_model(attention_type="additive").train(mode != "evaluation")
    options = {
        "logits": {"skip_logits": False},
        "attentions": {"output_attentions": True},
        "hidden states": {"output_hidden_states": True},
    }.get(mode, {"skip_logits": True})
    with torch.set_grad_enabled(mode != "no gradient"):
        model(encoder_outputs=encoded(regions), labels=labels, **options)
    assert gathered == []


def test_masks_of_captions_are_read_in_training(any_model, pixel_values, labels):
    words = any_model.train().prepare_decoder_input_ids_from_labels(labels)
    losses = [
        any_model(pixel_values, labels=labels, decoder_attention_mask=mask).loss for mask in (None, (words != 0).long())
    ]
    assert_close(*losses)
