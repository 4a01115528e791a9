"""The captioner's second opinion on the first results of an alignment."""

import numpy as np
import pytest
import torch

from modeling_cnnrnn.data.batching import CaptionDataset
from modeling_cnnrnn.evaluation.alignment_scores import flat_metrics
from modeling_cnnrnn.evaluation.reranking import caption_log_probs, first_of, reranked_metrics


def test_captions_are_compared_with_what_the_mean_image_makes_of_them(pictures, processor, make_model):
    captioner = make_model(vocab_size=len(processor.tokenizer))
    dataset = CaptionDataset(pictures, processor)
    texts = [row[0] for row in pictures["captions"][:3]]
    pairs = np.array([[True, False, True], [True, True, False]])
    found = caption_log_probs(captioner, dataset, [4, 7], texts, pairs)
    regions = [
        captioner.get_encoder()(pixel_values=dataset[row]["pixel_values"][None]).last_hidden_state for row in (4, 7)
    ]
    for image, caption in np.argwhere(pairs):
        labels = torch.tensor(processor.encode_captions([texts[caption]]))
        losses = [
            captioner(encoder_outputs=(state,), labels=labels).loss.item()
            for state in (regions[image], sum(regions) / 2)
        ]
        assert found[image, caption] == pytest.approx((losses[1] - losses[0]) * labels.shape[1], abs=1e-4)
    assert not found[~pairs].any()


def test_the_first_results_alone_change_places():
    rng = np.random.default_rng(0)
    scores, opinion = rng.normal(size=(20, 40)), rng.normal(size=(20, 40))
    counts = [2] * 20
    plain = flat_metrics(scores, counts)
    plain.pop("rsum")
    assert reranked_metrics(scores, opinion, counts, weights=(0.0, 0.0), number=5) == plain
    marks = first_of(scores, 5)
    assert (marks["image_to_text"].sum(axis=1) == 5).all()
    assert (marks["text_to_image"].sum(axis=0) == 5).all()
    own = np.repeat(np.arange(20), 2)
    measured = reranked_metrics(scores, opinion, counts, weights=(0.0, 100.0), number=5)
    assert {name: value for name, value in measured.items() if "image_to_text" in name}.items() <= plain.items()
    for caption in range(40):  # by hand: the five best images, in the order of the captioner
        best = np.argsort(-scores[:, caption])[:5]
        order = [*best[np.argsort(-(scores + 100 * opinion)[best, caption])], *np.argsort(-scores[:, caption])[5:]]
        opinion[:, caption] = np.argsort(order)  # of each image its rank
    ranks = opinion[own, range(40)]
    assert measured["text_to_image_R@5"] == pytest.approx(100 * np.mean(ranks < 5))
    assert measured["text_to_image_R@1"] == pytest.approx(100 * np.mean(ranks < 1))
    assert measured["text_to_image_R@10"] == pytest.approx(plain["text_to_image_R@10"])
    with pytest.raises(ValueError, match="pass two numbers"):
        reranked_metrics(scores, opinion, counts, weights=[0.1])
