"""Learning: gradients, reproducible runs, captions learned by heart, autocast and compilers."""

import pytest
import torch
from support.tiny_models import changed, encoded, snapshot, train_a_little
from torch.testing import assert_close
from transformers import set_seed


def test_gradient_of_shared_captions_is_the_sum(any_model, pixel_values):
    labels = torch.randint(4, 20, (3, 2, 6))
    gradients = []
    for images, captions in (
        (pixel_values, labels),
        (pixel_values.repeat_interleave(2, dim=0), labels.flatten(0, 1)),
    ):
        any_model.zero_grad()
        any_model(images, labels=captions).loss.backward()
        gradients.append(any_model.get_encoder().cnn.embedder.embedder.convolution.weight.grad.clone())
    assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_finite_differences(make_model, decoder_options, regions, labels):
    regularization = 0.5 if decoder_options["attention_type"] == "additive" else 0.0
    model = make_model(label_smoothing=0.1, attention_regularization=regularization, **decoder_options)
    model, regions = model.double().train(), regions[:, :4].double().requires_grad_()
    parameters = [*model.model.decoder.parameters(), *model.lm_head.parameters()]
    assert torch.autograd.gradcheck(
        lambda regions, *_: model(encoder_outputs=encoded(regions), labels=labels).loss,
        (regions, *parameters),
        fast_mode=True,
    )


def test_every_parameter_learns(any_model, pixel_values, labels):
    any_model.train()(pixel_values, labels=labels).loss.backward()
    assert [name for name, p in any_model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    "options",
    [
        {"image_injection": "first_token"},
        {"image_injection": "initial_state", "attention_type": "additive", "rnn_type": "gru"},
    ],
    ids=["lstm", "gru-attention"],
)
def test_ten_images_are_learned_by_heart(make_model, options):
    model = make_model(hidden_size=32, initializer_range=0.1, **options).train()
    pixel_values = torch.randn(10, 3, 32, 32)
    labels = torch.randint(4, 20, (10, 6))
    labels[:, -1] = 2
    labels[:5, 3:] = torch.tensor([2, 0, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = model(pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02

    model.get_encoder().cnn.train()  # statistics of this one batch, as learned
    model.model.decoder.eval()
    captions = model.generate(pixel_values, max_new_tokens=6)[:, 1:]
    assert torch.equal(captions, labels)


@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_the_same_seed_is_the_same_run(make_model, pixel_values, labels, attention_type):
    def run(seed):
        model = make_model(attention_type=attention_type, num_hidden_layers=2, dropout=0.5, feature_dropout=0.2)
        set_seed(seed)
        train_a_little(model, pixel_values, labels)
        return model

    first = snapshot(run(1))
    assert changed(first, run(1)) == set()
    assert changed(first, run(2)) != set()


def test_dropout_acts_in_training_only(make_model, pixel_values, labels):
    for option in ("dropout", "embedding_dropout", "feature_dropout"):
        model = make_model(**{option: 0.5})
        model.freeze_encoder()
        losses = [model(pixel_values, labels=labels).loss for _ in range(2)]
        assert torch.equal(*losses)
        losses = [model.train()(pixel_values, labels=labels).loss for _ in range(2)]
        assert not torch.equal(*losses), option


def test_autocast_trains(make_model, pixel_values, labels):
    for attention_type in ("none", "additive"):
        model = make_model(attention_type=attention_type).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoder_is_the_same(make_model, regions, labels):
    model = make_model(attention_type="additive")
    compiled = torch.compile(model, backend="eager")
    inputs = {"encoder_outputs": encoded(regions), "labels": labels[:, :3]}
    assert_close(compiled(**inputs).loss, model(**inputs).loss)


@pytest.mark.slow
@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_compiled_forward_and_gradients_are_the_same(make_model, pixel_values, labels, attention_type):
    losses, gradients = [], []
    for backend in (None, "aot_eager"):
        model = make_model(attention_type=attention_type).train()
        forward = model if backend is None else torch.compile(model, backend=backend)
        losses.append(forward(pixel_values, labels=labels).loss)
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(*losses)
    assert_close(*gradients, rtol=1e-4, atol=1e-5)
