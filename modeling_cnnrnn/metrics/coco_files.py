"""Score files in COCO's format: a results file against the references of its images."""

import json
from collections.abc import Hashable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from ..files import check_file_writable, write_json
from .diversity import caption_health
from .scores import CaptionScores, caption_metrics, group_by_image, show


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
        OSError: the output cannot be written.
        TypeError: a caption is not a string.
    """
    output = output or results.with_name(f"{results.stem}_scores.json")
    check_file_writable(output)
    captions_of = read_references(references)
    predictions = read_results(results, captions_of)
    if subset:
        if not predictions.keys() & captions_of.keys():
            raise ValueError(
                f"no image of {results} (such as {_first(predictions)}) is an image of {references} (such as "
                f"{_first(captions_of)}): name the images in both files alike."
            )
        captions_of = {image: captions for image, captions in captions_of.items() if image in predictions}
    scores = caption_metrics(predictions, captions_of, metrics, timeout)
    training = None
    if training_captions is not None:
        training = chain.from_iterable(read_references(training_captions).values())
    health = caption_health(list(predictions.values()), training)
    write_scores(output, scores, health, predictions)
    health_table = "\n".join(f"{name:12}{value:10.4g}" for name, value in health.items())
    return f"{len(predictions)} images\n\n{scores}\n\n{health_table}\n\nwritten to {output}"


def read_results(path: Path, images: Iterable[Hashable] = ()) -> dict[Hashable, str]:
    """
    Read the prediction of each image.

    Args:
        images: the ids of the images. The file may write `7` as `"7"` or `"007"`, or the other way round.

    Raises:
        ValueError: the file is missing or not in COCO's format, or an image has several predictions.
    """
    captions = _group_by_image(_read_json(path), path, images)
    if several := [image for image, texts in captions.items() if len(texts) > 1]:
        raise ValueError(
            f"{path} has {len(captions[several[0]])} predictions for image {show(several[0])}: keep one for each image "
            f"(images with several: {len(several)})."
        )
    return {image: texts[0] for image, texts in captions.items()}


def read_references(path: Path) -> dict[Hashable, list[str]]:
    """
    Read the captions of each image, in the order of the file's images, which is the order of coco-caption.

    Raises:
        ValueError: the file is missing or not in COCO's format.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(f'{path} is not in COCO format: it has no list of "annotations".')
    try:
        images = dict.fromkeys(image["id"] for image in content.get("images", []))
    except (KeyError, TypeError) as error:
        raise ValueError(f'{path} is not in COCO format: each image is {{"id": 1, ...}}.') from error
    captions = _group_by_image(content["annotations"], path, images)
    return {image: captions.get(image, []) for image in [*images, *captions]}


def write_scores(
    path: Path, scores: CaptionScores, health: Mapping[str, float], predictions: Mapping[Hashable, str]
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
        return json.loads(path.read_bytes())  # of bytes it finds the encoding: UTF-8 or UTF-16, with or without a mark
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}.") from error
    except ValueError as error:  # of JSON, of UTF-8, or of a number with thousands of digits
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not in COCO format: its lists are nested too deep.") from error


def _group_by_image(rows: Any, path: Path, images: Iterable[Hashable]) -> dict[Hashable, list[str]]:
    """Gather the captions of each image, under the id that `images` has for it."""
    if not isinstance(rows, list):
        raise ValueError(
            f'{path} is not in COCO format: it must be a list, [{{"image_id": 1, "caption": "..."}}, ...].'
        )
    try:
        captions = group_by_image((row["image_id"], row["caption"]) for row in rows)
    except (KeyError, TypeError) as error:
        place = next(place for place, row in enumerate(rows) if not _is_caption(row))
        raise ValueError(
            f"{path} is not in COCO format: entry {place} of its captions is {show(rows[place])}, each must be "
            '{"image_id": 1, "caption": "..."}.'
        ) from error
    known = dict.fromkeys(images)
    spellings: dict[Hashable, list[Hashable]] = {}
    for image in known:
        spellings.setdefault(_digits(image), []).append(image)
    matched: dict[Hashable, list[str]] = {}
    for image, texts in captions.items():
        same = [image] if image in known else spellings.get(_digits(image), [image])
        if len(same) > 1:
            raise ValueError(
                f"image {show(image)} of {path} may be {show(same[0])} or {show(same[1])}: write the ids of images alike "
                "everywhere."
            )
        matched.setdefault(same[0], []).extend(texts)
    return matched


def _is_caption(row: Any) -> bool:
    return isinstance(row, dict) and {"image_id", "caption"} <= row.keys() and isinstance(row["image_id"], Hashable)


def _digits(image: Hashable) -> Hashable:
    """Return the number that an id writes, `"7"` for `7`, `7.0`, `"7"` and `"007"`; other ids as they are."""
    if isinstance(image, float) and image.is_integer():
        image = int(image)
    text = str(image) if isinstance(image, int) else image
    return text.lstrip("0") or "0" if isinstance(text, str) and text.isascii() and text.isdecimal() else image


def _first(images: Iterable[Hashable]) -> str:
    return show(next(iter(images), "none"))
