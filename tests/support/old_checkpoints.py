"""Checkpoints of old programs as those wrote them, with random weights; `golden/` has what their own code computes with these."""

import json
import pickle
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from support.old_weights import draw_weights
from support.paths import ROOT
from support.torch7_writer import Closure, Object, Writer


SELF_CRITICAL = ("fc", "newfc", "show_tell", "att2in", "att2in2", "adaatt", "adaattmo", "updown")
GOLDEN = ROOT / "tests" / "converters" / "golden"


def read_golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def as_tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def dump_object(full_name: str, state: dict[str, Any], path: Path) -> None:
    """Pickle an object of a class `module.Class` that is nowhere else."""
    module_name, name = full_name.rsplit(".", 1)
    kind = type(name, (), {"__module__": module_name})
    module = ModuleType(module_name)
    setattr(module, name, kind)
    value = kind()
    value.__dict__.update(state)
    with patch.dict(sys.modules, {module_name: module}):
        path.write_bytes(pickle.dumps(value))


def pytorch_tutorial_weights(golden: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    encoder, decoder = draw_weights(golden["encoder"], 0, 4.0), draw_weights(golden["decoder"], 1, 5.0)
    decoder["linear.bias"][:3] = -9, -9, 0.5  # a trained model writes neither <pad> nor <start>
    return encoder, decoder


def write_pytorch_tutorial(folder: Path, golden: dict[str, Any]) -> list[str]:
    encoder, decoder = pytorch_tutorial_weights(golden)
    torch.save(as_tensors(encoder), folder / "encoder-5-3000.ckpt")
    torch.save(as_tensors(decoder), folder / "decoder-5-3000.ckpt", _use_new_zipfile_serialization=False)
    words = {word: i for i, word in enumerate(golden["words"])}
    state = {"word2idx": words, "idx2word": {i: word for word, i in words.items()}, "idx": len(words)}
    dump_object("build_vocab.Vocabulary", state, folder / "vocab.pkl")
    return [str(folder / name) for name in ("encoder-5-3000.ckpt", "decoder-5-3000.ckpt", "vocab.pkl")]


def neuraltalk2_weights(golden: dict[str, Any]) -> dict[str, Any]:
    weights = draw_weights(golden["layout"], 0, 2.0)
    weights["decoder.weight"] *= 2
    return weights


def write_neuraltalk2(folder: Path, golden: dict[str, Any]) -> list[str]:
    weights = neuraltalk2_weights(golden)

    def module(name: str, prefix: str, **fields: Any) -> Object:
        return Object(name, weight=weights[f"{prefix}.weight"], bias=weights[f"{prefix}.bias"], train=False, **fields)

    cnn = []
    for index, (kind, *numbers) in enumerate(golden["cnn"], 1):
        if kind == "convolution":
            sizes = {"kW": 3, "kH": 3, "dW": 1, "dH": 1, "padW": 1, "padH": 1}
            cnn += [module("cudnn.SpatialConvolution", f"cnn.{index}", **sizes), Object("cudnn.ReLU", inplace=True)]
        elif kind == "linear":
            cnn += [module("nn.Linear", f"cnn.{index}"), Object("cudnn.ReLU"), Object("nn.Dropout", p=0.5)]
        else:
            cnn.append(
                Object("cudnn.SpatialMaxPooling", kW=numbers[0], kH=numbers[0]) if numbers else Object("nn.View")
            )
    nodes = [Object("nngraph.Node", data={"annotations": {}, "selectindex": 1}, children=[])]
    for name in ("i2h_1", "h2h_1", "decoder"):
        data = {"module": module("nn.Linear", name), "annotations": {"name": name}, "mapindex": {nodes[-1]: 1}}
        nodes.append(Object("nngraph.Node", data=data, children=[nodes[-1]], id=len(nodes)))
    hidden_size, embedding_size = weights["h2h_1.weight"].shape[1], weights["i2h_1.weight"].shape[1]
    language_model = Object(
        "nn.LanguageModel",
        core=Object("nn.gModule", forwardnodes=nodes, fg={"nodes": nodes}, hook=Closure()),
        lookup_table=Object("nn.LookupTable", weight=weights["lookup_table.weight"]),
        vocab_size=len(golden["words"]),
        num_layers=1,
        rnn_size=hidden_size,
        input_encoding_size=embedding_size,
        seq_length=golden["seq_length"],
    )
    checkpoint = {
        "opt": {"drop_prob_lm": 0.5, "seq_per_img": 5},
        "protos": {"cnn": Object("nn.Sequential", modules=cnn), "lm": language_model},
        "vocab": {str(i): word for i, word in enumerate(golden["words"], 1)},
        "loss_history": {1: 2.5},
    }
    path = folder / "model_id1.t7"
    with open(path, "wb") as file:
        Writer(file, "Cuda").write(checkpoint)
    return [str(path)]


def neuraltalk_weights(golden: dict[str, Any]) -> dict[str, Any]:
    """The matrices of NeuralTalk, in float64; they stand on the left of what they multiply."""
    weights = draw_weights({name: shape[::-1] for name, shape in golden["layout"].items()}, golden["seed"], 2.0)
    return {name: weight.T.astype(np.float64) * golden["scales"].get(name, 1) for name, weight in weights.items()}


def write_neuraltalk(folder: Path, golden: dict[str, Any]) -> list[str]:
    words = golden["words"]
    checkpoint = {
        "model": neuraltalk_weights(golden),
        "params": golden["params"],
        "wordtoix": {"#START#": 0, **{word: i for i, word in enumerate(words[1:], 1)}},
        "ixtoword": dict(enumerate(words)),
        "perplexity": np.float64(9.5),
        "epoch": 1.5,
    }
    path = folder / "model_checkpoint_flickr8k.p"
    path.write_bytes(pickle.dumps(checkpoint, protocol=0))
    return [str(path)]


def show_attend_tell_weights(golden: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    encoder, decoder = draw_weights(golden["encoder"], 0, 3.0), draw_weights(golden["decoder"], golden["seed"], 3.0)
    decoder["fc.bias"][[golden["words"].index(word) for word in ("<pad>", "<start>", "<end>")]] = -30, -30, 1.5
    return encoder, decoder


def write_show_attend_tell(folder: Path, golden: dict[str, Any]) -> list[str]:
    encoder_weights, decoder_weights = show_attend_tell_weights(golden)
    module = ModuleType("models")
    for name in ("Encoder", "DecoderWithAttention", "Attention"):
        setattr(module, name, type(name, (torch.nn.Module,), {"__module__": "models"}))
    encoder = _make_modules(as_tensors(encoder_weights), {"": module.Encoder})
    encoder.enc_image_size = golden["enc_image_size"]
    kinds = {"": module.DecoderWithAttention, "attention": module.Attention}
    decoder = _make_modules(as_tensors(decoder_weights), kinds)
    path = folder / "BEST_checkpoint_coco.pth.tar"
    state = {"epoch": 3, "encoder": encoder, "decoder": decoder, "encoder_optimizer": None}
    with patch.dict(sys.modules, {"models": module}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sources that are not there
        torch.save(state, path, _use_new_zipfile_serialization=False)
    words = {word: i for i, word in enumerate(golden["words"])}
    (folder / "WORDMAP_coco.json").write_text(json.dumps(words))
    return [str(path), str(folder / "WORDMAP_coco.json")]


def _make_modules(weights: dict[str, torch.Tensor], kinds: dict[str, type]) -> torch.nn.Module:
    """Make a tree of modules with these parameters; `kinds` are the classes of some, by their names."""
    root = kinds[""]()
    for name, value in weights.items():
        module, path = root, name.split(".")
        for depth, part in enumerate(path[:-1], 1):
            if part not in module._modules:
                module.add_module(part, kinds.get(".".join(path[:depth]), torch.nn.Module)())
            module = module._modules[part]
        if "running" in name or not value.is_floating_point():
            module.register_buffer(path[-1], value)
        else:
            module.register_parameter(path[-1], torch.nn.Parameter(value))
    return root


def self_critical_weights(golden: dict[str, Any]) -> dict[str, Any]:
    weights = draw_weights(golden["layout"], golden["seed"], golden["scale"])
    weights["logit.bias"][0] += golden["end"]  # sentences of a few words
    return weights


def write_self_critical(folder: Path, golden: dict[str, Any]) -> list[str]:
    torch.save(as_tensors(self_critical_weights(golden)), folder / "model-best.pth")
    infos = {
        "opt": Namespace(**golden["options"]),
        "vocab": {str(i): word for i, word in enumerate(golden["words"]) if i},
        "iter": 3,
        "best_val_score": np.float64(0.9),
        "loader_state_dict": {"train": {"index_list": [2, 0, 1], "iter_counter": 1}},
    }
    (folder / "infos_fc-best.pkl").write_bytes(pickle.dumps(infos, protocol=2))
    return [str(folder / "model-best.pth"), str(folder / "infos_fc-best.pkl")]


WRITERS = {
    "neuraltalk-lstm": write_neuraltalk,
    "neuraltalk-lstm-tanh": write_neuraltalk,
    "neuraltalk-rnn": write_neuraltalk,
    "neuraltalk-rnn-once": write_neuraltalk,
    "neuraltalk2": write_neuraltalk2,
    "pytorch_tutorial": write_pytorch_tutorial,
    **{f"self_critical-{name}": write_self_critical for name in SELF_CRITICAL},
    "show_attend_tell": write_show_attend_tell,
}


def write_checkpoint(name: str, folder: Path) -> list[str]:
    """Write the files of a checkpoint of a format, and return them."""
    return WRITERS[name](folder, read_golden(name))
