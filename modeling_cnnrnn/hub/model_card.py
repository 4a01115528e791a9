"""
Write the model card: README.md of a captioner's repository, from the files of its training and its evaluation.

    python examples/train_captioner.py examples/recipes/shapes.json --output_dir outputs/shapes
    python examples/evaluate_captioner.py --model_name_or_path outputs/shapes --dataset_name shapes --split test \
        --num_beams 1 3 --output_dir outputs/shapes/evaluation
    cnnrnn card --model_name_or_path outputs/shapes --repo_id me/shapes-captioner --license apache-2.0

It reads config.json, the header of the weights, training_results.json, training_curves.png, codecarbon's emissions.csv and
evaluation/. A heading whose facts are absent is left out. The code in the card is run first, with the weights of the folder:
its outputs are real, and code that fails is left out. Tokens and local paths are removed.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader

from ..evaluation.results import ATTENTION_FIGURE
from ..files import check_writable, whole_folder, write_text
from .card_facts import PICTURES, copy_pictures, describe_dataset, gather_facts
from .card_metadata import card_metadata
from .card_uses import run_uses
from .redaction import Redaction


def write_model_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    output_dir: str | os.PathLike | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    language: str | None = None,
    tags: list[str] | None = None,
    base_model: str | None = None,
    dataset_id: str | None = None,
    dataset_title: str | None = None,
    dataset_license: str | None = None,
    dataset_description: str | None = None,
    show_pictures: bool = True,
    limits: list[str] | None = None,
    command: str | None = None,
    repository: str | os.PathLike | None = None,
) -> Path:
    """
    Write README.md and its pictures, the folder card/.

    Args:
        folder: the results of `train_captioner.py`, and of `evaluate_captioner.py` in `evaluation` there.
        repo_id: the captioner's name on the Hub; by default the card uses the name of `folder`.
        output_dir: folder of the card; `folder` by default.
        license, license_name, license_link, language, tags, base_model: metadata of the Hub. `base_model` is by default
            the CNN that the training started from, if it came from the Hub.
        dataset_id, dataset_title, dataset_license, dataset_description: facts about the training data.
        show_pictures: whether to show pictures of the evaluation, with the sentences about them.
        limits: sentences about what the captioner gets wrong, beside those that are measured.
        command: the command that makes the card again, for its last line.
        repository: folder of config.json, the weights and the processor; `folder` by default.

    Returns:
        The path of README.md.

    Raises:
        FileNotFoundError: there is no captioner.
        OSError: the folder of the card cannot be written to.
        HFValidationError: `repo_id` is not a valid name on the Hub.
    """
    folder = Path(folder)
    output_dir, repository = (folder if path is None else Path(path) for path in (output_dir, repository))
    _check(repository, repo_id)
    check_writable(output_dir)
    redaction = Redaction(folder, repo_id)
    facts = gather_facts(folder, repository, redaction)
    facts |= {
        "model": redaction.model,
        "title": (repo_id or redaction.model).split("/")[-1],
        "repo_id": repo_id,
        "output_dir": redaction.redact(str(output_dir)),
        "license": {"id": license, "name": license_name, "link": license_link},
        "limits": redaction.redact(limits or []),
        "dataset": describe_dataset(
            facts, dataset_id, dataset_title, dataset_license, redaction.redact(dataset_description)
        ),
        "base_model": base_model or facts["base_model"],
        "command": redaction.redact({"command": command})["command"],
    }
    facts["language"] = language or ("en" if facts["dataset"]["name"] == "shapes" else None)
    with whole_folder(output_dir / PICTURES) as pictures:
        facts |= _add_pictures(folder, pictures, show_pictures)
        picture = pictures / Path(facts["first_picture"]).name if facts["first_picture"] else None
        facts |= run_uses(repository, redaction.model, picture)
        text = f"---\n{card_metadata(facts, tags or []).to_yaml()}\n---\n\n{render('model_card.md.jinja', facts)}\n"
    write_text(output_dir / "README.md", text)
    return output_dir / "README.md"


def _check(folder: Path, repo_id: str | None) -> None:
    """Refuse a folder without a captioner, and a name that cannot be one on the Hub."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"`folder` is '{folder}', which holds no config.json with model.safetensors: pass the `output_dir` of a training."
        )
    if repo_id is not None:
        validate_repo_id(repo_id)


def _add_pictures(folder: Path, pictures: Path, show_evaluation: bool) -> dict[str, Any]:
    """Copy the pictures of the card, and name them."""
    groups = copy_pictures(folder, pictures) if show_evaluation else {}
    curves = "training_curves.png"
    if (folder / curves).is_file():
        shutil.copyfile(folder / curves, pictures / curves)
    attention = folder / "evaluation" / "pictures" / ATTENTION_FIGURE
    if show_evaluation and attention.is_file():
        shutil.copyfile(attention, pictures / ATTENTION_FIGURE)
    return {
        "groups": groups,
        "first_picture": next(iter(groups.values()))[0]["file"] if groups else None,
        "curves": f"{PICTURES}/{curves}" if (pictures / curves).exists() else None,
        "attention_figure": f"{PICTURES}/{ATTENTION_FIGURE}" if (pictures / ATTENTION_FIGURE).exists() else None,
    }


def render(template: str, facts: dict[str, Any]) -> str:
    """Fill a template of this room, without the blank lines that its absent parts leave."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": _cell, "duration": _duration, "wrapped": _wrapped}
    body = environment.get_template(template).render(facts)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", body)).strip()


def _cell(text: str) -> str:
    """Escape any text for a cell of a Markdown table."""
    return " ".join(re.sub(r"([\\|*_`\[\]])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").split())


def _wrapped(command: str) -> str:
    """Wrap a command into lines, each option with its values on one."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > 100:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _duration(seconds: float) -> str:
    """Write `3 min 29 s`."""
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{seconds:.1f} s"
