"""
NeuralTalk2 by Andrej Karpathy (github.com/karpathy/neuraltalk2): checkpoints `model_id*.t7`.

A VGG-16 with a last linear layer and a ReLU, and an LSTM that reads the image before the start token, which is the end token
too (`misc/LanguageModel.lua`). Images are squashed to 256 x 256, the middle is cut out, the mean of VGG's training is subtracted
(`misc/net_utils.lua`); its first convolution has been turned to RGB in training.
"""

from typing import Any

import torch
from PIL.Image import Resampling
from transformers import BitImageProcessorPil

from ..models.configuration_convnet_cnnrnn import ConvNetConfig
from .converted import Converted, order_gates, squash
from .torch7_files import Table
from .vocabulary import PUNCTUATION, Vocabulary


STAND_INS = ()
IMAGE_SIZE, CROP_SIZE = 256, 224
VGG_MEAN = (123.68, 116.779, 103.939)  # of red, green and blue in [0, 255]
PASSED_OVER = ("ReLU", "Dropout", "View", "Reshape")  # the layers of a `ConvNetModel` have them


def is_checkpoint(content: Any) -> bool:
    return isinstance(content, Table) and {"protos", "vocab"} <= content.items.keys()


FILES = {"checkpoint": is_checkpoint}


def convert(checkpoint: Table) -> Converted:
    """Convert the table that `train.lua` saves."""
    model, rows = checkpoint["protos"]["lm"], checkpoint["vocab"].items
    words = {word: int(row) - 1 for row, word in rows.items()}
    unknown = words.pop("UNK", None)
    end = int(model["vocab_size"])
    vocab = Vocabulary(words, end, end, unknown=unknown, removed=PUNCTUATION)

    cnn_config, cnn = _convert_cnn(checkpoint["protos"]["cnn"]["modules"].values())
    weights = {f"model.encoder.cnn.{name}": value for name, value in cnn.items()}
    linear = _named_modules(model["core"])
    hidden_size, embedding_size = int(model["rnn_size"]), int(model["input_encoding_size"])
    for layer in range(int(model["num_layers"])):
        for old, new in (("i2h", "ih"), ("h2h", "hh")):
            module = linear[f"{old}_{layer + 1}"]
            weights[f"model.decoder.layers.{layer}.weight_{new}_l0"] = order_gates(module["weight"])
            weights[f"model.decoder.layers.{layer}.bias_{new}_l0"] = order_gates(module["bias"])
    weights["model.encoder.projection.weight"] = torch.eye(embedding_size)  # the linear layer is the CNN's last
    weights["model.encoder.projection.bias"] = torch.zeros(embedding_size)
    weights["model.decoder.embed_tokens.weight"] = vocab.embedding(model["lookup_table"]["weight"])
    output = vocab.output(linear["decoder"]["weight"], linear["decoder"]["bias"])
    weights["lm_head.weight"], weights["lm_head.bias"] = output

    config = {
        "encoder": cnn_config.to_dict(),
        "embedding_size": embedding_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": int(model["num_layers"]),
        "image_injection": "first_token",
        "dropout": float(checkpoint["opt"].get("drop_prob_lm", 0.5)),
    }
    generation = {"max_length": int(model["seq_length"]) + 1, "num_beams": 2, "length_penalty": 0.0}
    return Converted(vocab, config, weights, _image_processor(), generation)


def _named_modules(graph: Table) -> dict[str, Table]:
    """Find the modules of an `nn.gModule` by the names that their nodes are annotated with."""
    nodes = [node["data"] for node in graph["forwardnodes"].values()]
    return {data["annotations"]["name"]: data["module"] for data in nodes if data["annotations"].get("name")}


def _convert_cnn(modules: list[Table]) -> tuple[ConvNetConfig, dict[str, torch.Tensor]]:
    """
    Convert an `nn.Sequential` of convolutions, ReLUs, maxima and linear layers to a [`ConvNetModel`].

    A linear layer is a convolution over the whole of a map, and a maximum before a ReLU the same as behind it.
    """
    layers: list[dict[str, Any]] = []
    weights: dict[str, torch.Tensor] = {}
    for module in modules:
        kind = module.name.split(".")[-1]
        if kind in ("SpatialConvolution", "SpatialConvolutionMM", "Linear"):
            channels = layers[-1]["channels"] if layers else 3
            weight = module["weight"].float()
            side = int((weight[0].numel() // channels) ** 0.5)
            is_linear = kind == "Linear"
            if not is_linear and (module["dW"], module["dH"], module["padW"], module["padH"]) != (1, 1, 1, 1):
                raise ValueError("A convolution of the CNN has a stride or a padding that VGG does not have.")
            weights[f"layers.{len(layers)}.convolutions.0.weight"] = weight.reshape(-1, channels, side, side)
            weights[f"layers.{len(layers)}.convolutions.0.bias"] = module["bias"].float()
            layers.append({"channels": weight.shape[0], "kernel_size": side, "padding": not is_linear})
        elif kind == "SpatialMaxPooling":
            layers[-1]["pool_size"] = int(module["kW"])
        elif kind not in PASSED_OVER:
            raise ValueError(f"The CNN has a layer {module.name}: only those of VGG are converted.")
    config = ConvNetConfig(
        layers=layers, whitening_size=0, norm="none", hidden_act="relu", pooling="mean", image_size=_image_size(layers)
    )
    return config, weights


def _image_size(layers: list[dict[str, Any]]) -> int:
    """Compute the side of the pictures of which linear layers read the whole map."""
    sides = [layer["kernel_size"] for layer in layers if not layer["padding"]]
    size = sides[0]
    for layer in layers:
        size *= layer.get("pool_size", 1)
    return size


def _image_processor() -> BitImageProcessorPil:
    mean, std = [value / 255 for value in VGG_MEAN], [1 / 255] * 3
    return squash(IMAGE_SIZE, CROP_SIZE, resample=Resampling.BILINEAR, image_mean=mean, image_std=std)
