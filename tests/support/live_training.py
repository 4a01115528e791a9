"""A training of seconds with a page: a small classifier of coloured noise."""

import json
import threading
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import set_seed

from modeling_cnnrnn.training.callbacks import TrainerCallback
from modeling_cnnrnn.training.classification import (
    ClassifierNetworks,
    build_classifier,
    build_datasets,
    prepare_classifier,
)
from modeling_cnnrnn.training.classification_arguments import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    ClassificationTrainingArguments,
)
from modeling_cnnrnn.training.classification_trainer import ClassificationTrainer
from modeling_cnnrnn.training.tracking import create_accelerator


CLASSES = ["blue", "green", "red"]
NETWORK = {"model_type": "convnet", "layers": [{"channels": 8, "pool_size": 2}, {"channels": 8}]}
SIDE = 12


def noise(number: int, seed: int) -> datasets.Dataset:
    """Noisy pictures of each color in turn."""
    pixels = np.random.default_rng(seed).integers(0, 120, (number, SIDE, SIDE, 3), dtype=np.uint8)
    labels = [index % 3 for index in range(number)]
    for picture, label in zip(pixels, labels, strict=True):
        picture[..., 2 - label] += 120
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=CLASSES),
            "image_id": datasets.Value("string"),
        }
    )
    rows = {"image": list(pixels), "label": labels, "image_id": [f"{seed}-{index}" for index in range(number)]}
    return datasets.Dataset.from_dict(rows, features)


def make_trainer(output_dir: Path, network: dict[str, Any] = NETWORK, **options) -> ClassificationTrainer:
    """A trainer of six steps, with a page unless `report_to` says otherwise."""
    defaults = {"num_train_epochs": 3, "per_device_train_batch_size": 12, "logging_steps": 1, "report_to": "live"}
    args = ClassificationTrainingArguments(output_dir=str(output_dir), **(defaults | options))
    data_args = ClassificationDataArguments(dataset_name="noise", max_shift=1)
    model_args = ClassificationModelArguments(model_config=json.dumps(network))
    accelerator = create_accelerator(args)
    set_seed(args.seed)
    rows, eval_rows = noise(24, 0), noise(6, 1)
    model, processor = build_classifier(data_args, model_args, rows)
    train_dataset, eval_dataset = build_datasets(rows, eval_rows, processor, data_args, args)
    prepare_classifier(model, train_dataset, model_args, args, accelerator)
    return ClassificationTrainer(
        model,
        processor,
        train_dataset,
        eval_dataset,
        accelerator,
        args,
        options={"data": asdict(data_args), "model": asdict(model_args), "training": asdict(args)},
        networks=ClassifierNetworks(data_args, model_args, args, rows, train_dataset, accelerator),
    )


class Ask(TrainerCallback):
    """Ask for something on the page after some steps."""

    def __init__(self, **wishes):
        self.wishes = {int(name.removeprefix("after_")): wish for name, wish in wishes.items()}
        self.seen: dict[int, tuple] = {}

    def on_step_end(self, trainer, loss):
        """The batch size is that of the next step."""
        group = trainer.optimizer.param_groups[0]
        self.seen[trainer.state.step] = (group["lr"], group.get("momentum"), trainer.epochs.batch_size)
        if wish := self.wishes.pop(trainer.state.step, None):
            # a network is tried by the training itself, so a thread asks for it
            threading.Thread(target=trainer.live.tracker.wish, args=(wish,)).start()
            deadline = time.monotonic() + 20
            while not trainer.live.is_asked and time.monotonic() < deadline:
                if not trainer.live.tracker.questions.empty():
                    trainer.live.on_step_end(trainer, loss)
                time.sleep(0.001)


def request(url: str, path: str = "", body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Ask the server of a page; returns the status and the text."""
    asked = urllib.request.Request(url.replace("/?", f"/{path}?"), body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def shown_in(path: Path) -> dict[str, Any]:
    """What a page that was written as a file shows."""
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("const saved = "))
    return json.loads(line.removeprefix("const saved = ").removesuffix(";"))
