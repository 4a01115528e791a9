"""The chain over words: exact, whatever the smoothness, and snippets that lie where they should."""

import itertools

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnAlignmentProcessor, CnnRnnForImageTextRetrieval
from modeling_cnnrnn.models.alignment_cnnrnn import decode_chain, group_words


def value(scores: torch.Tensor, path: tuple[int, ...], smoothness: float) -> float:
    gained = sum(float(scores[t, region]) for t, region in enumerate(path))
    return gained + smoothness * sum(a == b for a, b in itertools.pairwise(path))


@pytest.mark.parametrize("smoothness", [0.0, 0.1, 0.7, 3.0])
@pytest.mark.parametrize(("length", "num_regions"), [(1, 3), (5, 1), (4, 2), (5, 4)])
def test_the_chain_finds_the_best_of_all_paths(smoothness, length, num_regions):
    scores = torch.randn(5, length, num_regions)
    for found, its_scores in zip(decode_chain(scores, smoothness).tolist(), scores, strict=True):
        paths = itertools.product(range(num_regions), repeat=length)
        best = max(value(its_scores, path, smoothness) for path in paths)
        assert value(its_scores, tuple(found), smoothness) == pytest.approx(best, abs=1e-5)


def test_sentences_of_a_batch_are_decoded_as_alone():
    scores, lengths = torch.randn(30, 8, 6), torch.randint(1, 9, (30,))
    mask = torch.arange(8) < lengths[:, None]
    together = decode_chain(scores, 0.5, mask)
    for found, its_scores, length in zip(together, scores, lengths.tolist(), strict=True):
        assert torch.equal(found[:length], decode_chain(its_scores[None, :length], 0.5)[0])


def test_the_ends_of_smoothness_are_single_words_and_one_region():
    scores = torch.randn(10, 7, 5)
    assert torch.equal(decode_chain(scores, 0.0), scores.argmax(dim=2))
    one = scores.sum(dim=1).argmax(dim=1)
    assert torch.equal(decode_chain(scores, 100.0), one[:, None].expand(-1, 7))


def test_runs_of_words_are_found_across_nothing_else():
    assert group_words([-1, 3, 3, 1, -1, 1, -1]) == [(1, 3), (3, 4), (5, 6)]


@pytest.fixture
def make_aligner(tiny_encoder_config):
    def make(**options) -> CnnRnnForImageTextRetrieval:
        torch.manual_seed(0)
        options = {"vocab_size": 20, "hidden_size": 14, "embedding_size": 12, "word_embedding_size": 10} | options
        return CnnRnnForImageTextRetrieval(
            CnnRnnAlignmentConfig(encoder=tiny_encoder_config, initializer_range=0.5, **options)
        ).eval()

    return make


@pytest.fixture
def alignment_processor(tiny_processor) -> CnnRnnAlignmentProcessor:
    return CnnRnnAlignmentProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)


def picture(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 200).convert("RGB")


def test_snippets_are_the_words_of_the_sentence_in_order(make_aligner, alignment_processor):
    sentence = "A dog jumps, over a GREEN triangle!"
    snippets = make_aligner(smoothness=0.1).align(picture(64, 48), sentence, alignment_processor)
    assert len(snippets) > 1
    assert " ".join(text for _, text, _ in snippets).replace(",", "") == "A dog jumps over a GREEN triangle"
    for (left, top, right, bottom), _, score in snippets:
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 48
        assert -1 <= score <= 1


