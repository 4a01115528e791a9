"""Evaluation of a captioner: its loss, its sentences and their probabilities, from one pass of the CNN."""

import time

import numpy as np
import pytest
import torch
from support.broken_images import with_broken

from modeling_cnnrnn import CnnRnnForConditionalGeneration
from modeling_cnnrnn.data.batching import CaptionDataset
from modeling_cnnrnn.evaluation.captions import GeneratedCaption, evaluate_captioner, score_captions
from modeling_cnnrnn.models.image_view_cnnrnn import View


@pytest.fixture
def captioner(make_model, processor) -> CnnRnnForConditionalGeneration:
    return make_model(vocab_size=len(processor.tokenizer))


def test_broken_images_get_no_caption(pictures, processor, captioner):
    evaluation = evaluate_captioner(captioner, CaptionDataset(with_broken(pictures, 1), processor), batch_size=4)
    assert [caption.row for caption in evaluation.captions[0]] == [0, *range(2, 10)]
    assert list(evaluation.broken) == [1]


def test_probabilities_of_a_sentence_are_those_of_a_forward_pass(pictures, processor, captioner):
    dataset = CaptionDataset(pictures, processor)
    options = {"num_beams": 3, "max_length": 8}
    caption = evaluate_captioner(captioner, dataset, generation=[options]).captions[0][0]
    ids = processor.tokenizer.convert_tokens_to_ids(caption.words)
    inputs = torch.tensor([[1, *ids[:-1]]])
    logits = captioner(dataset[0]["pixel_values"][None], decoder_input_ids=inputs).logits
    expected = logits.log_softmax(-1)[0, range(len(ids)), ids].sum().item()
    assert caption.log_probability == pytest.approx(expected, abs=1e-4)


def test_attention_maps_have_one_place_for_each_region(pictures, processor, make_model):
    model = make_model(attention_type="additive", vocab_size=len(processor.tokenizer))
    evaluation = evaluate_captioner(model, CaptionDataset(pictures, processor), with_attention=True)
    for caption in evaluation.captions[0]:
        assert caption.attention.shape == (len(caption.words), 4, 4)
        assert np.allclose(caption.attention.sum((1, 2)), 1, atol=1e-5)
        rows, columns = caption.cell_centers  # half a cell above and left of the middles of a ResNet's cells
        assert np.allclose(4 * rows.numpy(), np.arange(4), atol=0.35)
        assert np.allclose(4 * columns.numpy(), np.arange(4), atol=0.35)


@pytest.mark.parametrize("unit", ["pixels", "parts"])
def test_the_weights_of_boxes_lie_where_these_are(unit):
    sides = np.array([64, 32, 64, 32]) if unit == "pixels" else np.ones(4)  # of a picture of 64 x 32 pixels
    boxes = (np.array([[0, 0, 0.5, 1], [0.25, 0.5, 1, 1]]) * sides).astype(np.float32)
    weights = np.array([[[0.75, 0.25]], [[0.0, 1.0]]], np.float32)
    view = View(64, 32, (0, 0, 64, 32))
    maps = GeneratedCaption(0, "a dog", attention=weights, boxes=boxes).attention_over(view)
    assert maps.shape == (2, 32, 32)
    expected = np.zeros((2, 32, 32))
    expected[0, :, :16] += 0.75
    expected[0, 16:, 8:] += 0.25
    expected[1, 16:, 8:] += 1
    np.testing.assert_allclose(maps, expected, atol=1e-6)


def test_the_loss_of_a_dataset_does_not_depend_on_its_batches(pictures, processor, captioner):
    dataset = CaptionDataset(pictures, processor)
    one, four = (evaluate_captioner(captioner, dataset, batch_size=size).loss for size in (1, 4))
    assert one == pytest.approx(four, rel=1e-5)


def test_each_image_is_encoded_once_whatever_is_asked(pictures, processor, make_model):
    model = make_model(attention_type="additive", vocab_size=len(processor.tokenizer))
    model.get_encoder().cell_centers(32, 32)  # measured with pictures of noise, once
    encoded = []
    model.get_encoder().cnn.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    generation = [{"num_beams": num_beams} for num_beams in (1, 3, 5)]
    evaluation = evaluate_captioner(
        model, CaptionDataset(pictures, processor), batch_size=4, generation=generation, with_attention=True
    )
    assert encoded == [4, 4, 2]
    assert evaluation.loss > 0
    assert [len(captions) for captions in evaluation.captions] == [10, 10, 10]


def test_ways_to_generate_do_not_disturb_each_other(pictures, processor, make_model):
    model = make_model(attention_type="additive", vocab_size=len(processor.tokenizer), initializer_range=2.0)
    dataset = CaptionDataset(pictures, processor)
    generation = [{"num_beams": 3, "max_length": 9}, {"num_beams": 1, "max_length": 5}]
    together = evaluate_captioner(model, dataset, generation=generation)
    for options, captions in zip(generation, together.captions, strict=True):
        (alone,) = evaluate_captioner(model, dataset, generation=[options], with_loss=False).captions
        assert captions == alone
    assert together.loss == evaluate_captioner(model, dataset, generation=()).loss
    assert together.captions[0] != together.captions[1]


def test_the_loss_is_the_mean_over_all_tokens(pictures, processor, captioner):
    dataset = CaptionDataset(pictures, processor)
    losses, num_tokens = 0.0, 0
    for example in (dataset[row] for row in range(len(dataset))):
        for caption in example["labels"]:
            labels = torch.tensor([caption])
            logits = captioner(example["pixel_values"][None], labels=labels, skip_logits=False).logits[0]
            losses += torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum").item()
            num_tokens += len(caption)
    assert evaluate_captioner(captioner, dataset, generation=()).loss == pytest.approx(losses / num_tokens, rel=1e-5)


def test_the_time_of_each_way_to_generate_holds_the_time_to_encode(pictures, processor, captioner):
    encode = captioner.get_encoder().forward

    def slow(*args, **kwargs):
        time.sleep(0.2)
        return encode(*args, **kwargs)

    captioner.get_encoder().forward = slow
    evaluation = evaluate_captioner(captioner, CaptionDataset(pictures, processor), generation=[{}, {"num_beams": 2}])
    assert all(0.2 < seconds < 5 for seconds in evaluation.seconds)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(pictures, processor, captioner, training):
    captioner.train(training)
    evaluate_captioner(captioner, CaptionDataset(pictures, processor))
    assert captioner.training == training


def test_a_checker_decides_which_captions_are_right():
    captions = [GeneratedCaption(0, "a red circle"), GeneratedCaption(2, "a blue square")]
    references = [["a red circle"], ["left out"], ["a green square"]]
    scores, right = score_captions(captions, references, checker=lambda text, row: text == references[row][0])
    assert right == [True, False]
    assert scores["accuracy"] == 0.5
    assert score_captions(captions, references)[1] is None
