"""
NeuralTalk by Andrej Karpathy and Fei-Fei Li (github.com/karpathy/neuraltalk): checkpoints `model_checkpoint_*.p`.

Pickles of Python 2 with matrices of float64. Images come as the 4,096 features of the last hidden layer of a VGG-16. The LSTM
(`imagernn/lstm_generator.py`) reads the image first, and has no tanh behind its memory unless `tanhC_version`; the RNN
(`imagernn/rnn_generator.py`) adds the image to each word, or with `rnn_feed_once` to the start. Row 0 is the start and the end.
"""

from typing import Any

import numpy as np
import torch

from .converted import Converted, order_gates, squash
from .vocabulary import PUNCTUATION, Vocabulary


STAND_INS = ()
IMAGE_SIZE = 224
MAX_LENGTH = 21  # the start and the 20 words at which the original gives up


def is_checkpoint(content: Any) -> bool:
    return isinstance(content, dict) and {"model", "params", "wordtoix", "ixtoword"} <= content.keys()


FILES = {"checkpoint": is_checkpoint}


def convert(checkpoint: dict[str, Any]) -> Converted:
    """Convert the dictionary that `driver.py` pickles."""
    arrays, params = checkpoint["model"], checkpoint["params"]
    matrices = {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in arrays.items()}
    words = {str(word): int(row) for row, word in checkpoint["ixtoword"].items() if row != 0}
    vocab = Vocabulary(words, start=0, end=0, removed=PUNCTUATION)
    convert_generator = {"lstm": _convert_lstm, "rnn": _convert_rnn}[params.get("generator", "lstm")]
    config, embedding, layer = convert_generator(matrices, params)

    weights = {f"model.decoder.layers.0.{name}_l0": value for name, value in layer.items()}
    weights["model.encoder.projection.weight"] = matrices["We"].T.contiguous()
    weights["model.encoder.projection.bias"] = matrices["be"].flatten()
    weights["model.decoder.embed_tokens.weight"] = vocab.embedding(embedding)
    weights["lm_head.weight"], weights["lm_head.bias"] = vocab.output(matrices["Wd"].T, matrices["bd"].flatten())
    config |= {
        "feature_size": matrices["We"].shape[0],
        "embedding_size": embedding.shape[1],
        "hidden_size": matrices["Wd"].shape[0],
        "dropout": float(params.get("drop_prob_decoder", 0.0)),
        "embedding_dropout": float(params.get("drop_prob_encoder", 0.0)),
        "feature_dropout": float(params.get("drop_prob_encoder", 0.0)),
    }
    generation = {"max_length": MAX_LENGTH, "num_beams": 1}
    return Converted(vocab, config, weights, squash(IMAGE_SIZE), generation)


def _convert_lstm(matrices: dict[str, torch.Tensor], params: dict[str, Any]):
    """Take the bias, the words and the state out of the one matrix of the LSTM. Returns config, embedding and layer."""
    rows, embedding = matrices["WLSTM"], matrices["Ws"]
    size = embedding.shape[1]
    layer = {
        "weight_ih": order_gates(rows[1 : 1 + size].T),
        "weight_hh": order_gates(rows[1 + size :].T),
        "bias_ih": order_gates(rows[0]),
        "bias_hh": torch.zeros(rows.shape[1]),
    }
    rnn_type = "lstm" if params.get("tanhC_version", 0) else "lstm_linear_output"
    return {"rnn_type": rnn_type, "image_injection": "first_token"}, embedding, layer


def _convert_rnn(matrices: dict[str, torch.Tensor], params: dict[str, Any]):
    """Apply the layer of the words, which the image does not pass, to their embedding. Returns as `_convert_lstm`."""
    embedding = matrices["Ws"] @ matrices["Wxh"] + matrices["bxh"]
    has_relu = bool(params.get("rnn_relu_encoders", 0))
    size = embedding.shape[1]
    layer = {
        "weight_ih": torch.cat([torch.eye(size), torch.eye(size)], dim=1),  # h = relu(x + v + W_hh h + b)
        "weight_hh": matrices["Whh"].T.contiguous(),
        "bias_ih": torch.zeros(size),
        "bias_hh": matrices["bhh"].flatten(),
    }
    config = {
        "rnn_type": "rnn_relu",
        "image_injection": "bias_first_step" if params.get("rnn_feed_once", 0) else "bias_every_step",
        "feature_projection": "relu" if has_relu else "linear",
    }
    return config, embedding.relu() if has_relu else embedding, layer
