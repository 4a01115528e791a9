"""What several test modules ask of the tiny models."""

import torch
from torch import nn
from transformers import (
    BitConfig,
    ConvNextConfig,
    ConvNextV2Config,
    EfficientNetConfig,
    MobileNetV1Config,
    MobileNetV2Config,
    RegNetConfig,
    ResNetConfig,
)

from modeling_cnnrnn import ConvNetConfig
from modeling_cnnrnn.models.architectures_cnnrnn import ARCHITECTURES
from modeling_cnnrnn.models.encoder_cnnrnn import CnnRnnEncoderOutput


# the sixteen words of the tiny vocabulary, twenty tokens with the special ones
CAPTIONS = [
    "a dog jumps over a green triangle left of two blue circles",
    "a red circle above a blue square",
    "a square below a triangle",
]

RNN_TYPES = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
ATTENTION_TYPES = ["none", "additive"]
IMAGE_INJECTIONS = ["first_token", "initial_state", "bias_first_step", "bias_every_step"]

# the decoders of the papers that are not among the products of those three, and options that no paper has together
FAMILY: dict[str, dict] = {
    "fc": ARCHITECTURES["fc"],
    "nic": ARCHITECTURES["nic"],
    "show_attend_tell": ARCHITECTURES["show_attend_tell"] | {"feature_projection": "linear"},
    "att2in2": ARCHITECTURES["att2in2"],
    "adaptive": ARCHITECTURES["adaptive"] | {"hidden_size": 12},
    "adaatt": ARCHITECTURES["adaatt"],
    "updown": ARCHITECTURES["updown"],
    "other": {
        "rnn_type": "lstm_maxout",
        "num_hidden_layers": 2,
        "image_injection": "initial_state",
        "initial_state_activation": "linear",
        "attention_type": "additive",
        "attention_gate": "vector",
        "attention_activation": "relu",
        "deep_output": "tanh",
        "initializer_range": 0.3,
    },
}

TINY_CNNS = {
    "convnet": ConvNetConfig(layers=[{"channels": 8, "pool_size": 2}, {"channels": 16, "pool_size": 4}]),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "resnet-bottleneck": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1]),
    "regnet": RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4),
    "convnext": ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
    "convnextv2": ConvNextV2Config(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
    "bit": BitConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=2),
    "efficientnet": EfficientNetConfig(
        width_coefficient=0.25,
        depth_coefficient=0.25,
        image_size=32,
        hidden_dim=320,
        kernel_sizes=[3, 3],
        in_channels=[32, 16],
        out_channels=[16, 24],
        depthwise_padding=[],
        strides=[1, 2],
        num_block_repeats=[1, 1],
        expand_ratios=[1, 4],
    ),
    "mobilenet_v1": MobileNetV1Config(depth_multiplier=0.25, image_size=32, min_depth=8),
    "mobilenet_v2": MobileNetV2Config(depth_multiplier=0.1, image_size=32, min_depth=8),
}


def encoded(regions: torch.Tensor) -> CnnRnnEncoderOutput:
    """What an encoder returns; the image as a whole, where it is projected for itself, is twice the mean."""
    return CnnRnnEncoderOutput(last_hidden_state=regions, pooler_output=2 * regions.mean(dim=1))


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def train_a_little(model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor):
    """Take three steps, with an evaluation after each."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(pixel_values, labels=labels).loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(pixel_values, labels=labels)
        model.train()