def test_a_snippet_has_the_score_of_its_words_with_its_box(make_aligner, alignment_processor):
    model, image = make_aligner(smoothness=0.3), picture(32, 32)
    boxes = [(0, 0, 16, 32), (16, 0, 32, 32), (4, 4, 20, 28)]
    snippets = model.align(image, "a dog jumps over a triangle", alignment_processor, boxes=boxes)
    inputs = alignment_processor(images=image, text="a dog jumps over a triangle", return_tensors="pt")
    parts = [torch.tensor(boxes) / 32]
    with torch.no_grad():
        regions = model.get_image_features(inputs["pixel_values"], boxes=parts).last_hidden_state[0]
        words = model.get_text_features(inputs["input_ids"]).last_hidden_state[0]
    places = [*boxes, (0, 0, 32, 32)]
    start = 0
    for box, text, score in snippets:
        end = start + len(text.split())
        region = min(range(4), key=lambda i: sum(abs(a - b) for a, b in zip(places[i], box, strict=True)))
        assert box == pytest.approx(places[region], abs=0.01)
        assert score == pytest.approx((words[start:end] @ regions[region]).mean().item(), abs=1e-4)
        start = end
    assert start == 6


def test_several_sentences_are_aligned_as_each_alone(make_aligner, alignment_processor):
    model, image = make_aligner(smoothness=0.1), picture(48, 32)
    sentences = ["a dog jumps", "a red circle above a blue square", "triangle"]
    together = model.align_sentences(image, sentences, alignment_processor)
    alone = [model.align(image, sentence, alignment_processor) for sentence in sentences]
    for snippets, expected in zip(together, alone, strict=True):
        assert [snippet[:2] for snippet in snippets] == [snippet[:2] for snippet in expected]
        assert [snippet.score for snippet in snippets] == pytest.approx([s.score for s in expected], abs=1e-5)


def test_cells_only_leaves_out_the_whole_picture(make_aligner, alignment_processor):
    model, image = make_aligner(smoothness=100.0), picture(32, 32)
    with torch.no_grad():  # whatever the words, the whole picture fits them best
        output = model.get_image_features(alignment_processor(images=image, return_tensors="pt")["pixel_values"])
        whole = output.last_hidden_state[0, -1]
        for parameter in model.model.text_encoder.context.projection.parameters():
            parameter.zero_()
        model.model.text_encoder.context.projection.bias.copy_(whole)
    (snippet,) = model.align(image, "a dog jumps", alignment_processor)
    assert snippet.box == (0, 0, 32, 32)
    (snippet,) = model.align(image, "a dog jumps", alignment_processor, cells_only=True)
    assert snippet.box != (0, 0, 32, 32)


def test_words_of_a_batch_are_aligned_as_alone_wherever_they_stand(make_aligner, pixel_values):
    model = make_aligner()
    ids = torch.tensor([[1, 4, 9, 13, 2], [5, 11, 2, 0, 0], [0, 0, 0, 19, 2]])
    images, texts = model.get_image_features(pixel_values), model.get_text_features(ids)
    regions, scores = model.align_words(images, texts, smoothness=0.2)
    assert torch.equal(regions >= 0, texts.word_mask)
    for n, words in enumerate(([4, 9, 13], [5, 11], [19])):
        its_images = model.get_image_features(pixel_values[n : n + 1])
        alone = model.align_words(its_images, model.get_text_features(torch.tensor([words])), smoothness=0.2)
        assert torch.equal(regions[n][texts.word_mask[n]], alone[0][0])
        assert_close(scores[n][texts.word_mask[n]], alone[1][0])


@pytest.mark.parametrize(
    ("options", "sentence", "reason"),
    [
        ({}, "xyzzy plugh", "no word that the vocabulary knows"),
        ({}, "!?", "'!\\?', which has no word"),
        ({"boxes": [(0, 0, 40, 20)]}, "a dog", r"\(0, 0, 40, 20\), which is no area of a picture of 32 x 32 pixels"),
        ({"boxes": [(5, 5, 5, 20)]}, "a dog", r"\(5, 5, 5, 20\), which is no area"),
        ({"boxes": []}, "a dog", "`boxes` is empty"),
        ({"smoothness": -1.0}, "a dog", "`smoothness` is -1.0"),
    ],
)
def test_what_cannot_be_aligned_is_refused(make_aligner, alignment_processor, options, sentence, reason):
    with pytest.raises(ValueError, match=reason):
        make_aligner().align(picture(32, 32), sentence, alignment_processor, **options)
