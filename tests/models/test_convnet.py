"""The small CNN: its layers against plain functions of torch, whitening, sizes, saving, and as the encoder of a captioner."""

import logging
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from support.tiny_models import changed, snapshot
from torch.nn import functional
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetForImageClassification,
    pipeline,
)

from modeling_cnnrnn import (
    CnnRnnForConditionalGeneration,
    ConvNetConfig,
    ConvNetForImageClassification,
    ConvNetModel,
)


CONVNETJS = {
    "layers": [{"channels": channels, "kernel_size": 5, "pool_size": 2} for channels in (16, 20, 20)],
    "whitening_size": 0,
    "norm": "none",
    "hidden_act": "relu",
    "pooling": "flatten",
    "divide_logits": False,
}
TINY = {"layers": [{"channels": 4, "depth": 2, "pool_size": 2}, {"channels": 6, "depth": 3, "residual": True}]}


def make_classifier(**options) -> ConvNetForImageClassification:
    torch.manual_seed(0)
    return ConvNetForImageClassification(ConvNetConfig(**{"num_labels": 5, **options})).eval()


@torch.no_grad()
def test_the_network_of_convnetjs_is_the_one_of_its_page():
    """conv 5x5x16, relu, pool, conv 5x5x20, relu, pool, conv 5x5x20, relu, pool, fully connected: 22,466 numbers for 10 classes."""
    model = make_classifier(**CONVNETJS, num_labels=10)
    weights = list(model.parameters())
    assert sum(weight.numel() for weight in weights) == 22466
    pixel_values = x = torch.randn(2, 3, 32, 32)
    for weight, bias in zip(weights[0:6:2], weights[1:6:2], strict=True):
        x = functional.max_pool2d(functional.conv2d(x, weight, bias, padding=2).relu(), 2)
    assert_close(model(pixel_values).logits, functional.linear(x.flatten(1), *weights[6:]))


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_the_network_of_airbench_is_the_one_of_its_paper(training):
    """A whitening layer, groups of convolution, pool, norm, GELU, convolution, norm, GELU, then the largest cell."""
    model = make_classifier().train(training)
    pixel_values = torch.randn(4, 3, 32, 32)
    weights = {name.removeprefix("convnet."): value.clone() for name, value in model.state_dict().items()}
    x = functional.conv2d(pixel_values, weights["whitening.convolution.weight"], weights["whitening.convolution.bias"])
    x = functional.gelu(x)
    for layer in range(3):
        for index in range(2):
            x = functional.conv2d(x, weights[f"layers.{layer}.convolutions.{index}.weight"], padding=1)
            x = functional.max_pool2d(x, 2) if index == 0 else x
            norm = [weights[f"layers.{layer}.norms.{index}.{name}"] for name in ("running_mean", "running_var", "bias")]
            x = functional.gelu(functional.batch_norm(x, norm[0], norm[1], None, norm[2], training))
    assert x.shape[1:] == (256, 3, 3)
    assert_close(
        model(pixel_values).logits, functional.linear(x.flatten(2).amax(2), weights["classifier.weight"]) / 256
    )


@torch.no_grad()
def test_a_residual_layer_adds_its_first_convolution_to_its_last():
    model = make_classifier(**TINY, norm="none")
    first, second = model.convnet(torch.randn(1, 3, 16, 16), output_hidden_states=True).hidden_states[1:]
    layer = model.convnet.layers[1]
    start = functional.gelu(layer.convolutions[0](first))
    end = functional.gelu(layer.convolutions[2](functional.gelu(layer.convolutions[1](start))))
    assert_close(second, start + end)


@torch.no_grad()
def test_an_odd_kernel_without_padding_reads_a_whole_map():
    model = make_classifier(layers=[{"channels": 5, "kernel_size": 7, "padding": False}], norm="none", whitening_size=0)
    pictures, convolution = torch.randn(2, 3, 7, 7), model.convnet.layers[0].convolutions[0]
    linear = pictures.flatten(1) @ convolution.weight.flatten(1).T + convolution.bias
    assert_close(model.convnet(pictures).last_hidden_state.flatten(1), functional.gelu(linear))
    assert model.config.feature_size(7) == 1
    with pytest.raises(ValueError, match="7 x 7"):
        model(torch.randn(1, 3, 6, 6))


@torch.no_grad()
def test_whitened_patches_are_uncorrelated():
    model = make_classifier()
    smooth = functional.interpolate(torch.randn(64, 3, 8, 8), scale_factor=4, mode="bilinear")
    model.convnet.initialize_whitening(smooth, epsilon=0)
    convolution = model.convnet.whitening.convolution
    filtered = functional.conv2d(smooth, convolution.weight).transpose(0, 1).flatten(1)
    assert_close(filtered[:12] @ filtered[:12].T / filtered.shape[1], torch.eye(12), rtol=0, atol=1e-3)
    assert torch.equal(filtered[12:], -filtered[:12])
    assert not convolution.weight.requires_grad
    assert convolution.bias.requires_grad


