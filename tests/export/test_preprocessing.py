"""What an export writes down about an image processor and a tokenizer."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    PreTrainedTokenizerFast,
)

from modeling_cnnrnn import CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.export.captioner import Captioner
from modeling_cnnrnn.export.preprocessing import bytes_alone, check_pixels, measure_values, read_geometry
from modeling_cnnrnn.export.words import check_texts, token_texts


def captioner_with(settings: dict) -> Captioner:
    """A captioner without graphs."""
    captioner = Captioner.__new__(Captioner)
    captioner.settings = settings
    return captioner


IMAGE_PROCESSORS = {
    "bit": BitImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 32, "width": 40}),
    "squashed": BitImageProcessorPil(size={"height": 32, "width": 48}, do_center_crop=False, resample=2),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
    "convnext-384": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "efficientnet": EfficientNetImageProcessorPil(size={"height": 36, "width": 36}, rescale_offset=True),
    "mobilenet": MobileNetV2ImageProcessorPil(),
}


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
def test_pixels_are_those_of_the_image_processor(tiny_tokenizer, name):
    processor = CnnRnnProcessor(IMAGE_PROCESSORS[name], tiny_tokenizer)
    captioner = captioner_with(read_geometry(processor))
    check_pixels(captioner, bytes_alone(processor), processor)
    scale, offset = measure_values(processor)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (301, 517, 3), dtype=np.uint8))
    expected = processor(images=image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    computed = captioner.load_pixels(image) * scale.numpy() + offset.numpy()
    np.testing.assert_allclose(computed, expected, atol=1e-5)


def test_an_image_processor_that_does_more_is_refused(tiny_tokenizer):
    class Mirror(BitImageProcessorPil):
        def resize(self, image, **kwargs):
            return super().resize(image, **kwargs)[..., ::-1]

    processor = CnnRnnProcessor(Mirror(size={"height": 32, "width": 32}, do_center_crop=False), tiny_tokenizer)
    with pytest.raises(ValueError, match="a Mirror that does more than resize, crop at the centre and normalize"):
        check_pixels(captioner_with(read_geometry(processor)), bytes_alone(processor), processor)


def test_an_image_processor_that_does_not_resize_is_refused(tiny_tokenizer):
    processor = CnnRnnProcessor(BitImageProcessorPil(do_resize=False), tiny_tokenizer)
    with pytest.raises(ValueError, match="an export needs a height and a width"):
        read_geometry(processor)


def test_transparent_turned_and_large_photographs_are_loaded_as_the_processor_loads_them(tiny_processor, tmp_path):
    captioner = captioner_with(read_geometry(tiny_processor))
    photograph = Image.radial_gradient("L").convert("RGB").resize((60, 40))
    photograph.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(tmp_path / "turned.png", exif=exif)
    transparent = photograph.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize((60, 40)))
    transparent.save(tmp_path / "transparent.png")
    photograph.convert("P").save(tmp_path / "palette.png", transparency=3)
    Image.effect_noise((700, 600), 60).convert("RGB").save(tmp_path / "large.jpg")
    for name in ("turned.png", "transparent.png", "palette.png", "large.jpg"):
        expected = bytes_alone(tiny_processor)(images=tmp_path / name, return_tensors="np").pixel_values[0]
        np.testing.assert_array_equal(captioner.load_pixels(tmp_path / name), expected.transpose(1, 2, 0))


def test_texts_of_tokens_join_as_the_tokenizer_joins_them():
    tokenizer = build_tokenizer(
        ["a man's dog isn't here", "两只狗 at the 北京 gate", "well-known dogs' toys, 3.5 m"], 1
    )
    processor = CnnRnnProcessor(BitImageProcessorPil(), tokenizer)
    captioner = captioner_with(token_texts(processor, len(tokenizer)))
    check_texts(captioner, processor)
    ids = tokenizer("a man's 狗 狗 isn't", add_special_tokens=False)["input_ids"]
    assert captioner.decode(ids) == processor.decode(ids, skip_special_tokens=True) == "a man's 狗狗 isn't"


def test_a_tokenizer_whose_words_do_not_join_is_refused(tiny_processor):
    texts = token_texts(tiny_processor, 20)
    backwards = SimpleNamespace(batch_decode=lambda rows, **_: [tiny_processor.decode(row[::-1]) for row in rows])
    with pytest.raises(ValueError, match=r"`tokenizer` decodes \[.*an export needs a tokenizer whose words join"):
        check_texts(captioner_with(texts), backwards)


def test_pieces_of_words_join(tiny_tokenizer):
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {
        token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "dog", "##s", "run", "##ning"])
    }
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    processor = CnnRnnProcessor(BitImageProcessorPil(), tokenizer)
    captioner = captioner_with(token_texts(processor, 8))
    assert captioner.decode([1, 4, 5, 6, 7, 2]) == "dogs running"
