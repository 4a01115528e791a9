"""Push a classifier: its repository with a card in a folder, tried, in one commit."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, EvalResult, ModelCardData
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..files import write_json, write_text
from .card_facts import hub_name
from .model_card import render
from .push import RESULTS, push_staged
from .redaction import Redaction


PICTURES = ("training_curves.png", "confusion_matrix.png")


def push_classifier(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload classifier",
    license: str | None = None,
) -> CommitInfo:
    """
    Push a classifier with its card, see [`~modeling_cnnrnn.hub.push.push_captioner`].

    Args:
        folder: what `train_classifier.py` wrote.
        license: the licence of the weights, for the card.

    Raises:
        ValueError: `repo_id` is not the name of a repository, or `folder` holds no classifier that loads.
        OSError: the Hub cannot be reached, or refuses the files.
    """

    def stage(staged: Path, name: str) -> None:
        stage_classifier(folder, staged, name, license)

    return push_staged(stage, folder, repo_id, private, revision, token, commit_message)


def stage_classifier(folder: str | Path, staged: str | Path, repo_id: str, license: str | None = None) -> None:
    """
    Make the repository of a classifier in an empty folder, and try it.

    Raises:
        ValueError: `folder` holds no classifier, or the repository made of it does not load.
    """
    folder, staged = Path(folder), Path(staged)
    try:
        model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise ValueError(f"`folder` is '{folder}', which holds no classifier: pass what a training wrote.") from error
    model.save_pretrained(staged)
    processor.save_pretrained(staged)
    _check_repository(staged, model, processor)
    redaction = Redaction(folder, repo_id)
    facts: dict[str, Any] = {}
    for name in RESULTS:
        if (folder / name).is_file():
            (staged / name).parent.mkdir(exist_ok=True)
            facts[Path(name).stem] = redaction.redact(json.loads((folder / name).read_text(encoding="utf-8")))
            write_json(staged / name, facts[Path(name).stem])
    pictures = [name for name in PICTURES if (folder / name).is_file()]
    for name in pictures:
        (staged / "card").mkdir(exist_ok=True)
        shutil.copyfile(folder / name, staged / "card" / name)
    write_text(staged / "README.md", _card(repo_id, model, facts, pictures, license))


def _check_repository(staged: Path, model: PreTrainedModel, processor: Any) -> None:
    """Load a repository with the code that is in it, and compare what it answers."""
    inputs = processor(Image.linear_gradient("L").convert("RGB"), return_tensors="pt")
    config = json.loads((staged / "config.json").read_text(encoding="utf-8"))
    name = config.get("auto_map", {}).get(AutoModelForImageClassification.__name__)
    try:
        model_class: Any = get_class_from_dynamic_module(name, str(staged)) if name else type(model)
        with torch.no_grad():
            answers = [each(**inputs).logits for each in (model, model_class.from_pretrained(staged).eval())]
    except Exception as error:  # with any error, nobody could load it
        raise ValueError(f"The repository made of the classifier does not load, and is not pushed: {error}") from error
    if not torch.equal(*answers):
        raise ValueError("The repository made of the classifier answers differently from it: it is not pushed.")


def _card(repo_id: str, model: PreTrainedModel, facts: dict[str, Any], pictures: list[str], license: str | None) -> str:
    training, evaluation = facts.get("training_results", {}), facts.get("eval_results", {})
    data = training.get("data", {})
    name = data.get("dataset_name")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_name(name) or Path(name or "pictures").name,
            dataset_name=Path(name or "pictures").name,
            metric_type="accuracy",
            metric_name=title,
            metric_value=round(evaluation[score], 4),
        )
        for score, title in (
            ("accuracy", "Accuracy"),
            ("accuracy_with_mirror", "Accuracy with the mirror image of each picture"),
        )
        if score in evaluation
    ]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=license,
        datasets=[name] if hub_name(name) else None,
        metrics=["accuracy"] if results else None,
        tags=["cnn", model.config.model_type],
        model_name=repo_id.split("/")[-1],
        eval_results=results or None,
    )
    content = {
        "repo_id": repo_id,
        "model": model,
        "parameters": model.num_parameters(),
        "has_code": bool(getattr(model.config, "auto_map", None)),
        "training": training,
        "data": data,
        "evaluation": evaluation,
        "pictures": pictures,
        "license": license,
    }
    return f"---\n{metadata.to_yaml()}\n---\n\n{render('classifier_card.md.jinja', content)}\n"
