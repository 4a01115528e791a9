"""Score files in COCO's format: a results file against the references of its images."""

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from ..files import write_json
from .diversity import caption_health
from .scores import CaptionScores, caption_metrics, group_by_image


def score_files(
    results: Path,
    references: Path,
    *,
    metrics: Iterable[str] = ("bleu", "rouge", "cider"),
    training_captions: Path | None = None,
    subset: bool = False,
    timeout: float = 1800.0,
    output: Path | None = None,
) -> str:
    """
    Score a results file, and write all scores, those of each image too, as JSON.

    Args:
        results: predictions, `[{"image_id": 1, "caption": "..."}]`.
        references: `{"images": [...], "annotations": [...]}`.
        metrics: some of "bleu", "rouge", "cider", "meteor" and "spice".
        training_captions: references of the training set, to count new captions.
        subset: score only the images that have a prediction.
        timeout: seconds that METEOR and SPICE may each take.
        output: the file to write, by default `<results>_scores.json` beside the results.

    Returns:
        A table of the scores.

    Raises:
        ValueError: a file is missing or not in COCO's format, or the images differ.
        TypeError: a caption is not a string.
    """
    captions_of = read_references(references)
    predictions = read_results(results)
    if subset:
        captions_of = {image: captions for image, captions in captions_of.items() if image in predictions}
    scores = caption_metrics(predictions, captions_of, metrics, timeout)
    training = None
    if training_captions is not None:
        training = chain.from_iterable(read_references(training_captions).values())
    health = caption_health(list(predictions.values()), training)
    output = output or results.with_name(f"{results.stem}_scores.json")
    write_scores(output, scores, health, predictions)
    health_table = "\n".join(f"{name:12}{value:10.4g}" for name, value in health.items())
    return f"{len(predictions)} images\n\n{scores}\n\n{health_table}\n\nwritten to {output}"


def read_results(path: Path) -> dict[Any, str]:
    """Read the prediction of each image."""
    captions = _read_captions(_read_json(path), path)
    if several := [image for image, texts in captions.items() if len(texts) > 1]:
        raise ValueError(f"{path} has {len(captions[several[0]])} predictions for image {several[0]!r}: keep one.")
    return {image: texts[0] for image, texts in captions.items()}


def read_references(path: Path) -> dict[Any, list[str]]:
    """Read the captions of each image, in the order of the file's images, which is the order of coco-caption."""
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(f'{path} is not in COCO format: it has no list of "annotations".')
    captions = _read_captions(content["annotations"], path)
    try:
        images = [image["id"] for image in content.get("images", [])]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{path} is not in COCO format: each image is {{"id": 1, ...}}.') from error
    return {image: captions.get(image, []) for image in [*images, *captions]}


def write_scores(
    path: Path, scores: CaptionScores, health: Mapping[str, float], predictions: Mapping[Any, str]
) -> None:
    """Write the scores of the corpus and of each image as JSON."""
    images = [
        {"image_id": image, "caption": predictions[image]}
        | {name: float(values[i]) for name, values in scores.per_image.items()}
        for i, image in enumerate(scores.image_ids)
    ]
    content = {"scores": scores, "not_computed": scores.not_computed, "health": health, "images": images}
    write_json(path, content, indent=1)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error


def _read_captions(rows: Any, path: Path) -> dict[Any, list[str]]:
    try:
        return group_by_image((row["image_id"], row["caption"]) for row in rows)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not in COCO format: each caption is {{"image_id": 1, "caption": "..."}}.'
        ) from error
