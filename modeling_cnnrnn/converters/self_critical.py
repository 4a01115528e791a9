"""
self-critical.pytorch and ImageCaptioning.pytorch by Ruotian Luo (github.com/ruotianluo): `model.pth` with `infos.pkl`.

Its models `fc` and `newfc` (a maxout LSTM that reads the image first), `show_tell`, `att2in`, `att2in2`, `adaatt`, `adaattmo` and
`updown` (`captioning/models`). Images come as features from outside; `fc_feats`, the image as a whole, is here the mean of the
regions `att_feats`. Token 0 is the start, the end and the padding unless the options say otherwise.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .converted import Converted, order_gates, squash
from .unpickling import StandIn
from .vocabulary import PUNCTUATION, Vocabulary


STAND_INS = ("argparse.Namespace",)
IMAGE_SIZE = 224
EPSILON = 1e-5  # of torch's BatchNorm

Weights = dict[str, torch.Tensor]


def is_model(content: Any) -> bool:
    if not isinstance(content, dict) or "logit.weight" not in content:
        return False
    return "embed.weight" in content or "embed.0.weight" in content


def is_infos(content: Any) -> bool:
    return isinstance(content, dict) and {"opt", "vocab"} <= content.keys()


FILES = {"model": is_model, "infos": is_infos}


def convert(model: Weights, infos: dict[str, Any]) -> Converted:
    """Convert a state dict with the options and the words of its `infos`."""
    options = vars(infos["opt"]) if isinstance(infos["opt"], StandIn) else infos["opt"]
    name = options["caption_model"]
    if name not in CONVERTERS:
        raise ValueError(f"The checkpoint is of the model '{name}': the models converted are {', '.join(CONVERTERS)}.")
    vocab = _vocabulary(infos["vocab"], options)
    config, weights = CONVERTERS[name](model, options)
    embedding = model["embed.weight" if "embed.weight" in model else "embed.0.weight"]
    config |= {
        "embedding_size": embedding.shape[1],
        "hidden_size": model["logit.weight"].shape[1],
        "dropout": float(options.get("drop_prob_lm", 0.5)),
    }
    weights["model.decoder.embed_tokens.weight"] = vocab.embedding(embedding)
    weights["lm_head.weight"], weights["lm_head.bias"] = vocab.output(model["logit.weight"], model["logit.bias"])
    max_length = (options.get("max_length") or 0) if name not in ("fc", "show_tell") else 0
    generation = {"max_length": int(max_length or options["seq_length"]) + 1, "num_beams": 1}
    return Converted(vocab, config, weights, squash(IMAGE_SIZE), generation)


def _vocabulary(ix_to_word: Mapping[str, str], options: Mapping[str, Any]) -> Vocabulary:
    start, end, padding = (int(options.get(f"{mark}_idx") or 0) for mark in ("bos", "eos", "pad"))
    marks = {start, end, padding}
    words = {word: int(row) for row, word in ix_to_word.items() if int(row) not in marks}
    unknown = words.pop("UNK", None)
    return Vocabulary(words, start, end, padding if padding not in (start, end) else None, unknown, PUNCTUATION)


def _convert_fc(model: Weights, options: Mapping[str, Any]) -> tuple[dict[str, Any], Weights]:
    """FC and NewFC, which differ in the names of their layers."""
    old, core = ("img_embed", "core") if "img_embed.weight" in model else ("fc_embed", "_core")
    weights = _layer(0, _sums(model, f"{core}.i2h"), _sums(model, f"{core}.h2h"), order_maxout_gates)
    weights |= _rename(model, {old: "encoder.projection"})
    config = {
        "rnn_type": "lstm_maxout",
        "image_injection": "first_token",
        "feature_size": model[f"{old}.weight"].shape[1],
    }
    return config, weights


def _convert_show_tell(model: Weights, options: Mapping[str, Any]) -> tuple[dict[str, Any], Weights]:
    """Show and Tell: layers of torch without biases."""
    num_layers = sum(name.startswith("core.weight_ih_l") for name in model)
    weights = _rename(model, {"img_embed": "encoder.projection"})
    for layer in range(num_layers):
        inputs, hidden = (model[f"core.weight_{side}_l{layer}"] for side in ("ih", "hh"))
        bias = inputs.new_zeros(inputs.shape[0])
        weights |= _layer(layer, (inputs, bias), (hidden, bias), torch.Tensor.float)
    rnn_type = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh"}[options["rnn_type"].lower()]
    config = {
        "rnn_type": rnn_type,
        "num_hidden_layers": num_layers,
        "image_injection": "first_token",
        "feature_size": model["img_embed.weight"].shape[1],
    }
    return config, weights


def _convert_att2in(model: Weights, options: Mapping[str, Any]) -> tuple[dict[str, Any], Weights]:
    """Att2in of the paper, and Att2in2 with a layer before the regions and a ReLU behind the words."""
    weights = _layer(0, _sums(model, "core.i2h"), _sums(model, "core.h2h"), order_maxout_gates)
    weights |= _convert_attention(model, "core.attention.h2att") | _rename(
        model, {"core.a2c": "decoder.attention.context"}
    )
    config: dict[str, Any] = {"rnn_type": "lstm_maxout", "image_injection": "none", "attention_type": "att2in"}
    config["attention_size"] = model["ctx2att.weight"].shape[0]
    if options["caption_model"] == "att2in":
        size = model["ctx2att.weight"].shape[1]
        return config | {"feature_size": size, "region_size": size, "feature_projection": "none"}, weights
    embedder, further = _convert_embedders(model)
    return config | further, weights | embedder


def _convert_adaatt(model: Weights, options: Mapping[str, Any]) -> tuple[dict[str, Any], Weights]:
    """Adaptive attention; `adaattmo` has a maxout LSTM."""
    if "core.lstm.r_w2h.weight" not in model:
        raise ValueError("The model has several recurrent layers: `adaatt` is converted with one.")
    is_maxout = options["caption_model"] == "adaattmo"
    inputs = _side_by_side(model, "core.lstm.w2h", "core.lstm.v2h")
    order = order_maxout_gates if is_maxout else order_gates
    weights = _layer(0, inputs, _sums(model, "core.lstm.h2h.0"), order)
    weights |= _convert_attention(model, "core.attention.ho_embed", "core.attention.alpha_net")
    weights |= _rename(
        model,
        {
            "core.attention.fr_linear.0": "decoder.attention.sentinel_layer",
            "core.attention.ho_linear.0": "decoder.attention.hidden_layer",
            "core.attention.att2h": "decoder.attention.output_layer",
            "core.attention.fr_embed": "decoder.attention.sentinel_key",
        },
    )
    # the query has the bias of the regions' keys, which the sentinel's is without
    weights["model.decoder.attention.sentinel_key.bias"] = model["core.attention.fr_embed.bias"] - model["ctx2att.bias"]
    sentinel, bias = _side_by_side(model, "core.lstm.r_w2h", "core.lstm.r_v2h")
    weights["model.decoder.attention.sentinel_input.weight"] = sentinel
    weights["model.decoder.attention.sentinel_input.bias"] = bias + model["core.lstm.r_h2h.bias"]
    weights["model.decoder.attention.sentinel_hidden.weight"] = model["core.lstm.r_h2h.weight"]
    embedder, config = _convert_embedders(model)
    config |= {
        "rnn_type": "lstm_maxout" if is_maxout else "lstm",
        "image_injection": "bias_every_step",
        "attention_type": "adaptive_mlp",
        "attention_size": model["ctx2att.weight"].shape[0],
    }
    return config, weights | embedder


def _convert_updown(model: Weights, options: Mapping[str, Any]) -> tuple[dict[str, Any], Weights]:
    """Up-Down. Its LSTMs read the state, the image and the word in another order."""
    size = model["logit.weight"].shape[1]
    weights: Weights = {}
    for layer, name in enumerate(("att_lstm", "lang_lstm")):
        inputs, hidden = (
            (model[f"core.{name}.weight_{side}"], model[f"core.{name}.bias_{side}"]) for side in ("ih", "hh")
        )
        weights |= _layer(layer, inputs, hidden, torch.Tensor.float)
    first, second = (weights[f"model.decoder.layers.{layer}.weight_ih_l0"] for layer in (0, 1))
    state, image, word = first[:, :size], first[:, size : 2 * size], first[:, 2 * size :]
    weights["model.decoder.layers.0.weight_ih_l0"] = torch.cat([word, image, state], dim=1)
    weights["model.decoder.layers.1.weight_ih_l0"] = torch.cat([second[:, size:], second[:, :size]], dim=1)
    weights |= _convert_attention(model, "core.attention.h2att")
    embedder, config = _convert_embedders(model)
    config |= {
        "num_hidden_layers": 2,
        "image_injection": "bias_every_step",
        "attention_type": "up_down",
        "attention_size": model["ctx2att.weight"].shape[0],
    }
    return config, weights | embedder


CONVERTERS: dict[str, Callable[[Weights, Mapping[str, Any]], tuple[dict[str, Any], Weights]]] = {
    "fc": _convert_fc,
    "newfc": _convert_fc,
    "show_tell": _convert_show_tell,
    "att2in": _convert_att2in,
    "att2in2": _convert_att2in,
    "adaatt": _convert_adaatt,
    "adaattmo": _convert_adaatt,
    "updown": _convert_updown,
    "topdown": _convert_updown,
}


def order_maxout_gates(rows: torch.Tensor) -> torch.Tensor:
    """Order the rows of a maxout LSTM from input, forget, output and two candidates to the output as the last."""
    in_gate, forget_gate, out_gate, first, second = rows.float().chunk(5)
    return torch.cat([in_gate, forget_gate, first, second, out_gate])


def _layer(index: int, inputs: tuple, hidden: tuple, order: Callable[[torch.Tensor], torch.Tensor]) -> Weights:
    """Name the matrices and biases of a recurrent layer, the rows in the order of this package."""
    weights = {}
    for side, (weight, bias) in (("ih", inputs), ("hh", hidden)):
        weights[f"model.decoder.layers.{index}.weight_{side}_l0"] = order(weight)
        weights[f"model.decoder.layers.{index}.bias_{side}_l0"] = order(bias)
    return weights


def _sums(model: Weights, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return model[f"{name}.weight"], model[f"{name}.bias"]


def _side_by_side(model: Weights, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one linear layer of a word and the image of two whose results are added."""
    first, second = (_sums(model, name) for name in names)
    return torch.cat([first[0], second[0]], dim=1), first[1] + second[1]