@torch.no_grad()
def test_a_new_convolution_passes_its_input_on():
    convolution = make_classifier().convnet.layers[1].convolutions[1]
    x = torch.randn(1, 256, 4, 4)
    assert_close(convolution(x), x)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        TINY,
        {"layers": [{"channels": 3, "kernel_size": 4, "stride": 3, "pool_size": 2, "depth": 2}], "image_size": 60},
    ],
    ids=["airbench", "tiny", "even"],
)
def test_the_size_of_the_map_is_foreseen_and_smaller_pictures_are_refused(options):
    model = make_classifier(**options)
    smallest = model.config.min_image_size
    for size in (smallest, smallest + 1, smallest + 7):
        feature_map = model.convnet(torch.zeros(1, 3, size, size)).last_hidden_state
        assert feature_map.shape[2:] == 2 * (model.config.feature_size(size),)
    with pytest.raises(ValueError, match=f"the smallest are {smallest} x {smallest}"):
        model(torch.zeros(1, 3, smallest - 1, smallest + 5))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": []}, "`layers` has 0"),
        ({"layers": [{"chanels": 3}]}, "layer 1 of `layers` has the field 'chanels'"),
        ({"layers": [{"channels": 8}, {"depth": 2}]}, "layer 2 of `layers` has no `channels`"),
        ({"layers": [{"channels": 8, "kernel_size": 0}]}, "`kernel_size` of layer 1 is 0"),
        ({"layers": [{"channels": True}]}, "`channels` of layer 1 is True"),
        ({"layers": [{"channels": 10**9}]}, "pass a number from 1 to"),
        ({"layers": [{"channels": 8, "kernel_size": 2, "depth": 2, "residual": True}]}, "odd `kernel_size`"),
        ({"layers": [3]}, "Invalid item at index 0 in list 'layers'"),
        ({"image_size": 8}, "take pictures of 9 to"),
        ({"hidden_act": "sharp"}, "`hidden_act` is 'sharp'"),
        ({"pooling": "sum"}, "pooling"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_in_a_sentence(options, sentence):
    with pytest.raises(StrictDataclassError, match=sentence):
        ConvNetConfig(**options)


@torch.no_grad()
def test_pictures_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"pass \(batch_size, 3, height, width\)"):
        make_classifier(**TINY)(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="pass 32 x 32"):
        make_classifier(**CONVNETJS)(torch.zeros(1, 3, 40, 32))


def test_labels_give_the_cross_entropy_and_a_gradient_to_every_weight():
    model = make_classifier(**TINY).train()
    outputs = model(torch.randn(3, 3, 32, 32), labels=torch.tensor([1, 4, -100]))
    assert_close(outputs.loss, functional.cross_entropy(outputs.logits[:2], torch.tensor([1, 4])))
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradient_checkpointing_changes_no_gradient():
    pixel_values, gradients = torch.randn(3, 3, 32, 32), []
    for checkpointed in (False, True):
        model = make_classifier(**TINY, norm="none").train()
        if checkpointed:
            model.activation_checkpointing_enable()
        model(pixel_values, labels=torch.tensor([1, 4, 0])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_close(*gradients)


@pytest.fixture
def saved(tmp_path):
    """A classifier and its image processor in a folder."""
    from transformers import ViTImageProcessorPil

    model = make_classifier(**TINY, id2label=dict(enumerate("abcde")))
    model.save_pretrained(tmp_path / "classifier")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@torch.no_grad()
def test_auto_classes_and_the_pipeline_load_a_classifier(saved):
    model, loaded = make_classifier(**TINY), AutoModelForImageClassification.from_pretrained(saved)
    assert type(loaded) is ConvNetForImageClassification
    assert changed(snapshot(model), loaded) == set()
    assert type(AutoModel.from_pretrained(saved)) is ConvNetModel
    image = Image.linear_gradient("L").convert("RGB")
    inputs = AutoImageProcessor.from_pretrained(saved)(image, return_tensors="pt")
    probabilities = model(**inputs).logits.softmax(1)[0]
    answers = pipeline("image-classification", model=str(saved))(image)
    assert answers[0]["label"] == "abcde"[probabilities.argmax()]
    assert answers[0]["score"] == pytest.approx(probabilities.max().item())


@torch.no_grad()
@pytest.mark.parametrize("is_convnet", [True, False])
def test_a_classifier_becomes_an_encoder_without_a_report_of_its_head(
    saved, tiny_encoder_config, pixel_values, is_convnet, tmp_path, caplog
):
    if not is_convnet:
        saved = tmp_path / "resnet"
        ResNetForImageClassification(tiny_encoder_config).save_pretrained(saved)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        captioner = CnnRnnForConditionalGeneration.from_encoder_pretrained(saved, vocab_size=20)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""
    cnn = AutoModelForImageClassification.from_pretrained(saved).base_model
    assert changed(snapshot(cnn), captioner.get_encoder().cnn) == set()
    captioner.save_pretrained(tmp_path / "captioner")
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    assert torch.equal(loaded.generate(pixel_values), captioner.generate(pixel_values))


STRANGER = """
import sys
sys.modules["modeling_cnnrnn"] = None
import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForImageTextToText, pipeline
classifier, captioner = sys.argv[1:]
pixel_values = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
print(pipeline("image-classification", model=classifier, trust_remote_code=True).model(pixel_values).logits.tolist())
assert AutoModel.from_pretrained(classifier, trust_remote_code=True)(pixel_values).last_hidden_state.ndim == 4
model = AutoModelForImageTextToText.from_pretrained(captioner, trust_remote_code=True)
print(model.generate(pixel_values=pixel_values, max_length=6).tolist())
"""


@pytest.mark.slow
@torch.no_grad()
def test_classifier_and_captioner_load_where_the_package_is_not_installed(saved, tmp_path):
    captioner = CnnRnnForConditionalGeneration.from_encoder_pretrained(saved, vocab_size=20)
    captioner.save_pretrained(tmp_path / "captioner")
    words = [sys.executable, "-c", STRANGER, str(saved), str(tmp_path / "captioner")]
    finished = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr[-2000:]
    pixel_values = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    logits = make_classifier(**TINY)(pixel_values).logits
    sentence = captioner.generate(pixel_values=pixel_values, max_length=6)
    assert finished.stdout.splitlines()[-2:] == [str(logits.tolist()), str(sentence.tolist())]
