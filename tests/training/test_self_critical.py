"""Self-critical training: the gradient is that of the expected reward, and a reward is that of whole sentences."""

import itertools

import numpy as np
import pytest
import torch

from modeling_cnnrnn.metrics import CiderD, DocumentFrequency
from modeling_cnnrnn.models.tokenization_cnnrnn import build_tokenizer
from modeling_cnnrnn.training.self_critical import SelfCritical, encode_references, turn_off_dropout


IGNORE_INDEX, PAD, BOS, END, UNKNOWN = -100, 0, 1, 2, 3

# of three words
CAPTIONS = [["a b", "b a"], ["b c", "c"], ["c a"], ["c c"]]


@pytest.fixture
def tokenizer():
    return build_tokenizer(CAPTIONS, min_frequency=1)


@pytest.fixture
def make_writer(make_model, tokenizer):
    """A captioner of the small vocabulary that never writes padding, which is never learned."""

    def make(**options):
        model = make_model(vocab_size=len(tokenizer), **options)
        model.generation_config.max_length = 8
        with torch.no_grad():
            model.lm_head.bias[[PAD, BOS]] = -1e4
        return model

    return make


@pytest.fixture
def batch(make_config):
    """What the CNN sees in four images, and a caption of each."""
    features = torch.randn(4, 6, 16)
    return {"image_features": features, "labels": torch.tensor([[[4, 5, END]]] * 4)}


def all_sentences(words, length):
    """Each sentence of at most `length` tokens, as labels: those that end, and those that are cut off."""
    for size in range(length):
        for sentence in itertools.product(words, repeat=size):
            yield [*sentence, END] + [IGNORE_INDEX] * (length - size - 1)
    yield from map(list, itertools.product(words, repeat=length))


def gradient(model):
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


@pytest.mark.parametrize(("baseline", "attention_type"), [("leave_one_out", "none"), ("greedy", "additive")])
def test_the_gradient_is_that_of_the_expected_reward(make_writer, tokenizer, baseline, attention_type):
    model = make_writer(attention_type=attention_type)
    # what would change the samples, and must not
    model.generation_config.update(suppress_tokens=[UNKNOWN], top_k=2, temperature=0.5, repetition_penalty=1.5)
    self_critical = SelfCritical(tokenizer, CAPTIONS, bleu_weight=2.0, baseline=baseline, max_length=4)
    features = torch.randn(1, 6, 16)

    # the expected reward, over every sentence there is
    sentences = torch.tensor(list(all_sentences([UNKNOWN, *range(4, len(tokenizer))], 3)))
    rewards = self_critical.score([[np.array([i for i in s if i != IGNORE_INDEX]) for s in sentences.tolist()]], [0])[0]
    logits = model(image_features=features, labels=sentences[None]).logits[0]
    token_log_probs = logits.log_softmax(-1).gather(2, sentences.clamp(min=0)[..., None]).squeeze(-1)
    probabilities = (token_log_probs * (sentences != IGNORE_INDEX)).sum(-1).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    (probabilities @ torch.tensor(rewards, dtype=torch.float32)).neg().backward()
    expected = gradient(model)

    num_images, num_calls = 2000, 2
    batch = {"image_features": features.expand(num_images, -1, -1), "labels": torch.full((num_images, 1, 1), END)}
    mean_reward = 0.0
    for _ in range(num_calls):
        sampled, statistics = self_critical.sample(model, batch, [0] * num_images)
        num_samples = num_calls * sampled["labels"].shape[:2].numel()
        model(**sampled, num_items_in_batch=num_samples).loss.backward()
        mean_reward += statistics["reward"] / num_calls
    assert mean_reward == pytest.approx(float(probabilities.detach().numpy() @ rewards), rel=0.03)
    assert (gradient(model) - expected).norm() < 0.08 * expected.norm()


def test_a_sample_is_compared_with_the_other_samples_alone(make_writer, tokenizer, batch):
    self_critical = SelfCritical(tokenizer, CAPTIONS, num_samples=3)
    sampled, statistics = self_critical.sample(make_writer(), batch, [0, 1, 2, 3])
    samples = [[ids[ids != IGNORE_INDEX].numpy() for ids in row] for row in sampled["labels"]]
    rewards = torch.tensor(self_critical.score(samples, [0, 1, 2, 3]), dtype=torch.float32)
    others = torch.stack([rewards[:, [1, 2]], rewards[:, [0, 2]], rewards[:, [0, 1]]], dim=1).mean(-1)
    assert rewards.std() > 0
    torch.testing.assert_close(sampled["caption_weights"], rewards - others)
    assert statistics["reward"] == pytest.approx(statistics["baseline"]) == pytest.approx(rewards.mean().item())