def _rename(model: Weights, names: Mapping[str, str]) -> Weights:
    return {f"model.{new}.{kind}": model[f"{old}.{kind}"] for old, new in names.items() for kind in ("weight", "bias")}


def _convert_attention(model: Weights, query: str, score: str = "core.attention.alpha_net") -> Weights:
    """Name the layers that compare state and regions. A number that all scores share drops out of the softmax."""
    return {
        "model.decoder.attention.key.weight": model["ctx2att.weight"],
        "model.decoder.attention.query.weight": model[f"{query}.weight"],
        "model.decoder.attention.query.bias": model[f"{query}.bias"] + model["ctx2att.bias"],
        "model.decoder.attention.score.weight": model[f"{score}.weight"],
    }


def _convert_embedders(model: Weights) -> tuple[Weights, dict[str, Any]]:
    """Convert the layers behind words, regions and the image, each with a ReLU; a BatchNorm before becomes a part of its layer."""
    if model["att_embed.0.weight"].ndim == 2:
        weight, bias = _sums(model, "att_embed.0")
    else:
        norm = {
            name: model[f"att_embed.0.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
        }
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + EPSILON)
        shift = norm["bias"] - norm["running_mean"] * scale
        linear, bias = (tensor.double() for tensor in _sums(model, "att_embed.1"))
        weight, bias = (linear * scale).float(), (bias + linear @ shift).float()
    if "att_embed.4.weight" in model:
        raise ValueError(
            "The model has a BatchNorm behind the regions (`use_bn` 2): it is converted with `use_bn` 0 and 1."
        )
    weights = {"model.encoder.projection.weight": weight, "model.encoder.projection.bias": bias}
    config: dict[str, Any] = {
        "feature_size": weight.shape[1],
        "region_size": weight.shape[0],
        "feature_projection": "relu",
        "embedding_activation": "relu",
    }
    if "fc_embed.0.weight" in model:
        weights |= _rename(model, {"fc_embed.0": "encoder.image_projection"})
        config["image_projection"] = True
    return weights, config
