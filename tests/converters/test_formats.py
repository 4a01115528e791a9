"""Each old format: the converted captioner computes and writes what the original's own code did with the same weights."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from support.old_checkpoints import WRITERS, read_golden, write_checkpoint
from support.old_weights import draw_features, draw_pixels

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.converters.converting import convert_checkpoint


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """Convert the checkpoint of a golden file once: what the original computed, and the model and processor as anybody loads them."""

    @cache
    def convert(name: str):
        folder = tmp_path_factory.mktemp(name)
        captioner = convert_checkpoint(write_checkpoint(name, folder), folder / "captioner")
        model = CnnRnnForConditionalGeneration.from_pretrained(captioner)
        return read_golden(name), model, CnnRnnProcessor.from_pretrained(captioner)

    return convert


def images_of(golden) -> dict[str, torch.Tensor]:
    if "feature_size" in golden:
        features = draw_features(len(golden["tokens"]), golden.get("num_regions", 1), golden["feature_size"])
        return {"image_features": torch.from_numpy(features)}
    return {"pixel_values": torch.from_numpy(draw_pixels(len(golden["tokens"]), golden["image_size"]))}


def rows_of(golden, processor) -> list[int]:
    """The token of each row of the original."""
    return processor.tokenizer.convert_tokens_to_ids(golden["rows"])


def words_of(golden, processor, sequences: torch.Tensor) -> list[list[int]]:
    """Generated sentences as rows of the original, without the start and what follows the end."""
    rows = {token: row for row, token in enumerate(rows_of(golden, processor))}
    eos = processor.tokenizer.eos_token_id
    sentences = [[int(token) for token in sequence[1:]] for sequence in sequences]
    return [[rows[t] for t in s[: s.index(eos) if eos in s else None]] for s in sentences]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_logits_are_those_of_the_original(convert, name):
    golden, model, processor = convert(name)
    rows = torch.tensor(rows_of(golden, processor))
    with torch.no_grad():
        logits = model(**images_of(golden), decoder_input_ids=rows[torch.tensor(golden["tokens"])]).logits
    if golden.get("are_log_probs"):
        logits = logits.log_softmax(dim=-1)
    torch.testing.assert_close(logits[..., rows], torch.tensor(golden["logits"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "num_beams"),
    [(name, int(beams)) for name in sorted(WRITERS) for beams in read_golden(name)["sentences"]],
)
def test_sentences_are_those_of_the_original(convert, name, num_beams):
    golden, model, processor = convert(name)
    penalty = {"length_penalty": 0.0} if num_beams > 1 else {}  # the sum of log-probabilities
    sequences = model.generate(**images_of(golden), num_beams=num_beams, **penalty)
    assert words_of(golden, processor, sequences) == golden["sentences"][str(num_beams)]


@pytest.mark.parametrize(
    ("name", "size", "crop_size", "resample", "mean", "std"),
    [
        ("neuraltalk2", 256, 224, Resampling.BILINEAR, [123.68 / 255, 116.779 / 255, 103.939 / 255], [1 / 255] * 3),
        ("pytorch_tutorial", 224, 224, Resampling.LANCZOS, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("show_attend_tell", 256, 256, Resampling.BILINEAR, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
)
def test_images_are_prepared_as_the_original_does(convert, name, size, crop_size, resample, mean, std):
    _, _, processor = convert(name)
    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((400, 300), Resampling.BICUBIC)
    margin = (size - crop_size) // 2
    squashed = np.asarray(picture.resize((size, size), resample), dtype=np.float64) / 255
    cropped = squashed[margin : margin + crop_size, margin : margin + crop_size]
    expected = ((cropped - mean) / std).transpose(2, 0, 1)
    pixel_values = processor(images=picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixel_values, expected, atol=1e-3)
