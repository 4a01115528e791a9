"""What the model learns: its loss, the gradients, what training moves and what it does not, gradient checkpointing."""

import warnings

import pytest
import torch
from support.tiny_models import TINY_CNNS, changed, encoded, snapshot
from torch import nn
from torch.testing import assert_close
from transformers import ConvNextConfig, set_seed

from modeling_cnnrnn import CnnRnnForConditionalGeneration
from modeling_cnnrnn.models.training_steps_cnnrnn import StepLinear


def log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Log-probability of the real tokens of `labels` and their number, token by token."""
    total, count = 0.0, 0
    for row, caption in zip(logits.flatten(0, -3), labels.flatten(0, -2).tolist(), strict=True):
        for scores, token in zip(row, caption, strict=True):
            if token not in (0, -100):
                total += (scores[token] - scores.logsumexp(dim=0)).item()
                count += 1
    return total, count


# --- The loss --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_loss_is_the_mean_over_real_tokens(any_model, pixel_values, labels):
    outputs = any_model(pixel_values, labels=labels)
    total, count = log_likelihood(outputs.logits, labels)
    assert count == 10  # one end token of each caption is among them
    assert outputs.loss.item() == pytest.approx(-total / count, rel=1e-5)


def test_the_decoder_reads_the_labels_one_step_later(tiny_model):
    labels = torch.tensor([[4, 9, 2, 0], [5, 2, -100, -100]])
    words = tiny_model.prepare_decoder_input_ids_from_labels(labels)
    assert words.tolist() == [[1, 4, 9, 2], [1, 5, 2, 0]]


@torch.no_grad()
def test_several_captions_of_an_image_are_separate_captions(any_model, pixel_values):
    labels = torch.randint(4, 20, (3, 5, 6))
    labels[..., -1] = 2
    together = any_model(pixel_values, labels=labels)
    apart = any_model(pixel_values.repeat_interleave(5, dim=0), labels=labels.flatten(0, 1))
    assert together.logits.shape == (3, 5, 6, 20)
    assert_close(together.logits.flatten(0, 1), apart.logits)
    assert_close(together.loss, apart.loss)


def test_captions_of_an_image_share_one_pass_of_the_cnn(any_model, pixel_values):
    batches = []
    any_model.get_encoder().cnn.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    any_model(pixel_values, labels=torch.full((3, 5, 6), 4))
    assert batches == [3]


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


@pytest.mark.parametrize("options", [{}, {"attention_type": "additive", "attention_regularization": 0.7}])
def test_accumulated_gradients_are_those_of_the_whole_batch(make_model, regions, labels, options):
    model = make_model(label_smoothing=0.1, **options).train()
    model(encoder_outputs=encoded(regions), labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    num_items = (labels != 0).sum()
    for rows in (slice(0, 2), slice(2, 3)):
        outputs = encoded(regions[rows])
        model(encoder_outputs=outputs, labels=labels[rows], num_items_in_batch=num_items).loss.backward()
    assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)


@torch.no_grad()
def test_label_smoothing_spreads_the_target_over_the_vocabulary(make_model, regions, labels):
    model = make_model(label_smoothing=0.2).train()
    outputs = model(encoder_outputs=encoded(regions), labels=labels, skip_logits=False)
    losses = []
    for row, caption in zip(outputs.logits, labels.tolist(), strict=True):
        for scores, token in zip(row.log_softmax(dim=-1), caption, strict=True):
            if token != 0:
                losses.append(-0.8 * scores[token] - 0.2 * scores.mean())
    assert_close(outputs.loss, torch.stack(losses).mean())


@torch.no_grad()
def test_doubly_stochastic_term_counts_the_words_of_a_caption_only(make_model, regions, labels):
    plain = make_model(attention_type="additive").train()
    model = make_model(attention_type="additive", attention_regularization=0.7).train()
    outputs = model(encoder_outputs=encoded(regions), labels=labels)
    words = model.prepare_decoder_input_ids_from_labels(labels)
    (attentions,) = plain(
        encoder_outputs=encoded(regions), decoder_input_ids=words, output_attentions=True
    ).cross_attentions

    penalty = 0.0
    lengths = (labels != 0).sum(dim=1).tolist()
    for caption, length in zip(attentions[:, 0], lengths, strict=True):
        penalty += length * ((1 - caption[:length].sum(dim=0)) ** 2).mean()
    expected = plain(encoder_outputs=encoded(regions), labels=labels).loss + 0.7 * penalty / sum(lengths)
    assert_close(outputs.loss, expected)


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


def own_words(model, regions, labels, probability: float, monkeypatch) -> torch.Tensor:
    """What the decoder reads in a training step with scheduled sampling."""
    seen = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda *args, **kwargs: seen.append(kwargs["decoder_input_ids"]) or forward(*args, **kwargs),
    )
    model(encoder_outputs=encoded(regions), labels=labels, scheduled_sampling_probability=probability)
    return seen[0]


@torch.no_grad()
def test_scheduled_sampling_draws_each_word_from_what_was_predicted_there(make_model, regions, labels, monkeypatch):
    model = make_model(attention_type="additive").train()
    words = own_words(model, regions.repeat(400, 1, 1), labels.repeat(400, 1), 1.0, monkeypatch)
    assert torch.equal(words[:, 0], torch.full((1200,), 1))
    is_padding = model.prepare_decoder_input_ids_from_labels(labels).repeat(400, 1) == 0
    assert (words[is_padding] == 0).all()
    first = words[::3, 1]  # after the start token, 400 times for the first image
    expected = (
        model.eval()(encoder_outputs=encoded(regions[:1]), decoder_input_ids=words[:1, :1]).logits[0, 0].softmax(dim=-1)
    )
    seen = torch.bincount(first, minlength=20) / 400
    assert (seen - expected).abs().max() < 4 * (expected * (1 - expected) / 400).sqrt().max()


@torch.no_grad()
def test_scheduled_sampling_goes_on_from_the_words_it_has_drawn(any_model, regions, monkeypatch):
    any_model.lm_head.weight *= 1e7  # it always draws the likeliest word
    any_model.generation_config.update(suppress_tokens=None, eos_token_id=None)
    written = any_model.generate(encoder_outputs=encoded(regions), max_new_tokens=5)
    words = own_words(any_model.train(), regions, torch.full((3, 6), 5), 1.0, monkeypatch)
    assert torch.equal(words, written)


@torch.no_grad()
def test_scheduled_sampling_replaces_the_share_it_was_asked_for(tiny_model, regions, monkeypatch):
    labels = torch.full((300, 12), 5)
    tiny_model.lm_head.bias[7] = 100.0  # the only word it writes
    words = own_words(tiny_model.train(), regions.repeat(100, 1, 1), labels, 0.3, monkeypatch)
    assert set(words[:, 1:].unique().tolist()) == {5, 7}
    assert (words[:, 1:] == 7).float().mean().item() == pytest.approx(0.3, abs=0.03)


@torch.no_grad()
def test_scheduled_sampling_is_off_in_evaluation(tiny_model, regions, labels):
    model = tiny_model.eval()
    plain = model(encoder_outputs=encoded(regions), labels=labels).loss
    assert torch.equal(
        model(encoder_outputs=encoded(regions), labels=labels, scheduled_sampling_probability=1.0).loss, plain
    )


@torch.no_grad()
def test_caption_weights_multiply_the_log_likelihood_of_each_caption(make_model, regions):
    labels = torch.tensor([[[4, 9, 2], [5, 2, 0]], [[7, 2, 0], [2, 0, 0]], [[6, 6, 2], [8, 2, 0]]])
    weights = torch.tensor([[1.5, -0.5], [0.0, 2.0], [-1.0, 0.3]])
    # neither label smoothing nor the attention term belongs to a reward
    model = make_model(attention_type="additive", attention_regularization=0.7, label_smoothing=0.2).train()
    outputs = model(encoder_outputs=encoded(regions), labels=labels, caption_weights=weights, skip_logits=False)
    expected = sum(
        -weight * log_likelihood(logits[None, None], caption[None, None])[0]
        for logits, caption, weight in zip(
            outputs.logits.flatten(0, 1), labels.flatten(0, 1), weights.flatten().tolist(), strict=True
        )
    )
    assert outputs.loss.item() == pytest.approx(expected / (labels != 0).sum().item(), rel=1e-5)
    assert_close(model(encoder_outputs=encoded(regions), labels=labels, caption_weights=weights).loss, outputs.loss)


def test_a_weight_is_needed_for_each_caption(tiny_model, regions, labels):
    with pytest.raises(ValueError, match=r"`caption_weights` has shape \(2,\) for 3 captions"):
        tiny_model(encoder_outputs=encoded(regions), labels=labels, caption_weights=torch.ones(2))


@torch.no_grad()
def test_loss_in_evaluation_is_the_logarithm_of_the_perplexity(make_model, pixel_values, labels):
    model = make_model(attention_type="additive", attention_regularization=1.0, label_smoothing=0.3)
    outputs = model(pixel_values, labels=labels)
    total, count = log_likelihood(outputs.logits, labels)
    assert outputs.loss.item() == pytest.approx(-total / count, rel=1e-5)


@torch.no_grad()
def test_logits_are_left_out_in_training_only(tiny_model, pixel_values, labels):
    assert tiny_model(pixel_values, labels=labels).logits is not None
    assert tiny_model(pixel_values, labels=labels, skip_logits=True).logits is None
    tiny_model.train()
    assert tiny_model(pixel_values, labels=labels).logits is None
    assert tiny_model(pixel_values, labels=labels, skip_logits=False).logits is not None
    assert tiny_model(pixel_values, decoder_input_ids=labels).logits is not None


# --- Gradients and training ------------------------------------------------------------------------------------------


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


def train_a_little(model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(pixel_values, labels=labels)
        model.train()


def test_a_frozen_cnn_does_not_move_by_a_bit(tiny_model, pixel_values, labels):
    cnn = tiny_model.get_encoder().cnn
    tiny_model.freeze_encoder()
    before, projection = snapshot(cnn), snapshot(tiny_model.get_encoder().projection)
    train_a_little(tiny_model, pixel_values, labels)
    assert changed(before, cnn) == set()
    assert changed(projection, tiny_model.get_encoder().projection) == {"weight", "bias"}


def test_a_cnn_from_scratch_learns_its_statistics(tiny_model, pixel_values, labels):
    cnn = tiny_model.get_encoder().cnn
    before = snapshot(cnn)
    train_a_little(tiny_model, pixel_values, labels)
    assert changed(before, cnn) == set(before)


def test_a_finetuned_cnn_keeps_its_batch_norm(tiny_model, pixel_values, labels):
    cnn = tiny_model.get_encoder().cnn
    tiny_model.freeze_encoder()
    tiny_model.train()
    tiny_model.unfreeze_encoder()
    before = snapshot(cnn)
    train_a_little(tiny_model, pixel_values, labels)
    moved = changed(before, cnn)
    assert moved == {name for name in before if "normalization" not in name}
    assert any("convolution" in name for name in moved)


def test_a_frozen_cnn_gives_the_same_loss_in_training_and_evaluation(tiny_model, pixel_values, labels):
    tiny_model.freeze_encoder()
    losses = [tiny_model.train(mode)(pixel_values, labels=labels, skip_logits=False).loss for mode in (True, False)]
    assert torch.equal(*losses)


def test_a_frozen_cnn_drops_no_path(make_model, pixel_values):
    encoder = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], drop_path_rate=0.5)
    model = make_model(encoder=encoder.to_dict())
    model.train()
    model.freeze_encoder()
    features = [model.get_encoder().get_image_features(pixel_values)[0] for _ in range(8)]
    assert all(torch.equal(f, features[0]) for f in features)


def test_a_frozen_cnn_keeps_no_activations(tiny_model, pixel_values):
    encoder = tiny_model.train().get_encoder()
    assert encoder.get_image_features(pixel_values)[0].requires_grad
    tiny_model.freeze_encoder()
    assert not encoder.get_image_features(pixel_values)[0].requires_grad
    assert encoder(pixel_values).last_hidden_state.requires_grad  # the projection learns


def test_pixels_have_a_gradient_through_a_frozen_cnn(tiny_model, pixel_values, labels):
    tiny_model.freeze_encoder()
    tiny_model(pixel_values.requires_grad_(), labels=labels).loss.backward()  # what the sentence depends on
    assert pixel_values.grad.any()


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


# --- Gradient checkpointing ------------------------------------------------------------------------------------------


def checkpoint_activations(model: CnnRnnForConditionalGeneration, *args):
    """`gradient_checkpointing_enable` has another name in the newest releases, and warns there."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(*args)


