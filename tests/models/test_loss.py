"""The loss: cross-entropy, label smoothing, the attention term, caption weights, scheduled sampling."""

import pytest
import torch
import torch.nn.functional as F
from support.tiny_models import encoded
from torch.testing import assert_close

from modeling_cnnrnn.models.loss_cnnrnn import cross_entropy_


def log_likelihood(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Log-probability of the real tokens of `labels` and their number, token by token."""
    total, count = 0.0, 0
    for row, caption in zip(logits.flatten(0, -3), labels.flatten(0, -2).tolist(), strict=True):
        for scores, token in zip(row, caption, strict=True):
            if token not in (0, -100):
                total += (scores[token] - scores.logsumexp(dim=0)).item()
                count += 1
    return total, count


@torch.no_grad()
def test_loss_is_the_mean_over_real_tokens(any_model, pixel_values, labels):
    outputs = any_model(pixel_values, labels=labels)
    total, count = log_likelihood(outputs.logits, labels)
    assert count == 10  # one end token of each caption is among them
    assert outputs.loss.item() == pytest.approx(-total / count, rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_in_place_is_that_of_torch(label_smoothing):
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(9, (6,)), torch.randn(6, dtype=torch.float64)
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    losses = cross_entropy_(logits * 1, targets, label_smoothing)
    assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(loss @ weights, logits)[0] for loss in (losses, expected))
    assert_close(*gradients, rtol=1e-12, atol=1e-12)


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


@torch.no_grad()
def test_padding_changes_neither_loss_nor_logits(any_model, pixel_values, labels):
    padded = F.pad(labels, (0, 4))
    short, long = any_model(pixel_values, labels=labels), any_model(pixel_values, labels=padded)
    assert_close(short.loss, long.loss)
    assert_close(short.logits, long.logits[:, : labels.shape[1]])
    ignored = any_model(pixel_values, labels=padded.masked_fill(padded == 0, -100))
    assert_close(short.loss, ignored.loss)


def test_vocabulary_is_computed_at_real_tokens_only(tiny_model, pixel_values, labels):
    rows = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
    tiny_model.train()(pixel_values, labels=labels)
    assert rows == [int((labels != 0).sum())]


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
