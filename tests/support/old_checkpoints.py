"""Checkpoints of old programs as those wrote them, with random weights; `golden/` has what their own code computes with these."""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from support.old_weights import draw_weights
from support.paths import ROOT


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


WRITERS = {"pytorch_tutorial": write_pytorch_tutorial}


def write_checkpoint(name: str, folder: Path) -> list[str]:
    """Write the files of a checkpoint of a format, and return them."""
    return WRITERS[name](folder, read_golden(name))
