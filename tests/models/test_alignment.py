"""The alignment of regions and words: scores, losses, invariances, saving."""

import itertools
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from PIL import Image
from support import hub_user
from support.local_hub import LocalHub
from support.repositories import fork_jobs
from support.tiny_models import changed, snapshot
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

from modeling_cnnrnn import (
    CnnRnnAlignmentConfig,
    CnnRnnAlignmentModel,
    CnnRnnAlignmentProcessor,
    CnnRnnForImageTextRetrieval,
)
from modeling_cnnrnn.models.configuration_alignment_cnnrnn import PAPER
from modeling_cnnrnn.models.loss_alignment_cnnrnn import contrastive_loss
from modeling_cnnrnn.models.similarity_cnnrnn import score_sentences


RNN_TYPES = ["gru", "lstm", "rnn_relu", "window", "none"]
SCORES = [
    {"score_type": "max"},
    {"score_type": "max", "normalize_embeddings": False, "word_reduction": "sum", "add_pooled_score": False},
    {"score_type": "attention"},
    {"score_type": "pooled"},
]


@pytest.fixture
def make_alignment(tiny_encoder_config):
    """`make_alignment(rnn_type="gru", ...)`: a tiny model in evaluation mode, the same at every call."""

    def make(**options) -> CnnRnnForImageTextRetrieval:
        torch.manual_seed(0)
        # all sizes differ, or a transposed matrix would go unnoticed
        defaults = {"vocab_size": 20, "hidden_size": 14, "embedding_size": 12, "word_embedding_size": 10}
        defaults |= {"initializer_range": 0.5, "encoder": tiny_encoder_config.to_dict()}
        return CnnRnnForImageTextRetrieval(CnnRnnAlignmentConfig(**(defaults | options))).eval()

    return make


@pytest.fixture(params=RNN_TYPES)
def any_alignment(request, make_alignment) -> CnnRnnForImageTextRetrieval:
    return make_alignment(rnn_type=request.param, add_word_skip=request.param == "gru")


@pytest.fixture
def alignment_processor(tiny_processor) -> CnnRnnAlignmentProcessor:
    return CnnRnnAlignmentProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)


@pytest.fixture
def words() -> torch.Tensor:
    """Three sentences of different lengths, with their beginnings and ends."""
    return torch.tensor([[4, 9, 13, 7, 2], [1, 5, 11, 2, 0], [19, 0, 0, 0, 0]])


@torch.no_grad()
@pytest.mark.parametrize("options", SCORES, ids=str)
def test_the_fused_scores_are_those_of_a_double_loop(make_alignment, pixel_values, words, options):
    model = make_alignment(**options)
    config = model.config
    boxes = [torch.tensor([[0, 0, 0.5, 1.0], [0.2, 0.1, 0.9, 0.4]])[: 1 + i % 2] for i in range(3)]
    images, texts = model.get_image_features(pixel_values, boxes=boxes), model.get_text_features(words)
    scores = model.similarity(images, texts)
    for k, n in itertools.product(range(3), range(3)):
        regions = images.last_hidden_state[k][images.region_mask[k]]
        fits = []
        for word in texts.last_hidden_state[n][texts.word_mask[n]]:
            products = torch.stack([word @ region for region in regions])
            if config.score_type == "attention":
                mixture = sum(a * v for a, v in zip((9.0 * products).softmax(0), regions, strict=True))
                fits.append(mixture @ word / mixture.norm())
            else:
                fits.append(products.max())
        total = sum(fits) / (len(fits) if config.word_reduction == "mean" else 1)
        pooled = torch.cosine_similarity(images.pooler_output[k], texts.pooler_output[n], dim=0)
        if config.score_type == "pooled":
            total = pooled
        elif config.add_pooled_score:
            total = total + pooled
        assert_close(scores[k, n], total)


@pytest.mark.parametrize("attention_sharpness", [None, 9.0])
@pytest.mark.parametrize("max_products", [1, 40, 200])
def test_scores_in_parts_are_the_same_with_the_same_gradients(max_products, attention_sharpness):
    regions, words = torch.randn(5, 4, 6, dtype=torch.float64), torch.randn(7, 3, 6, dtype=torch.float64)
    word_mask = torch.arange(3) < torch.randint(1, 4, (7, 1))
    region_mask = torch.arange(4) < torch.randint(1, 5, (5, 1))
    results = []
    for limit in (max_products, 2**24):
        leaves = [regions.clone().requires_grad_(), words.clone().requires_grad_()]
        scores = score_sentences(*leaves, word_mask, region_mask, attention_sharpness, max_products=limit)
        (scores * torch.arange(35.0).view(5, 7)).sum().backward()
        results.append((scores, *(leaf.grad for leaf in leaves)))
    assert_close(results[0], results[1])