def test_the_greedy_baseline_is_what_the_model_writes_when_used(make_writer, tokenizer, batch):
    model = make_writer(dropout=0.5, feature_dropout=0.5)
    model.generation_config.num_beams = 3
    model.train()
    self_critical = SelfCritical(tokenizer, CAPTIONS, num_samples=1, baseline="greedy")
    sampled, statistics = self_critical.sample(model, batch, [0, 1, 2, 3])
    assert model.training
    assert model.model.decoder.dropout.training
    sequences = model.eval().generate(image_features=batch["image_features"], num_beams=1)[:, 1:]
    greedy = [[ids[: ids.tolist().index(END) + 1].numpy() if END in ids else ids.numpy()] for ids in sequences]
    baseline = self_critical.score(greedy, [0, 1, 2, 3])
    samples = [[ids[ids != IGNORE_INDEX].numpy() for ids in row] for row in sampled["labels"]]
    rewards = self_critical.score(samples, [0, 1, 2, 3])
    np.testing.assert_allclose(sampled["caption_weights"], rewards - baseline, atol=1e-5)
    assert statistics["baseline"] == pytest.approx(baseline.mean())


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(make_writer, tokenizer, batch, baseline, training):
    model = make_writer().train(training)
    generation_config = model.generation_config.to_dict()
    SelfCritical(tokenizer, CAPTIONS, baseline=baseline).sample(model, batch, [0, 1, 2, 3])
    assert model.training == training
    assert model.generation_config.to_dict() == generation_config


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_a_sentence_that_breaks_off_gets_less_than_a_whole_one(tokenizer, weights):
    references = [["a b c a b"], ["c b a"], ["b b a"]]
    self_critical = SelfCritical(tokenizer, references, *weights)
    words = tokenizer("a b c a b", add_special_tokens=False)["input_ids"]
    whole, broken_off = self_critical.score([[np.array([*words, END]), np.array(words)]], [0])[0]
    assert whole == pytest.approx(10 * weights[0] + weights[1])
    assert broken_off < whole


def test_the_reward_is_the_weighted_sum_of_cider_and_bleu(tokenizer):
    sentences = [[np.array([4, 5, END]), np.array([5, 4, 6, 5, END])], [np.array([6, END]), np.array([END])]]
    alone = [SelfCritical(tokenizer, CAPTIONS, *weights).score(sentences, [0, 2]) for weights in ((1, 0), (0, 1))]
    both = SelfCritical(tokenizer, CAPTIONS, 0.5, 3.0).score(sentences, [0, 2])
    assert alone[0].std() > 0
    assert alone[1].std() > 0
    np.testing.assert_allclose(both, 0.5 * alone[0] + 3 * alone[1])


def test_the_reward_of_words_in_another_order_is_low(tokenizer):
    self_critical = SelfCritical(tokenizer, [["a b c a b"], ["c"]], cider_weight=0.0, bleu_weight=1.0)
    words = tokenizer("a b c a b", add_special_tokens=False)["input_ids"]
    assert self_critical.score([[np.array([END, *reversed(words)])]], [0])[0, 0] < 0.01


def test_samples_hold_one_end_token_and_nothing_behind_it(make_writer, tokenizer, batch):
    sampled, statistics = SelfCritical(tokenizer, CAPTIONS, num_samples=20).sample(make_writer(), batch, [0, 1, 2, 3])
    captions = sampled["labels"].flatten(0, 1)
    num_ended = 0
    for caption in captions.tolist():
        if END in caption:
            num_ended += 1
            end = caption.index(END)
            assert set(caption[end + 1 :]) <= {IGNORE_INDEX}
            assert IGNORE_INDEX not in caption[:end]
        else:  # it reached the limit of eight tokens, of which the first is the start token, and is given no end
            assert len(caption) == 7
            assert IGNORE_INDEX not in caption
    assert 0 < num_ended < len(captions)
    assert statistics["without_end"] == pytest.approx(1 - num_ended / len(captions))
    assert statistics["length"] == pytest.approx(
        ((captions != IGNORE_INDEX) & (captions != END)).sum().item() / len(captions)
    )