def count_runs(model: CnnRnnForConditionalGeneration) -> list[int]:
    """A list that grows by one each time the first block of the CNN is run."""
    block = next(m for m in model.get_encoder().cnn.modules() if isinstance(m, nn.ModuleList))[0]
    convolution = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
    runs: list[int] = []
    convolution.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
@pytest.mark.parametrize("cnn", ["resnet", "convnext", "efficientnet", "mobilenet_v2", "bit"])
def test_gradient_checkpointing_changes_only_the_memory(make_model, pixel_values, labels, cnn, reentrant):
    def step(checkpointing):
        model = make_model(encoder=TINY_CNNS[cnn].to_dict()).train()
        if checkpointing:
            checkpoint_activations(model, {"use_reentrant": reentrant})
        runs = count_runs(model)
        set_seed(0)  # some CNNs drop whole paths
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters()}, snapshot(model), len(runs)

    loss, gradients, state, runs = step(checkpointing=False)
    checkpointed_loss, checkpointed_gradients, checkpointed_state, checkpointed_runs = step(checkpointing=True)
    assert torch.equal(loss, checkpointed_loss)
    assert_close(checkpointed_gradients, gradients)
    assert_close(checkpointed_state, state, rtol=0, atol=0)  # the statistics of BatchNorm among them
    assert (runs, checkpointed_runs) == (1, 2)