@torch.no_grad()
def test_padding_never_wins():
    """All products are negative: a padded region of zeros would score 0."""
    regions, words = torch.ones(1, 2, 3), -torch.ones(1, 2, 3)
    mask = torch.tensor([[True, False]])
    assert score_sentences(regions * mask[..., None], words, mask, mask).item() == -3


@torch.no_grad()
def test_a_sentence_scores_the_same_in_any_batch_and_with_any_padding(any_alignment, pixel_values, words):
    expected = any_alignment(pixel_values, words).logits_per_image
    for n, length in enumerate((4, 3, 1)):
        alone = any_alignment(pixel_values, words[n : n + 1, :length]).logits_per_image
        assert_close(alone[:, 0], expected[:, n])
    mask = words != 0
    wider, wider_mask = (torch.nn.functional.pad(x, (3, 2)) for x in (words, mask.int()))
    garbage = wider.masked_fill(wider_mask == 0, 7)  # what the mask hides is not read
    assert_close(any_alignment(pixel_values, garbage, wider_mask).logits_per_image, expected)


@torch.no_grad()
def test_an_image_scores_the_same_in_any_batch_and_with_any_number_of_boxes(any_alignment, pixel_values, words):
    boxes = [torch.rand(n, 2, 2).sort(dim=1).values.flatten(1) for n in (1, 4, 2)]
    expected = any_alignment(pixel_values, words, boxes=boxes).logits_per_image
    for k in range(3):
        alone = any_alignment(pixel_values[k : k + 1], words, boxes=boxes[k : k + 1]).logits_per_image
        assert_close(alone[0], expected[k])


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"region_grid_size": 2}, {"reduced_feature_size": 5}], ids=str)
def test_stored_features_score_as_their_images_do(make_alignment, pixel_values, words, options):
    model = make_alignment(**options)
    expected = model(pixel_values, words).logits_per_image
    features, _ = model.get_encoder().get_image_features(pixel_values)
    assert_close(model(input_ids=words, image_features=features).logits_per_image, expected)
    reduced = model.get_encoder().reduce_features(features)
    assert_close(model(input_ids=words, image_features=reduced).logits_per_image, expected)


def test_the_backward_pass_of_the_maximum_is_its_gradient(make_alignment):
    model = make_alignment(contrastive_loss="sum_hinge", margin=5.0, rnn_type="gru").double()
    features = torch.randn(2, 4, 16, dtype=torch.float64, requires_grad=True)
    words = torch.tensor([[4, 9, 13], [5, 11, 0]])

    def loss(features):
        return model(image_features=features, input_ids=words, return_loss=True).loss

    assert torch.autograd.gradcheck(loss, features)


# --- Losses ----------------------------------------------------------------------------------------------------------


def written_out(scores: torch.Tensor, labels: list[int], image_ids: list[int], kind: str, margin: float) -> float:
    """The losses as loops over sentences and their negatives."""
    scores = scores.tolist()
    total = 0.0
    for n, k in enumerate(labels):
        own = scores[k][n]
        others = [m for m in range(len(labels)) if image_ids[labels[m]] != image_ids[k]]
        images = [j for j in range(len(scores)) if image_ids[j] != image_ids[k]]
        if kind == "info_nce":
            for rivals in ([scores[k][m] for m in others], [scores[j][n] for j in images]):
                total -= (own - math.log(sum(math.exp(s) for s in (own, *rivals)))) / 2
            continue
        for rivals in ([scores[k][m] for m in others], [scores[j][n] for j in images]):
            hinges = [max(0.0, s - own + margin) for s in rivals]
            total += sum(hinges) if kind == "sum_hinge" else max(hinges)
    return total / len(labels)


@pytest.mark.parametrize("kind", ["info_nce", "sum_hinge", "max_hinge"])
@pytest.mark.parametrize(
    ("labels", "image_ids"),
    [([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 0, 1, 2, 3, 3], [5, 6, 7, 8]), ([3, 1, 1, 0], [0, 1, 1, 2])],
    ids=["pairs", "sentences of one image", "an image twice"],
)
def test_the_loss_is_that_of_loops(kind, labels, image_ids):
    scores = torch.randn(4, len(labels))
    loss = contrastive_loss(scores, torch.tensor(labels), torch.tensor(image_ids), kind, margin=0.7)
    assert loss.item() == pytest.approx(written_out(scores, labels, image_ids, kind, 0.7), rel=1e-5)


def test_info_nce_of_pairs_is_that_of_clip():
    scores, places = torch.randn(6, 6), torch.arange(6)
    expected = torch.nn.functional.cross_entropy(scores, places) + torch.nn.functional.cross_entropy(scores.T, places)
    assert_close(contrastive_loss(scores, places), expected / 2)