@pytest.mark.parametrize("injection", ["first_token", "initial_state", "bias_every_step"])
def test_samples_go_on_about_their_own_image_when_others_have_ended(make_writer, tokenizer, injection):
    features = torch.randn(12, 6, 16)
    model = make_writer(attention_type="additive", image_injection=injection, initializer_range=1.0)
    with torch.no_grad():
        for parameter in model.lm_head.parameters():
            parameter *= 1e3  # so sure of each word that chance has no say
    expected = model.generate(image_features=features, num_beams=1, suppress_tokens=[PAD, BOS])[:, 1:]
    labels = torch.full((12, 1, 1), END)
    references = [["a b"]] * 12
    sampled, _ = SelfCritical(tokenizer, references).sample(
        model, {"image_features": features, "labels": labels}, range(12)
    )
    ends = (expected == END).long().cumsum(dim=1) - (expected == END).long() > 0
    assert len(set((~ends).sum(dim=1).tolist())) > 1
    for sample in sampled["labels"].unbind(1):
        assert torch.equal(sample, expected.masked_fill(ends, IGNORE_INDEX))


def test_without_dropout_what_is_drawn_is_what_is_learned(make_writer, batch):
    options = {"dropout": 0.5, "embedding_dropout": 0.5, "feature_dropout": 0.5}
    model = make_writer(**options).train()
    losses = [model(**batch).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]
    turn_off_dropout(model)
    assert model(**batch).loss == model(**batch).loss == model.eval()(**batch).loss


def test_statistics_count_sentences_that_end_badly(make_writer, tokenizer, batch):
    model = make_writer()
    with torch.no_grad():
        model.lm_head.bias[[PAD, BOS, UNKNOWN, END]] = -1e4
        model.lm_head.bias[tokenizer.convert_tokens_to_ids("a")] = 1e4
    _, statistics = SelfCritical(tokenizer, CAPTIONS).sample(model, batch, [0, 1, 2, 3])
    assert statistics["unfinished"] == statistics["without_end"] == 1
    assert statistics["length"] == 7


@pytest.mark.parametrize("baseline", ["leave_one_out", "greedy"])
def test_equal_rewards_teach_nothing(make_writer, tokenizer, batch, baseline):
    self_critical = SelfCritical(tokenizer, CAPTIONS, baseline=baseline)
    self_critical.score = lambda candidates, rows: np.full((len(rows), len(candidates[0])), 0.7)
    sampled, _ = self_critical.sample(make_writer(), batch, [0, 1, 2, 3])
    assert sampled["caption_weights"].abs().max() < 1e-6


def test_images_without_labels_are_not_learned_from(make_writer, tokenizer, batch):
    batch["labels"][1] = IGNORE_INDEX  # as of an image that could not be read
    references = [*CAPTIONS[:3], [""]]  # and one whose caption has no word
    self_critical = SelfCritical(tokenizer, references)
    sampled, statistics = self_critical.sample(make_writer(), batch, [0, 1, 2, 3])
    is_learned = (sampled["labels"] != IGNORE_INDEX).any(-1)
    assert is_learned[[0, 2]].all()
    assert not is_learned[[1, 3]].any()
    assert not sampled["caption_weights"][[1, 3]].any()
    samples = [[ids[ids != IGNORE_INDEX].numpy() for ids in sampled["labels"][image]] for image in (0, 2)]
    assert statistics["reward"] == pytest.approx(self_critical.score(samples, [0, 2]).mean())
    batch["labels"][:] = IGNORE_INDEX
    sampled, statistics = self_critical.sample(make_writer(), batch, [0, 1, 2, 3])
    assert not (sampled["labels"] != IGNORE_INDEX).any()
    assert statistics["reward"] == statistics["baseline"] == 0


def test_a_sampled_unknown_word_matches_none_of_the_references():
    tokenizer = build_tokenizer(["a dog", "a cat", "a dog and a cat"], min_frequency=2)
    references = [["a zebra", "a Zebra"], ["a dog"], ["a yak"]]
    encoded = encode_references(tokenizer, references)
    (zebra, same), (yak,) = encoded[0], encoded[2]
    assert zebra.tolist() == same.tolist()
    assert zebra[0] == tokenizer.convert_tokens_to_ids("a")
    assert zebra[1] >= len(tokenizer)
    assert zebra[1] != yak[1]
    self_critical = SelfCritical(tokenizer, references)
    assert self_critical.score([[np.array([UNKNOWN]), np.array([zebra[0], UNKNOWN, END])]], [0]).max() == 0
    # the word counts in its reference all the same: what lacks it is not the whole caption
    self_critical = SelfCritical(tokenizer, [["dog zebra dog"], ["a cat"], ["a yak"]])
    whole = encode_references(tokenizer, [["dog zebra dog"]])[0][0]
    known = whole[whole < len(tokenizer)]
    assert self_critical.score([[whole, known]], [0])[0] == pytest.approx([10, 4], abs=1.5)