def test_gradient_checkpointing_can_be_switched_off(tiny_model, pixel_values, labels):
    checkpoint_activations(tiny_model.train())
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        tiny_model.gradient_checkpointing_disable()
    runs = count_runs(tiny_model)
    tiny_model(pixel_values, labels=labels).loss.backward()
    assert len(runs) == 1


def test_gradient_checkpointing_leaves_the_cnn_as_it_was(tiny_model, pixel_values, labels):
    checkpoint_activations(tiny_model.train())
    tiny_model(pixel_values, labels=labels).loss.backward()
    cnn = tiny_model.get_encoder().cnn
    assert all("forward" not in vars(module) for module in cnn.modules())
    norms = [module for module in cnn.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, int(norm.num_batches_tracked)) for norm in norms} == {(0.1, 1)}


def test_gradient_checkpointing_of_a_frozen_cnn_computes_it_once(tiny_model, pixel_values, labels):
    checkpoint_activations(tiny_model.train())
    tiny_model.freeze_encoder()
    runs = count_runs(tiny_model)
    tiny_model(pixel_values, labels=labels).loss.backward()
    assert len(runs) == 1


def test_gradient_checkpointing_goes_by_its_old_name_too(tiny_model, pixel_values, labels):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        tiny_model.train().gradient_checkpointing_enable()
    runs = count_runs(tiny_model)
    tiny_model(pixel_values, labels=labels).loss.backward()
    assert len(runs) == 2