def test_two_captions_of_an_image_are_not_each_others_negatives(make_alignment, pixel_values):
    model = make_alignment()
    words = torch.tensor([[4, 9], [5, 9], [6, 13], [7, 13], [8, 5], [10, 5]])
    by_shape = model(pixel_values, words.view(3, 2, 2), return_loss=True).loss
    by_labels = model(pixel_values, words, labels=torch.tensor([0, 0, 1, 1, 2, 2])).loss
    repeated = model(pixel_values.repeat_interleave(2, 0), words, image_ids=torch.tensor([0, 0, 1, 1, 2, 2])).loss
    assert_close(by_shape, by_labels)
    assert not torch.isclose(by_shape, model(pixel_values.repeat_interleave(2, 0), words, return_loss=True).loss)
    # there are twice as many images in the batch, of which each has half as many sentences
    assert repeated.isfinite()


def test_a_few_steps_of_training_lower_the_loss(any_alignment, pixel_values, words):
    model = any_alignment.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(pixel_values, words, return_loss=True).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# --- Saving and loading ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_saved_alignment_loads_bit_equal(any_alignment, pixel_values, words, tmp_path):
    expected = any_alignment(pixel_values, words).logits_per_image
    any_alignment.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CnnRnnAlignmentConfig
    for auto in (CnnRnnForImageTextRetrieval, AutoModelForZeroShotImageClassification):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is CnnRnnForImageTextRetrieval
        assert torch.equal(loaded(pixel_values, words).logits_per_image, expected)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is CnnRnnAlignmentModel
    assert changed(snapshot(any_alignment.model), base) == set()


def test_the_keywords_of_the_paper_make_its_model(tiny_encoder_config):
    config = CnnRnnAlignmentConfig(encoder=tiny_encoder_config, vocab_size=20, **(PAPER | {"hidden_size": 8}))
    model = CnnRnnForImageTextRetrieval(config)
    assert model.model.logit_scale is None
    assert type(model.model.text_encoder.context).__name__ == "BidirectionalReluRNN"
    assert (config.margin, config.word_reduction, config.score_type) == (1.0, "sum", "max")


def test_zero_shot_classification_ranks_labels(make_alignment, alignment_processor, tmp_path):
    model, image = make_alignment(), Image.linear_gradient("L").convert("RGB")
    model.save_pretrained(tmp_path)
    alignment_processor.save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path), device="cpu")
    assert type(AutoProcessor.from_pretrained(tmp_path)) is CnnRnnAlignmentProcessor
    labels = ["a dog", "a green triangle", "two circles"]
    results = classify(image, candidate_labels=labels, hypothesis_template="{}")
    inputs = alignment_processor(images=image, text=labels, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(dim=1)[0]
    assert {result["label"]: pytest.approx(result["score"], abs=1e-5) for result in results} == dict(
        zip(labels, expected.tolist(), strict=True)
    )


@pytest.mark.slow
def test_a_saved_alignment_is_a_whole_repository(make_alignment, alignment_processor, tmp_path):
    model, repository = make_alignment(smoothness=0.1), str(tmp_path / "alignment")
    model.save_pretrained(repository)
    alignment_processor.save_pretrained(repository)
    sentence = "a dog jumps over a triangle"
    with LocalHub(tmp_path / "hub") as hub:  # for a process of its own, without this package
        answer = fork_jobs(hub, tmp_path, {"align": ["aligned", {"repository": repository, "sentence": sentence}]})[
            "align"
        ]
    assert answer["classes"] == [
        "CnnRnnAlignmentConfig",
        "CnnRnnAlignmentProcessor",
        "CnnRnnForImageTextRetrieval",
        "CnnRnnAlignmentModel",
    ]
    assert set(answer["modules"]) == {"transformers_modules"}
    expected = model.align(hub_user.picture(), sentence, alignment_processor)
    assert answer["snippets"] == [[list(box), text, score] for box, text, score in expected]
    assert len(answer["scores"]) == 2


# --- Other ways to run it --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_half_precision_scores_almost_the_same(any_alignment, pixel_values, words, tmp_path):
    expected = any_alignment(pixel_values, words, return_loss=True)
    any_alignment.save_pretrained(tmp_path)
    half = CnnRnnForImageTextRetrieval.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    outputs = half(pixel_values, words, return_loss=True)
    assert outputs.loss.dtype == torch.float32
    scale = half.model.logit_scale.exp().float()
    assert_close(outputs.logits_per_image / scale, expected.logits_per_image / scale, atol=0.05, rtol=0.05)


def test_autocast_trains(any_alignment, pixel_values, words):
    expected = any_alignment(pixel_values, words, return_loss=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = any_alignment.train(False)(pixel_values, words, return_loss=True)
    outputs.loss.backward()
    assert_close(outputs.logits_per_image, expected.logits_per_image, atol=2.0, rtol=0.1)
    assert all(parameter.grad is not None for parameter in any_alignment.model.text_encoder.context.parameters())


@torch.no_grad()
def test_every_layer_is_called(any_alignment, pixel_values, words):
    layers = {
        name: module
        for name, module in any_alignment.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and ".cnn." not in name and name != "model"
    }
    calls = set()
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: calls.add(name))
    any_alignment(pixel_values, words)
    assert calls == set(layers)


@pytest.mark.slow
@torch.no_grad()
def test_the_image_encoder_is_exported(make_alignment, pixel_values):
    encoder = make_alignment().get_encoder()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(encoder, (pixel_values,), dynamic_shapes={"pixel_values": {0: batch}})
    for images in (pixel_values, pixel_values[:2]):
        assert_close(exported.module()(images).last_hidden_state, encoder(images).last_hidden_state)


def test_a_frozen_cnn_stays_and_the_rest_learns(make_alignment, pixel_values, words):
    model = make_alignment().train()
    model.freeze_encoder()
    before = snapshot(model)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    model(pixel_values, words, return_loss=True).loss.backward()
    optimizer.step()
    moved = changed(before, model)
    assert not any(".cnn." in name for name in moved)
    assert {"model.logit_scale", "model.encoder.projection.weight", "model.text_encoder.embed_tokens.weight"} <= moved


@torch.no_grad()
def test_a_larger_vocabulary_keeps_what_the_model_knew(make_alignment, pixel_values, words):
    model = make_alignment()
    expected = model(pixel_values, words).logits_per_image
    model.resize_token_embeddings(25, mean_resizing=False)
    assert model.config.vocab_size == 25
    assert_close(model(pixel_values, words).logits_per_image, expected)
    assert model(pixel_values, torch.full((3, 2), 24)).logits_per_image.isfinite().all()


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([[0.1, 0.1, 1.2, 0.5]], r"boxes\[1\].*\(0.1, 0.1, 1.2, 0.5\), which is not inside the picture"),
        ([[0.1, 0.1, 0.1, 0.5]], r"boxes\[1\].*\(0.1, 0.1, 0.1, 0.5\), which has no area"),
        ([[0.1, 0.1, float("nan"), 0.5]], "not inside the picture"),
        ([], "at least one box"),
    ],
)
def test_a_box_that_is_none_is_refused(make_alignment, pixel_values, boxes, reason):
    good = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    with pytest.raises(ValueError, match=reason):
        make_alignment().get_image_features(pixel_values[:2], boxes=[good, torch.tensor(boxes).reshape(-1, 4)])


