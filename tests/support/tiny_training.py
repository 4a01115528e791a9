"""Options of a training that takes seconds, and what it leaves."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


TINY_CNN = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
TINY = {
    "encoder_config": json.dumps(TINY_CNN),
    "image_size": 32,
    "hidden_size": 16,
    "embedding_size": 16,
    "attention_size": 16,
    "attention_type": "additive",
    "min_frequency": 1,
    "per_device_train_batch_size": 4,
    "ema_decay": 0,
    "logging_steps": 1,
    "eval_epochs": 0.5,
    "save_total_limit": 9,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    """Loss at each step up to the last checkpoint, and those on the validation split."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    return [row["loss"] for row in state["steps"]] + [row["loss"] for row in state["evaluations"]]
