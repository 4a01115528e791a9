"""torchvision's ResNet, whose layers old captioners keep in an `nn.Sequential`, as transformers' ResNet."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import ResNetConfig


FIRST_STAGE = 4  # in the `nn.Sequential`, after convolution, norm, activation and pooling


def convert_resnet(weights: Mapping[str, torch.Tensor], prefix: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Rename the weights of `nn.Sequential(*list(resnet.children())[:-1])`.

    Args:
        weights: a state dict.
        prefix: of the ResNet in its names, `"resnet."`.

    Returns:
        The configuration of the CNN and its state dict.

    Raises:
        ValueError: it is no ResNet of torchvision.
    """
    found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    renamed = {_rename(name): value for name, value in found.items()}
    first = "encoder.stages.{}.layers.0.layer.{}.convolution.weight"
    is_bottleneck = first.format(0, 2) in renamed
    depths: list[int] = []
    hidden_sizes: list[int] = []
    while first.format(len(depths), 0) in renamed:
        stage = len(depths)
        blocks = {name.split(".")[4] for name in renamed if name.startswith(f"encoder.stages.{stage}.")}
        depths.append(len(blocks))
        hidden_sizes.append(renamed[first.format(stage, 2 if is_bottleneck else 1)].shape[0])
    if "embedder.embedder.convolution.weight" not in renamed or not depths:
        raise ValueError("The CNN of the checkpoint is no ResNet of torchvision: no other is converted.")
    config = ResNetConfig(
        embedding_size=renamed["embedder.embedder.convolution.weight"].shape[0],
        depths=depths,
        hidden_sizes=hidden_sizes,
        layer_type="bottleneck" if is_bottleneck else "basic",
    )
    return config.to_dict(), renamed


def _rename(name: str) -> str:
    """Rename a weight; one that torchvision does not have keeps its name, and is then refused as unknown."""
    if match := re.fullmatch(r"([01])\.(\w+)", name):
        return f"embedder.embedder.{('convolution', 'normalization')[int(match[1])]}.{match[2]}"
    if match := re.fullmatch(r"(\d+)\.(\d+)\.downsample\.([01])\.(\w+)", name):
        part = ("convolution", "normalization")[int(match[3])]
        return f"encoder.stages.{int(match[1]) - FIRST_STAGE}.layers.{match[2]}.shortcut.{part}.{match[4]}"
    if match := re.fullmatch(r"(\d+)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name):
        part = {"conv": "convolution", "bn": "normalization"}[match[3]]
        layer = f"encoder.stages.{int(match[1]) - FIRST_STAGE}.layers.{match[2]}.layer.{int(match[4]) - 1}"
        return f"{layer}.{part}.{match[5]}"
    return name