def test_a_sentence_of_unknown_words_is_refused(make_alignment):
    with pytest.raises(ValueError, match=r"input_ids\[1\]. has no word that the vocabulary knows \(1 of 2"):
        make_alignment().get_text_features(torch.tensor([[4, 3], [1, 3]]))


@pytest.mark.parametrize("kind", ["info_nce", "sum_hinge", "max_hinge"])
def test_a_batch_without_negatives_is_refused(make_alignment, pixel_values, words, kind):
    model = make_alignment(contrastive_loss=kind)
    with pytest.raises(ValueError, match="no negatives"):
        model(pixel_values[:1], words[:1], return_loss=True)
    with pytest.raises(ValueError, match="no negatives"):
        model(pixel_values, words, image_ids=torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("images", [None, Image.new("RGB", (32, 32))], ids=["text", "images and text"])
def test_the_processor_refuses_sentences_of_unknown_words(alignment_processor, images):
    with pytest.raises(ValueError, match="'xyzzy plugh', of which the tokenizer knows no word"):
        alignment_processor(images=images, text=["a dog", "xyzzy plugh"])


def test_tokens_outside_the_vocabulary_are_refused(make_alignment):
    with pytest.raises(ValueError, match="holds 20, outside the vocabulary of 20 words"):
        make_alignment().get_text_features(torch.tensor([[4, 20]]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"score_type": "attention", "normalize_embeddings": False}, "attention compares directions"),
        ({"smoothness": -0.1}, "`smoothness` is -0.1"),
        ({"region_grid_size": 0}, "`region_grid_size` is 0"),
        ({"unk_token_id": 30}, "special token 30 is outside"),
        ({"rnn_type": "rnn_tanh"}, "rnn_type"),
        ({"hidden_size": 2**20, "embedding_size": 2**20}, "no memory holds"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(make_alignment, options, reason):
    with pytest.raises((StrictDataclassFieldValidationError, StrictDataclassClassValidationError), match=reason):
        make_alignment(**options)


def test_equal_regions_share_the_gradient():
    regions = torch.ones(1, 2, 3).requires_grad_()
    score_sentences(regions, torch.ones(1, 1, 3), torch.tensor([[True]])).sum().backward()
    assert_close(regions.grad, torch.full((1, 2, 3), 0.5))
