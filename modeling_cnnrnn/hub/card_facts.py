"""Gather the facts of a model card from the files that a training and an evaluation have written."""

import csv
import inspect
import io
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from ..data.shapes.drawing import build_shapes
from .redaction import Redaction


PICTURES = "card"  # folder of the card's pictures
PICTURE_SIZE = 192  # drawn pictures are enlarged to it, photographs reduced
SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "accuracy")
# the paper of each choice in a configuration
PAPERS = {
    "first_token": "vinyals2015show",
    "initial_state": "xu2015show",
    "additive": "xu2015show",
    "bias_first_step": "karpathy2015deep",
    "bias_every_step": "karpathy2015deep",
    "att2in": "rennie2017self",
    "adaptive": "lu2017knowing",
    "adaptive_mlp": "lu2017knowing",
    "up_down": "anderson2018bottom",
}


def gather_facts(folder: Path, repository: Path, redaction: Redaction) -> dict[str, Any]:
    """
    Read the facts that files hold; those of files that are absent are empty.

    Args:
        folder: what `train_captioner.py` and `evaluate_captioner.py` (in evaluation/) wrote.
        repository: folder of config.json, the weights and the processor.
        redaction: removes tokens and local paths.
    """
    config = _read_json(repository / "config.json")
    *earlier, training = redaction.redact(_read_trainings(folder))
    evaluation = redaction.redact(_read_json(folder / "evaluation" / "eval_results.json"))
    captions = Counter(row["caption"] for row in read_rows(folder))
    options = {k: v for part in ("data", "model", "training", "stages") for k, v in training.get(part, {}).items()}
    if options.get("model_name_or_path"):  # what it was when it was new is in its configuration
        options = {name: value for name, value in options.items() if name not in config}
    results = evaluation.get("results", {})
    return {
        "size": _size(repository),
        "config": config,
        "image_size": _read_json(repository / "processor_config.json").get("image_processor", {}).get("size", {}),
        "training": training,
        "earlier": earlier,
        "options": options,
        "energy": _energy(folder / "emissions.csv", training),
        "evaluation": evaluation,
        "protocol": evaluation.get("protocol", {}),
        "results": {name.removeprefix("beam "): scores for name, scores in results.items() if name.startswith("beam ")},
        "scores": SCORES,
        "different": len(captions),
        "most_frequent": captions.most_common(1),
        "base_model": hub_name([*earlier, training][0].get("model", {}).get("encoder_name_or_path")),
        "papers": {PAPERS[config[name]] for name in ("image_injection", "attention_type") if config[name] in PAPERS},
    }


def describe_dataset(
    facts: dict[str, Any],
    dataset_id: str | None,
    title: str | None,
    license: str | None,
    description: str | None,
) -> dict[str, Any]:
    """Describe the training data, from the options of the training and from what the caller states."""
    trained_on = facts["training"].get("data", {}).get("dataset_name")
    name = trained_on or facts["protocol"].get("dataset_name")
    dataset_id = dataset_id or hub_name(trained_on)
    files = ", ".join(Path(part).stem for part in (name or "").split(","))
    dataset = {"name": name, "id": dataset_id, "license": license, "description": description}
    dataset["title"] = title or dataset_id or files
    if name == "shapes":
        defaults = {key: value.default for key, value in inspect.signature(build_shapes).parameters.items()}
        dataset |= {"shapes": defaults, "license": license or "apache-2.0"}
    return dataset


def copy_pictures(folder: Path, pictures: Path) -> dict[str, list[dict[str, Any]]]:
    """
    Copy the pictures of an evaluation, in the size that the card shows.

    Args:
        folder: what the evaluation wrote is in `evaluation` there.
        pictures: the folder to copy to.

    Returns:
        From the name of a group, such as "best", to its rows, with `file` added.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(read_rows(folder), key=lambda row: row.get("picture") or ""):
        source = folder / "evaluation" / (row.get("picture") or "")
        if not source.is_file():
            continue
        image = Image.open(source).convert("RGB")
        name = Path(row["picture"])
        if scale := PICTURE_SIZE // max(image.size):
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        else:
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            name = name.with_suffix(".jpg")
        image.save(pictures / name.name, optimize=True)
        groups.setdefault(name.stem.split("-")[0], []).append(row | {"file": f"{PICTURES}/{name.name}"})
    return groups


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the images of an evaluation with their captions and scores."""
    path = folder / "evaluation" / "per_image.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def hub_name(name: str | None) -> str | None:
    """Return the name if it is one of the Hub and not a path."""
    name = (name or "").split("@")[0]
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    return name if is_name and not name.endswith((".json", ".csv", ".parquet", ".tar")) else None


def _read_trainings(folder: Path) -> list[dict[str, Any]]:
    """Read the results of the last training, behind those of the trainings before it that are on this machine."""
    results, seen = [_read_json(folder / "training_results.json")], {folder.resolve()}
    while before := results[0].get("model", {}).get("model_name_or_path"):
        found = _read_json(Path(before) / "training_results.json")
        if not found or Path(before).resolve() in seen:
            break
        seen.add(Path(before).resolve())
        results.insert(0, found)
    return results


def _size(repository: Path) -> dict[str, float]:
    """Count the parameters and buffers in the weights, as the Hub does, and the bytes of their files."""
    files = sorted(repository.glob("*.safetensors"))
    numbers = {"cnn": 0, "decoder": 0}
    for file in files:
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dictionary
                part = "cnn" if name.startswith("model.encoder.cnn.") else "decoder"
                numbers[part] += math.prod(weights.get_slice(name).get_shape())
    return {**numbers, "total": sum(numbers.values()), "bytes": sum(file.stat().st_size for file in files)}


def _energy(emissions: Path, training: dict[str, Any]) -> dict[str, Any]:
    """Sum the energy of all runs in codecarbon's file, or take it from the training's own results."""
    if not emissions.is_file():
        return {"kwh": training["energy_kwh"]} if training.get("energy_kwh") is not None else {}
    runs = list(csv.DictReader(io.StringIO(emissions.read_text(encoding="utf-8"))))
    if not runs:
        return {}
    return {
        "kwh": sum(float(run["energy_consumed"]) for run in runs),
        "grams": round(1000 * sum(float(run["emissions"]) for run in runs), 3),
        "country": runs[-1].get("country_name"),
        "hardware": runs[-1].get("gpu_model") or runs[-1].get("cpu_model"),
    }


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