def test_document_frequencies_are_of_the_references_and_can_be_kept(tokenizer, tmp_path):
    self_critical = SelfCritical(tokenizer, CAPTIONS)
    assert self_critical.document_frequency.num_images == len(CAPTIONS)
    self_critical.document_frequency.save(tmp_path / "document_frequency.safetensors")
    loaded = DocumentFrequency.load(tmp_path / "document_frequency.safetensors")
    # on a part of the images with the frequencies of all, a reward is what it was
    part = SelfCritical(tokenizer, CAPTIONS[1:2], document_frequency=loaded)
    sentences = [[np.array([5, 6, END]), np.array([6, END]), np.array([4, END])]]
    expected = CiderD(self_critical.document_frequency).score(sentences[0], [self_critical.references[1]])
    assert expected.std() > 0
    np.testing.assert_array_equal(part.score(sentences, [0])[0], expected)
    np.testing.assert_array_equal(self_critical.score(sentences, [1])[0], expected)


def test_captions_of_the_batch_are_learned_beside_the_samples(make_writer, tokenizer, batch):
    model = make_writer().train()
    labels = batch["labels"] = torch.tensor([[[4, 5, END], [6, END, IGNORE_INDEX]]] * 4)
    sampled, _ = SelfCritical(tokenizer, CAPTIONS, cross_entropy_weight=0.3).sample(model, batch, [0, 1, 2, 3])
    torch.testing.assert_close(sampled["labels"][:, 5:, :3], labels)
    loss = model(**sampled, num_items_in_batch=1).loss
    samples = sampled | {name: sampled[name][:, :5] for name in ("labels", "caption_weights")}
    expected = model(**samples, num_items_in_batch=1).loss + 0.3 * model(**batch, num_items_in_batch=1).loss
    torch.testing.assert_close(loss, expected)


def test_a_frozen_cnn_looks_once(make_writer, tokenizer, pixel_values):
    model = make_writer().train()
    model.freeze_encoder()
    looks = []
    model.get_encoder().cnn.register_forward_hook(lambda *_: looks.append(1))
    batch = {"pixel_values": pixel_values, "labels": torch.full((3, 1, 1), END)}
    sampled, _ = SelfCritical(tokenizer, CAPTIONS, baseline="greedy").sample(model, batch, [0, 1, 2])
    model(**sampled).loss.backward()
    assert len(looks) == 1


def test_a_trained_cnn_receives_a_gradient(make_writer, tokenizer, pixel_values):
    model = make_writer().train()
    batch = {"pixel_values": pixel_values, "labels": torch.full((3, 1, 1), END)}
    sampled, _ = SelfCritical(tokenizer, CAPTIONS).sample(model, batch, [0, 1, 2])
    model(**sampled).loss.backward()
    assert all(parameter.grad is not None for parameter in model.get_encoder().cnn.parameters())


def test_training_raises_the_reward(make_writer, tokenizer, batch):
    model = make_writer(hidden_size=32).train()
    self_critical = SelfCritical(tokenizer, CAPTIONS, num_samples=8)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    rewards = []
    for _ in range(40):
        sampled, statistics = self_critical.sample(model, batch, [0, 1, 2, 3])
        optimizer.zero_grad()
        model(**sampled).loss.backward()
        optimizer.step()
        rewards.append(statistics["reward"])
    assert np.mean(rewards[-5:]) > 2 * np.mean(rewards[:5])
    assert statistics["without_end"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "`num_samples` is 1: pass 2 or more"),
        ({"num_samples": 0, "baseline": "greedy"}, "`num_samples` is 0: pass 1 or more"),
        ({"baseline": "mean"}, "`baseline` is 'mean'"),
        ({"cider_weight": 0.0}, "there is no reward"),
        ({"bleu_weight": -1.0}, "`bleu_weight` is -1.0"),
        ({"references": [[], [""]]}, "`references` holds no caption"),
    ],
)
def test_what_makes_no_sense_is_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        SelfCritical(tokenizer, **({"references": CAPTIONS} | options))


def test_each_image_needs_its_row(make_writer, tokenizer, batch):
    with pytest.raises(ValueError, match="`rows` names 3 images and `batch` holds 4"):
        SelfCritical(tokenizer, CAPTIONS).sample(make_writer(), batch, [0, 1, 2])
