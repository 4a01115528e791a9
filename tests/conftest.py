"""Tiny random models, images and captions for every test: a fixed seed, no network, one thread."""

import os
import tempfile


os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
# the code of repositories, which each worker of a parallel run loads for itself
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from support.tiny_models import ATTENTION_TYPES, CAPTIONS, FAMILY, IMAGE_INJECTIONS, RNN_TYPES
from transformers import BitImageProcessorPil, PretrainedConfig, PreTrainedTokenizerBase, ResNetConfig, set_seed

from modeling_cnnrnn import (
    CnnRnnConfig,
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
    ImageToTextPipeline,
    build_tokenizer,
)
from modeling_cnnrnn.data.shapes.drawing import build_shapes


def _decoders() -> list[dict]:
    """The decoders that are products of options; of one and of two layers in turns, so that each option is seen with both."""
    return [
        {
            "rnn_type": rnn_type,
            "attention_type": attention_type,
            "image_injection": image_injection,
            "num_hidden_layers": 1 + (i + j + k) % 2,
        }
        for i, rnn_type in enumerate(RNN_TYPES)
        for j, attention_type in enumerate(ATTENTION_TYPES)
        for k, image_injection in enumerate(IMAGE_INJECTIONS)
    ]


# the tests that the decoders of the papers take part in; in the others, those that are made of the same parts stand for them
LAWS_OF_THE_FAMILY = {
    "test_a_batch_is_its_images_one_by_one",
    "test_cached_logits_are_the_uncached",
    "test_decoder_follows_its_equations",
    "test_every_decoder_writes_as_in_the_plain_loop",
    "test_every_layer_is_called",
    "test_gathered_and_plain_steps_agree",
    "test_gradients_are_those_of_finite_differences",
    "test_masked_tokens_are_not_read",
    "test_saved_model_loads_bit_equal",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Leave to the slow tests what the decoders of the papers are not likely to break alone."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("decoder_options") in FAMILY.values() and item.originalname not in LAWS_OF_THE_FAMILY:
            item.add_marker(pytest.mark.slow)


torch.set_num_threads(1)  # here, for fixtures of modules too: sums over several threads round differently


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Curves, sheets of captions and confusion matrices are blank: to draw them takes longer than a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_cnnrnn.training.curves._save", save_blank)
        yield


def save_blank(figure: Figure, path: Path) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Image.new("RGB", (400, 300), "white").save(path)
    pyplot.close(figure)


@pytest.fixture(autouse=True)
def seed():
    set_seed(0)


@pytest.fixture
def tiny_encoder_config() -> PretrainedConfig:
    """A ResNet that makes a `(batch, 16, 4, 4)` feature map of a 32 x 32 image."""
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


@pytest.fixture
def make_config(tiny_encoder_config) -> Callable[..., CnnRnnConfig]:
    """`make_config(rnn_type="gru", ...)`: the tiny configuration with other options."""

    def make(**options) -> CnnRnnConfig:
        defaults = {
            "encoder": tiny_encoder_config.to_dict(),
            "vocab_size": 20,
            # all sizes differ, or a transposed matrix would go unnoticed
            "hidden_size": 14,
            "embedding_size": 12,
            "attention_size": 10,
            "dropout": 0.0,
            # weights large enough that images and words make a difference
            "initializer_range": 0.5,
        }
        return CnnRnnConfig(**(defaults | options))

    return make


@pytest.fixture
def make_model(make_config) -> Callable[..., CnnRnnForConditionalGeneration]:
    """`make_model(rnn_type="gru", ...)`: a tiny captioner in evaluation mode, the same at every call."""

    def make(**options) -> CnnRnnForConditionalGeneration:
        set_seed(0)
        return CnnRnnForConditionalGeneration(make_config(**options)).eval()

    return make


@pytest.fixture
def tiny_config(make_config) -> CnnRnnConfig:
    return make_config()


@pytest.fixture
def tiny_model(make_model) -> CnnRnnForConditionalGeneration:
    return make_model()


@pytest.fixture(
    params=[
        *(pytest.param(options, id="-".join(map(str, options.values()))) for options in _decoders()),
        *(pytest.param(options, id=name) for name, options in FAMILY.items()),
    ]
)
def decoder_options(request) -> dict:
    """Each decoder in turn, as options of the configuration."""
    return request.param


@pytest.fixture
def any_model(make_model, decoder_options) -> CnnRnnForConditionalGeneration:
    """The tiny captioner with each decoder in turn."""
    return make_model(**decoder_options)


@pytest.fixture
def pixel_values() -> torch.Tensor:
    """Three images of noise, each in its own colour."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(3, 3, 1, 1, generator=generator) + torch.randn(3, 3, 32, 32, generator=generator)


@pytest.fixture
def regions(pixel_values) -> torch.Tensor:
    """What the decoder looks at: sixteen regions of each of three images."""
    return torch.randn(len(pixel_values), 16, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    """A caption of each image, of different lengths: one end token each, then padding."""
    return torch.tensor([[4, 9, 13, 7, 2], [5, 11, 2, 0, 0], [19, 2, 0, 0, 0]])


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A word-level tokenizer, as large as the vocabulary of `tiny_model`."""
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    assert len(tokenizer) == 20
    return tokenizer


@pytest.fixture
def tiny_processor(tiny_tokenizer):
    """Images to 32 x 32 pixels, captions to tokens."""
    image_processor = BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    )
    return CnnRnnProcessor(image_processor, tiny_tokenizer)


@pytest.fixture(scope="session")
def pictures() -> datasets.Dataset:
    """Ten pictures of shapes, 32 x 32, with captions."""
    return build_shapes(num_train=10, num_validation=1, num_test=1, image_size=32)["train"]


@pytest.fixture
def processor(pictures) -> CnnRnnProcessor:
    """For `pictures`: their size, and the words of their captions."""
    return CnnRnnProcessor.from_image_size(32, build_tokenizer(pictures["captions"], min_frequency=1))


@pytest.fixture
def model(make_model, tiny_processor):
    """A captioner whose sentences differ from image to image and come to an end."""
    model = make_model(attention_type="additive", initializer_range=2.0)
    model.lm_head.bias.data[tiny_processor.tokenizer.eos_token_id] = 1.0
    model.generation_config.update(max_length=8, suppress_tokens=[0, 1, 3])
    return model


@pytest.fixture
def pipe(model, tiny_processor) -> ImageToTextPipeline:
    return ImageToTextPipeline(model, processor=tiny_processor, device="cpu")
