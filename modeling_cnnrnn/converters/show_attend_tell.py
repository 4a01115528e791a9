"""
Show, Attend and Tell in PyTorch by Sagar Vinodababu (github.com/sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning).

A ResNet-101 whose feature map is averaged to 14 x 14, attention with a ReLU and a gate for each feature, and an LSTM whose first
state is linear in the mean of the features (`models.py`). The checkpoint holds whole modules, the words are in `WORDMAP*.json`.
Images are squashed to 256 x 256; sentences are written with beams of 5 (`caption.py`).
"""

from typing import Any

import torch
from PIL.Image import Resampling

from .converted import Converted, squash
from .resnet import convert_resnet
from .unpickling import StandIn
from .vocabulary import Vocabulary


STAND_INS = (
    "models.Encoder",
    "models.DecoderWithAttention",
    "models.Attention",
    "torchvision.models.resnet.Bottleneck",
    "torchvision.models.resnet.BasicBlock",
)
IMAGE_SIZE = 256
MAX_LENGTH = 52  # the start and the 51 words at which the original gives up
MARKS = ("start", "end", "pad", "unk")


def is_checkpoint(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(name), StandIn) for name in ("encoder", "decoder"))


def is_word_map(content: Any) -> bool:
    return isinstance(content, dict) and {f"<{mark}>" for mark in MARKS} <= content.keys()


FILES = {"checkpoint": is_checkpoint, "word_map": is_word_map}


def convert(checkpoint: dict[str, Any], word_map: dict[str, int]) -> Converted:
    """Convert the modules `Encoder` and `DecoderWithAttention` with their word map."""
    encoder, decoder = state_dict_of(checkpoint["encoder"]), state_dict_of(checkpoint["decoder"])
    words = dict(word_map)
    start, end, padding, unknown = (words.pop(f"<{mark}>") for mark in MARKS)
    vocab = Vocabulary(words, start, end, padding, unknown)
    cnn_config, cnn = convert_resnet(encoder, "resnet.")

    weights = {f"model.encoder.cnn.{name}": value for name, value in cnn.items()}
    weights |= {f"model.decoder.{name}": value for name, value in convert_decoder(decoder).items()}
    weights["model.decoder.embed_tokens.weight"] = vocab.embedding(decoder["embedding.weight"])
    weights["lm_head.weight"], weights["lm_head.bias"] = vocab.output(decoder["fc.weight"], decoder["fc.bias"])
    config = {
        "encoder": cnn_config,
        "feature_map_size": vars(checkpoint["encoder"])["enc_image_size"],
        "feature_projection": "none",
        "region_size": decoder["init_h.weight"].shape[1],
        "embedding_size": decoder["embedding.weight"].shape[1],
        "hidden_size": decoder["init_h.weight"].shape[0],
        "image_injection": "initial_state",
        "initial_state_activation": "linear",
        "attention_type": "additive",
        "attention_size": decoder["attention.full_att.weight"].shape[1],
        "attention_activation": "relu",
        "attention_gate": "vector",
    }
    image_processor = squash(IMAGE_SIZE, resample=Resampling.BILINEAR)
    generation = {"max_length": MAX_LENGTH, "num_beams": 5, "length_penalty": 0.0}
    return Converted(vocab, config, weights, image_processor, generation)


def convert_decoder(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the attention and the LSTM. A number that all scores share drops out of the softmax: the bias of `full_att`."""
    converted = {
        "attention.key.weight": weights["attention.encoder_att.weight"],
        "attention.query.weight": weights["attention.decoder_att.weight"],
        "attention.query.bias": weights["attention.decoder_att.bias"] + weights["attention.encoder_att.bias"],
        "attention.score.weight": weights["attention.full_att.weight"],
    }
    for kind in ("weight", "bias"):
        converted[f"attention.gate.{kind}"] = weights[f"f_beta.{kind}"]
        converted[f"initial_state.{kind}"] = torch.cat([weights[f"init_{state}.{kind}"] for state in ("h", "c")])
        for side in ("ih", "hh"):
            converted[f"layers.0.{kind}_{side}_l0"] = weights[f"decode_step.{kind}_{side}"]
    return converted


def state_dict_of(module: StandIn, prefix: str = "") -> dict[str, torch.Tensor]:
    """Collect the parameters and buffers of a module that was pickled whole."""
    fields = vars(module)
    own = {**fields.get("_parameters", {}), **fields.get("_buffers", {})}
    weights = {f"{prefix}{name}": value.detach() for name, value in own.items() if value is not None}
    for name, child in fields.get("_modules", {}).items():
        if child is not None:
            weights |= state_dict_of(child, f"{prefix}{name}.")
    return weights
