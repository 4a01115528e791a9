"""
The captioner of the PyTorch tutorial by Yunjey Choi (github.com/yunjey/pytorch-tutorial, `03-advanced/image_captioning`).

A ResNet-152 whose pooled features go through a linear layer and a BatchNorm, and an LSTM that reads them before `<start>`.
Images are squashed to 224 x 224; sentences are written greedily.
"""

from typing import Any

import torch
from PIL.Image import Resampling

from .converted import Converted, squash
from .resnet import convert_resnet
from .unpickling import StandIn
from .vocabulary import Vocabulary


# of a build_vocab.py that is imported, or run as a script
STAND_INS = ("build_vocab.Vocabulary", "__main__.Vocabulary")
EPSILON = 1e-5  # of torch's BatchNorm
MAX_LENGTH = 20  # words that the original writes, `<start>` among them


def is_encoder(content: Any) -> bool:
    return isinstance(content, dict) and {"linear.weight", "bn.running_mean"} <= content.keys()


def is_decoder(content: Any) -> bool:
    return isinstance(content, dict) and {"embed.weight", "lstm.weight_ih_l0"} <= content.keys()


def is_vocabulary(content: Any) -> bool:
    return isinstance(content, StandIn) and isinstance(getattr(content, "word2idx", None), dict)


# of `encoder.ckpt`, `decoder.ckpt` and `vocab.pkl`
FILES = {"encoder": is_encoder, "decoder": is_decoder, "vocabulary": is_vocabulary}


def convert(encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor], vocabulary: StandIn) -> Converted:
    """Convert the state dicts of `EncoderCNN` and `DecoderRNN` with their `Vocabulary`."""
    words = dict(vars(vocabulary)["word2idx"])
    marks = {name: words.pop(f"<{name}>") for name in ("pad", "start", "end", "unk")}
    vocab = Vocabulary(words, marks["start"], marks["end"], marks["pad"], marks["unk"])
    cnn_config, cnn = convert_resnet(encoder, "resnet.")
    num_layers = sum(name.startswith("lstm.weight_ih_l") for name in decoder)

    weights = {f"model.encoder.cnn.{name}": value for name, value in cnn.items()}
    weights.update(_fold_batch_norm(encoder))
    weights["model.decoder.embed_tokens.weight"] = vocab.embedding(decoder["embed.weight"])
    for layer in range(num_layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            weights[f"model.decoder.layers.{layer}.{name}_l0"] = decoder[f"lstm.{name}_l{layer}"]
    output = vocab.output(decoder["linear.weight"], decoder["linear.bias"])
    weights["lm_head.weight"], weights["lm_head.bias"] = output

    config = {
        "encoder": cnn_config,
        "embedding_size": decoder["embed.weight"].shape[1],
        "hidden_size": decoder["lstm.weight_hh_l0"].shape[1],
        "num_hidden_layers": num_layers,
        "image_injection": "first_token",
        "dropout": 0.0,
    }
    return Converted(
        vocab, config, weights, squash(224, resample=Resampling.LANCZOS), {"max_length": MAX_LENGTH, "num_beams": 1}
    )


def _fold_batch_norm(encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make one linear layer of the linear layer and the BatchNorm behind it, which is fixed where nothing is trained."""
    scale = encoder["bn.weight"] / torch.sqrt(encoder["bn.running_var"] + EPSILON)
    bias = (encoder["linear.bias"] - encoder["bn.running_mean"]) * scale + encoder["bn.bias"]
    return {
        "model.encoder.projection.weight": encoder["linear.weight"] * scale[:, None],
        "model.encoder.projection.bias": bias,
    }
