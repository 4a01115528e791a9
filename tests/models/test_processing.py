"""The processor: images of every kind to `pixel_values`, prompts to `input_ids`, captions to `labels`."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)

from modeling_cnnrnn.models.image_loading_cnnrnn import load_image
from modeling_cnnrnn.models.processing_cnnrnn import CnnRnnProcessor
from modeling_cnnrnn.models.tokenization_cnnrnn import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["a dog jumps over a bar", "a cat, a red ball", "the man's photo of"], min_frequency=1)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return CnnRnnProcessor.from_image_size(8, tokenizer)


def words(processor, ids) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens([i for i in ids if i != -100])


# --- images --------------------------------------------------------------------------------------------------------


def test_pixel_values_do_not_depend_on_the_scale_of_the_array(processor, pixels):
    expected = processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values
    scaled = processor(images=pixels / 255, return_tensors="pt").pixel_values
    assert torch.equal(scaled, expected)


def test_the_scale_is_told_for_each_image_of_a_list(processor, pixels):
    batch = processor(images=[pixels, pixels / 255, pixels.astype(float)], return_tensors="pt").pixel_values
    assert torch.equal(batch[0], batch[1])
    assert torch.equal(batch[0], batch[2])


def test_a_batch_of_four_dimensions_is_split(processor, pixels):
    expected = processor(images=[pixels, pixels[::-1]], return_tensors="pt").pixel_values
    stacked = np.stack([pixels, pixels[::-1]])
    assert torch.equal(processor(images=stacked, return_tensors="pt").pixel_values, expected)
    tensors = torch.from_numpy(stacked.copy()).permute(0, 3, 1, 2)
    assert torch.equal(processor(images=tensors, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_an_error_that_names_the_image(processor, pixels, value):
    broken = pixels / 255
    broken[3, 4, 1] = value
    with pytest.raises(ValueError, match=r"`images\[1\]` holds NaN or infinite pixels"):
        processor(images=[pixels, broken])


def test_not_rescaling_an_image_in_the_unit_range_is_an_error(processor, pixels):
    with pytest.raises(ValueError, match="`do_rescale` is False: leave `do_rescale` out"):
        processor(images=pixels / 255, do_rescale=False)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "PA", "RGBA", "CMYK", "1", "I", "F", "YCbCr", "HSV", "I;16"])
def test_every_mode_becomes_rgb(processor, mode):
    image = Image.new("L", (10, 12), 255).convert(mode) if mode != "I;16" else Image.new(mode, (10, 12), 65535)
    assert (np.asarray(load_image(image)) == 255).all()
    assert processor(images=image, return_tensors="pt").pixel_values.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1)])
def test_an_image_of_any_shape_can_be_squashed(processor, size):
    assert processor(images=Image.new("RGB", size), return_tensors="pt").pixel_values.shape == (1, 3, 8, 8)


def test_an_image_too_narrow_to_resize_by_its_shortest_edge_is_an_error(tokenizer):
    processor = CnnRnnProcessor.from_image_size(224, tokenizer, center_crop=True)
    assert processor(images=Image.new("RGB", (1, 1)), return_tensors="pt").pixel_values.shape == (1, 3, 224, 224)
    with pytest.raises(
        ValueError, match="1 x 10000 pixels, which resizing to a shortest edge of 224 makes 224 x 2240000"
    ):
        processor(images=Image.new("RGB", (1, 10000)))


def test_images_may_be_mixed_in_a_list(processor, tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.png")
    images = [tmp_path / "image.png", Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)]
    batch = processor(images=images, return_tensors="pt").pixel_values
    assert torch.equal(batch, batch[:1].expand(3, -1, -1, -1))


def test_a_truncated_file_is_named(tmp_path, processor, pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((200, 200)).save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(
        ValueError, match=r"`images` \(.*half\.jpg'\) is not an image that can be read: .*truncated"
    ) as caught:
        processor(images=str(tmp_path / "half.jpg"))
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ValueError, match=r"half\.jpg'\) is not an image"):  # an image that was opened, not yet read
        load_image(Image.open(tmp_path / "half.jpg"))


@pytest.mark.parametrize("thing", [3, {"image": 1}, object()])
def test_something_that_is_no_image_is_an_error(processor, thing):
    with pytest.raises(ValueError, match=f"`images` is a {type(thing).__name__}"):
        processor(images=thing)


def test_an_empty_list_is_an_error(processor):
    with pytest.raises(ValueError, match="`images` is an empty list"):
        processor(images=[])


def test_nothing_is_an_error(processor):
    with pytest.raises(ValueError, match="Pass `images`, `text` or `text_target`"):
        processor()


# --- prompts --------------------------------------------------------------------------------------------------------


def test_a_prompt_begins_and_does_not_end(processor):
    inputs = processor(text="a photo of")
    assert [words(processor, ids) for ids in inputs["input_ids"]] == [["<bos>", "a", "photo", "of"]]
    assert inputs["attention_mask"] == [[1, 1, 1, 1]]


def test_the_empty_prompt_is_the_start_token(processor):
    assert processor(text="")["input_ids"] == [[processor.tokenizer.bos_token_id]]


def test_prompts_are_padded_on_the_right(processor):
    inputs = processor(text=["a photo of", "a"], return_tensors="pt")
    assert words(processor, inputs["input_ids"][1].tolist()) == ["<bos>", "a", "<pad>", "<pad>"]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_one_prompt_serves_all_images(processor, pixels):
    inputs = processor(images=[pixels, pixels], text="a photo of", return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 4)
    with pytest.raises(ValueError, match="`text` holds 3 prompts for 2 images"):
        processor(images=[pixels, pixels], text=["a", "a", "a"])


def test_prompt_options_are_the_tokenizers(processor):
    inputs = processor(text="a photo of", padding="max_length", max_length=6, return_tensors="np")
    assert words(processor, inputs["input_ids"][0].tolist()) == ["<bos>", "a", "photo", "of", "<pad>", "<pad>"]
    assert words(processor, processor(text="a photo of", max_length=2)["input_ids"][0]) == ["<bos>", "a"]
    assert words(processor, processor(text="a photo of", add_special_tokens=False)["input_ids"][0])[0] == "a"
    assert len(processor(text="a", text_kwargs={"pad_to_multiple_of": 8})["input_ids"][0]) == 8


# --- captions -------------------------------------------------------------------------------------------------------


def test_captions_become_labels_with_one_end_token_and_ignored_padding(processor):
    labels = processor(text_target=["A dog jumps.", "a"], return_tensors="pt").labels
    assert words(processor, labels[0].tolist()) == ["a", "dog", "jumps", "<eos>"]
    assert labels[1, 1:].tolist() == [processor.tokenizer.eos_token_id, -100, -100]
    assert labels.dtype == torch.int64


def test_several_captions_of_each_image_make_three_dimensions(processor, pixels):
    captions = [["a dog", "a dog jumps over"], ["a cat", "a"], ["a red ball", "a bar"]]
    inputs = processor(images=[pixels] * 3, text_target=captions, return_tensors="pt")
    assert inputs.pixel_values.shape == (3, 3, 8, 8)
    assert inputs.labels.shape == (3, 2, 5)
    assert words(processor, inputs.labels[2, 0].tolist()) == ["a", "red", "ball", "<eos>"]


def test_an_end_token_that_was_typed_is_a_word(processor):
    labels = processor(text_target="a dog <eos> jumps")["labels"][0]
    assert labels.count(processor.tokenizer.eos_token_id) == 1
    assert labels[-1] == processor.tokenizer.eos_token_id


def test_max_length_keeps_the_end_token(processor):
    labels = processor(text_target=["a dog jumps over a bar", "a"], max_length=3)["labels"]
    assert [words(processor, ids) for ids in labels] == [["a", "dog", "<eos>"], ["a", "<eos>"]]
    assert len(processor(text_target="a dog jumps over", max_length=3, truncation=False)["labels"][0]) == 5
    assert processor(text_target="a", padding="max_length", max_length=4)["labels"][0][2:] == [-100, -100]


@pytest.mark.parametrize("caption", ["", "  ", "...!"])
def test_a_caption_without_words_is_an_error_that_quotes_it(processor, caption):
    with pytest.raises(
        ValueError, match=f"the caption {caption!r}, which has no word: leave it out".replace(".", r"\.")
    ):
        processor(text_target=["a dog", caption])


def test_a_caption_of_unknown_words_is_an_error_that_quotes_it(processor):
    with pytest.raises(ValueError, match="the caption 'zebra giraffe', of which the tokenizer knows no word"):
        processor(text_target=["a dog", "zebra giraffe"])


@pytest.mark.parametrize("captions", [["a dog", "a cat"], [["a dog"], ["a cat"]], []])
def test_more_or_fewer_captions_than_images_are_an_error(processor, pixels, captions):
    with pytest.raises(ValueError, match=f"`text_target` holds {len(captions)} captions for 1 images"):
        processor(images=pixels, text_target=captions)


def test_unequal_numbers_of_captions_are_an_error(processor):
    with pytest.raises(ValueError, match=r"lists of \[1, 2\] captions: pass the same number"):
        processor(text_target=[["a dog"], ["a cat", "a"]])


@pytest.mark.parametrize("captions", [[None], ["a dog", ["a cat"]], [["a dog", 3]]])
def test_a_caption_that_is_no_string_is_an_error(processor, captions):
    with pytest.raises(ValueError, match=r"`text_target` holds .*: pass a string"):
        processor(text_target=captions)


# --- sentences ------------------------------------------------------------------------------------------------------


def test_generated_sequences_decode_to_clean_sentences(processor):
    sequences = torch.tensor([[1, *processor(text_target="the man's dog")["labels"][0], 0, 0]])
    assert processor.batch_decode(sequences) == ["the man's dog"]
    assert processor.batch_decode(sequences.numpy(), skip_special_tokens=True) == ["the man's dog"]
    assert processor.decode(sequences[0]) == "the man's dog"


def test_labels_decode_to_their_captions(processor):
    captions = ["a dog jumps over a bar", "a cat"]
    labels = processor(text_target=captions, return_tensors="pt").labels
    assert processor.batch_decode(labels) == captions


# --- other components, saving ---------------------------------------------------------------------------------------


@pytest.fixture
def bpe_backend() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["[PAD]", "[BOS]", "[EOS]"], initial_alphabet=alphabet)
    backend.train_from_iterator(["a dog jumps over a bar"] * 3, trainer)
    return backend


def test_another_tokenizer_works_as_well(bpe_backend):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe_backend, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]"
    )
    processor = CnnRnnProcessor.from_image_size(8, tokenizer)
    labels = processor(text_target=["a dog jumps", "zebra"], return_tensors="pt").labels
    assert (labels == tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1]
    assert (labels[:, 0] != tokenizer.bos_token_id).all()
    assert processor.batch_decode(labels, skip_special_tokens=True) == ["a dog jumps", "zebra"]
    assert processor(text="a")["input_ids"][0][0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    "tokens",
    [
        {"pad_token": "[PAD]", "eos_token": "[EOS]"},
        {"bos_token": "[BOS]", "eos_token": "[EOS]"},
        {"pad_token": "[PAD]", "bos_token": "[BOS]"},
        {"pad_token": "[EOS]", "bos_token": "[BOS]", "eos_token": "[EOS]"},
    ],
)
def test_a_tokenizer_without_three_different_marks_is_an_error(bpe_backend, tokens):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe_backend, **tokens)
    with pytest.raises(ValueError, match="`tokenizer` must have three different tokens"):
        CnnRnnProcessor.from_image_size(8, tokenizer)


def test_saving_and_loading_keeps_everything(tmp_path, processor, pixels):
    processor.save_pretrained(tmp_path)
    loaded = CnnRnnProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.image_processor.resample == Image.Resampling.BICUBIC
    arguments = {"images": pixels, "text": "a photo", "text_target": "a dog", "return_tensors": "pt"}
    before, after = processor(**arguments), loaded(**arguments)
    assert set(before) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_saving_writes_the_filter_that_resizes(tmp_path, tokenizer):
    CnnRnnProcessor(ConvNextImageProcessorPil(), tokenizer).save_pretrained(tmp_path)
    assert '"resample"' in (tmp_path / "processor_config.json").read_text()


def test_the_image_processor_of_a_pretrained_cnn_is_found(tmp_path, tokenizer):
    ViTImageProcessorPil(size={"height": 9, "width": 9}, image_mean=[0.1] * 3, resample=2).save_pretrained(tmp_path)
    processor = CnnRnnProcessor.from_encoder_pretrained(tmp_path, tokenizer)
    assert processor.image_processor.backend == "pil"
    assert list(processor.image_processor.image_mean) == [0.1] * 3
    assert processor.tokenizer is tokenizer


@pytest.mark.parametrize(
    ("own", "size", "crop_size"),
    [
        (ViTImageProcessorPil(size={"height": 8, "width": 4}), {"height": 16, "width": 8}, None),
        (ConvNextImageProcessorPil(size={"shortest_edge": 8}), {"shortest_edge": 16}, None),
        (
            BitImageProcessorPil(size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8}),
            {"shortest_edge": 20},
            {"height": 16, "width": 16},
        ),
    ],
)
def test_a_pretrained_cnn_can_be_shown_larger_images(tmp_path, tokenizer, own, size, crop_size):
    own.save_pretrained(tmp_path)
    processor = CnnRnnProcessor.from_encoder_pretrained(tmp_path, tokenizer, image_size=16)
    assert dict(processor.image_processor.size) == size
    assert crop_size is None or dict(processor.image_processor.crop_size) == crop_size
    processor.save_pretrained(tmp_path)
    pixel_values = CnnRnnProcessor.from_pretrained(tmp_path)(images=Image.new("RGB", (30, 30)), return_tensors="pt")
    assert pixel_values["pixel_values"].shape[2] == 16


@pytest.mark.parametrize("image_size", [0, -224, (224, 0)])
def test_an_image_size_is_positive(tmp_path, tokenizer, image_size):
    with pytest.raises(ValueError, match=r"`image_size` is .*: pass a positive number of pixels"):
        CnnRnnProcessor.from_image_size(image_size, tokenizer)
    ViTImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`image_size` is .*: pass a positive number of pixels"):
        CnnRnnProcessor.from_encoder_pretrained(tmp_path, tokenizer, image_size=image_size)


def test_center_crop_keeps_the_shape_of_things(tokenizer):
    image = Image.new("RGB", (30, 10), "white")
    image.paste("black", (0, 0, 10, 10))  # the left third
    options = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "resample": Image.Resampling.NEAREST}
    squashed = CnnRnnProcessor.from_image_size(10, tokenizer, **options)(images=image, return_tensors="pt")
    cropped = CnnRnnProcessor.from_image_size(10, tokenizer, center_crop=True, **options)(
        images=image, return_tensors="pt"
    )
    assert squashed.pixel_values.mean() == pytest.approx(2 / 3, abs=0.05)
    assert cropped.pixel_values.mean() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"`image_size` is \(8, 9\): `center_crop=True` needs one number"):
        CnnRnnProcessor.from_image_size((8, 9), tokenizer, center_crop=True)
    assert CnnRnnProcessor.from_image_size((8, 9), tokenizer)(images=image, return_tensors="pt").pixel_values.shape[
        2:
    ] == (8, 9)


# --- Large JPEG files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_jpeg(tmp_path_factory) -> Path:
    """A JPEG of 1200 x 900 pixels with the spectrum of a photograph: noise whose amplitude falls with its frequency."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(900)[:, None], np.fft.rfftfreq(1200)[None])
    frequency[0, 0] = 1
    layers = [
        np.fft.irfft2(np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency, (900, 1200)) for _ in range(3)
    ]
    gray, *_ = layers = [128 + 48 * (layer - layer.mean()) / layer.std() for layer in layers]
    pixels = np.stack([0.8 * gray + 0.2 * layer for layer in layers], axis=-1)
    path = tmp_path_factory.mktemp("photographs") / "large.jpg"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_hardly_differs(large_jpeg, tokenizer):
    processor = CnnRnnProcessor.from_image_size(150, tokenizer, True, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert processor.load_image(large_jpeg).size == (600, 450)
    assert processor.load_image(large_jpeg, draft=False).size == (1200, 900)
    exact = processor(images=large_jpeg, draft=False, return_tensors="pt")["pixel_values"]
    for image in (large_jpeg, large_jpeg.read_bytes()):
        difference = (processor(images=image, return_tensors="pt")["pixel_values"] - exact).abs()
        assert 0 < difference.mean() < 0.002
    assert torch.equal(processor(images=Image.open(large_jpeg), return_tensors="pt")["pixel_values"], exact)


@pytest.mark.parametrize("options", [{"size": {"shortest_edge": 151}}, {"do_resize": False}], ids=["large", "as it is"])
def test_what_is_hardly_resized_is_decoded_whole(large_jpeg, tokenizer, options):
    processor = CnnRnnProcessor.from_image_size(150, tokenizer, center_crop=True)
    drafted, exact = (
        processor(images=large_jpeg, draft=draft, return_tensors="pt", **options)["pixel_values"]
        for draft in (True, False)
    )
    assert torch.equal(drafted, exact)


def test_an_image_that_somebody_has_opened_keeps_its_size(large_jpeg, tokenizer):
    image = Image.open(large_jpeg)
    CnnRnnProcessor.from_image_size(24, tokenizer)(images=image)
    assert image.size == (1200, 900)
