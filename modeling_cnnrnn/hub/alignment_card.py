"""Write the model card of an alignment of images and sentences, from the files of its training and its evaluation."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader

from ..files import whole_folder, write_text
from .card_facts import PICTURES, hub_name
from .redaction import Redaction


CURVES = "training_curves.png"
RECALLS = tuple(f"{direction}_R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10))


def write_alignment_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    output_dir: str | os.PathLike | None = None,
    license: str | None = None,
    repository: str | os.PathLike | None = None,
) -> Path:
    """
    Write README.md, and the curves of the training into the folder card/.

    Args:
        folder: the results of `train_alignment.py`, and of `evaluate_alignment.py` in `evaluation` there.
        repo_id: the model's name on the Hub; by default the card uses the name of `folder`.
        output_dir: folder of the card; `folder` by default.
        license: licence of the weights.
        repository: folder of config.json; `folder` by default.

    Returns:
        The path of README.md.
    """
    folder = Path(folder)
    output_dir, repository = (folder if path is None else Path(path) for path in (output_dir, repository))
    redaction = Redaction(folder, repo_id)
    training = redaction.redact(_read(folder / "training_results.json"))
    evaluation = redaction.redact(_read(folder / "evaluation" / "eval_results.json"))
    results = {name: evaluation[name] for name in ("alignment", "less hubs") if name in evaluation}
    split = evaluation.get("split", training.get("data", {}).get("validation_split", "validation"))
    if not results and training.get("best"):
        results = {"alignment": training["best"]}
    dataset = (evaluation or training.get("data", {})).get("dataset_name", "a dataset")
    with whole_folder(output_dir / PICTURES) as pictures:
        has_curves = (folder / CURVES).is_file()
        if has_curves:
            shutil.copyfile(folder / CURVES, pictures / CURVES)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
    body = environment.get_template("alignment_card.md.jinja").render(
        title=(repo_id or redaction.model).split("/")[-1],
        model=redaction.model,
        config=_read(repository / "config.json"),
        training=training,
        results=results,
        recalls=RECALLS,
        dataset=dataset,
        split=split,
        curves=f"{PICTURES}/{CURVES}" if has_curves else None,
    )
    metadata = _metadata(results, str(dataset), str(split), license, (repo_id or redaction.model).split("/")[-1])
    write_text(output_dir / "README.md", f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")
    return output_dir / "README.md"


def _metadata(results: dict[str, Any], dataset: str, split: str, license: str | None, title: str) -> ModelCardData:
    scores = results.get("alignment", {})
    hub_dataset = hub_name(dataset)
    eval_results = [
        EvalResult(
            task_type="image-to-text" if name.startswith("image") else "text-to-image",
            task_name="Image-text retrieval",
            dataset_type=hub_dataset or "dataset",
            dataset_name=dataset,
            dataset_split=split,
            metric_type="recall",
            metric_name=name.replace("_", " "),
            metric_value=round(scores[name], 2),
        )
        for name in RECALLS
        if name in scores
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license=license,
        datasets=[hub_dataset] if hub_dataset else None,
        tags=["image-text-retrieval", "visual-grounding", "cnn"],
        model_name=title,
        eval_results=eval_results or None,
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
