"""Whether phrases point at what they name, and pictures of alignments."""

import pytest
import torch
from PIL import Image, ImageChops

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnAlignmentProcessor, CnnRnnForImageTextRetrieval
from modeling_cnnrnn.data.phrase_boxes import GroundedImage, GroundedSentence, Phrase
from modeling_cnnrnn.evaluation.figures import save_alignment_figure
from modeling_cnnrnn.evaluation.pointing import evaluate_pointing


@pytest.fixture
def aligner(tiny_encoder_config) -> CnnRnnForImageTextRetrieval:
    config = CnnRnnAlignmentConfig(encoder=tiny_encoder_config, vocab_size=20, rnn_type="none", embedding_size=12)
    return CnnRnnForImageTextRetrieval(config).eval()


@pytest.fixture
def alignment_processor(tiny_processor) -> CnnRnnAlignmentProcessor:
    return CnnRnnAlignmentProcessor(tiny_processor.image_processor, tiny_processor.tokenizer)


def phrase(text: str, words: str, entity: str) -> Phrase:
    return Phrase(text.index(words), text.index(words) + len(words), entity, (words.split()[-1],))


def test_a_phrase_points_where_its_best_cell_looks(aligner, alignment_processor):
    """The words are made those of chosen cells: their boxes are hit, and boxes elsewhere are not."""
    picture = Image.effect_noise((64, 64), 250).convert("RGB")
    pixel_values = alignment_processor(images=picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = aligner.get_image_features(pixel_values, output_boxes=True)
        words = aligner.model.text_encoder
        words.embed_tokens.weight.zero_()
        words.context.projection.bias.zero_()
        words.context.projection.weight.zero_()[:, :12] = torch.eye(12)
        for word, cell in (("dog", 6), ("circle", 9)):
            token = alignment_processor.tokenizer.convert_tokens_to_ids(word)
            words.embed_tokens.weight[token, :12] = output.last_hidden_state[0, cell]
    text = "a dog jumps over a red circle and an xyzzy"
    phrases = [
        phrase(text, "a dog", "1"),
        phrase(text, "red circle", "2"),
        phrase(text, "xyzzy", "3"),
        phrase(text, "jumps", "4"),
    ]
    around = [[float(x) for x in (*(64 * point - 2), *(64 * point + 2))] for point in output.centers[0, [6, 9]]]
    elsewhere = [60.0, 0.0, 64.0, 4.0]

    def evaluate(first, second):
        boxes = {"1": [tuple(first)], "2": [tuple(elsewhere), tuple(second)], "3": [(0, 0, 64, 64)]}
        image = GroundedImage("7", 64, 64, [GroundedSentence(text, phrases)], boxes)
        return evaluate_pointing(aligner, alignment_processor, [(picture, image)])

    result = evaluate(*around)
    assert result["pointing_game"] == pytest.approx(2 / 3)
    assert result["pointing_game_by_kind"] == {"circle": 1.0, "dog": 1.0, "xyzzy": 0.0}
    assert (result["num_phrases"], result["num_unknown"], result["num_without_box"]) == (3, 1, 1)
    assert result["accuracy_by_overlap"] == 0  # boxes of 4 pixels, cells of 16
    assert evaluate(around[1], elsewhere)["pointing_game"] == 0
    cells = 64 * output.boxes[0, [6, 9]]
    assert evaluate(cells[0].tolist(), around[1])["accuracy_by_overlap"] == pytest.approx(1 / 3)


def test_a_picture_of_another_size_and_phrases_without_boxes_are_refused(aligner, alignment_processor):
    image = GroundedImage("7", 64, 48, [GroundedSentence("a dog", [Phrase(0, 5, "1")])])
    with pytest.raises(ValueError, match="7 has 32 x 32 pixels and its boxes are of one of 64 x 48"):
        evaluate_pointing(aligner, alignment_processor, [(Image.new("RGB", (32, 32)), image)])
    with pytest.raises(ValueError, match="No phrase has a box"):
        evaluate_pointing(aligner, alignment_processor, [(Image.new("RGB", (64, 48)), image)])


def test_a_drawn_alignment_shows_boxes_and_words_in_their_colours(tmp_path):
    picture = Image.new("RGB", (80, 60), "white")
    snippets = [
        ((10.0, 10.0, 40.0, 40.0), "a dog", 0.4),
        ((0, 0, 80, 60), "jumps over", 0.1),
        ((50.0, 20.0, 70.0, 50.0), "a bar", 0.3),
    ]
    save_alignment_figure(tmp_path / "new" / "aligned.png", picture, snippets)
    drawn = Image.open(tmp_path / "new" / "aligned.png").convert("RGB")
    height = round(60 / 80 * drawn.width)
    above, below = drawn.crop((0, 0, drawn.width, height)), drawn.crop((0, height, *drawn.size))
    for color in ((31, 119, 180), (255, 127, 14)):  # of matplotlib's table
        for part in (above, below):
            distance = ImageChops.difference(part, Image.new("RGB", part.size, color)).convert("L")
            assert distance.getextrema()[0] < 10
    longer = [*snippets, ((0, 0, 80, 60), "and a sentence that goes on " * 6, 0.1)]
    save_alignment_figure(tmp_path / "longer.png", picture, longer)
    with Image.open(tmp_path / "longer.png") as second:
        assert second.height > drawn.height + 20  # more lines
        assert second.width < 1.2 * drawn.width
