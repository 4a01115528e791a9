"""
Scores a COCO results file:

    python -m modeling_cnnrnn.metrics --results captions_results.json --references captions.json
"""

import argparse
import json
import sys
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

from ..files import write_json
from .diversity import caption_health
from .scores import METRICS, CaptionScores, caption_metrics, group_by_image


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m modeling_cnnrnn.metrics", description="Scores image captions.")
    parser.add_argument("--results", type=Path, required=True, help='predictions: [{"image_id": 1, "caption": "..."}]')
    parser.add_argument("--references", type=Path, required=True, help='{"images": [...], "annotations": [...]}')
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["bleu", "rouge", "cider"])
    parser.add_argument("--training_captions", type=Path, help="references of the training set, to count new captions")
    parser.add_argument("--subset", action="store_true", help="score only the images that have a prediction")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for METEOR and SPICE each")
    parser.add_argument(
        "--output", type=Path, help="where to write all scores; by default beside the results, as <name>_scores.json"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            print(evaluate(args))
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"error: {error}")


def evaluate(args: argparse.Namespace) -> str:
    """Scores the files, writes all that was computed, and returns the table."""
    references = read_references(args.references)
    predictions = read_results(args.results)
    if args.subset:
        references = {image: captions for image, captions in references.items() if image in predictions}
    scores = caption_metrics(predictions, references, args.metrics, args.timeout)
    training = None
    if args.training_captions:
        training = chain.from_iterable(read_references(args.training_captions).values())
    health = caption_health(list(predictions.values()), training)
    output = args.output or args.results.with_name(f"{args.results.stem}_scores.json")
    write(output, scores, health, predictions)
    health_table = "\n".join(f"{name:12}{value:10.4g}" for name, value in health.items())
    return f"{len(predictions)} images\n\n{scores}\n\n{health_table}\n\nwritten to {output}"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error


def read_captions(rows: Any, path: Path) -> dict[Any, list[str]]:
    try:
        return group_by_image((row["image_id"], row["caption"]) for row in rows)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not in COCO format: each caption is {{"image_id": 1, "caption": "..."}}.'
        ) from error


def read_results(path: Path) -> dict[Any, str]:
    captions = read_captions(read_json(path), path)
    if several := [image for image, texts in captions.items() if len(texts) > 1]:
        raise ValueError(f"{path} has {len(captions[several[0]])} predictions for image {several[0]!r}: keep one.")
    return {image: texts[0] for image, texts in captions.items()}


def read_references(path: Path) -> dict[Any, list[str]]:
    """The captions of each image, in the order of the file's images, which is the order of coco-caption."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(f'{path} is not in COCO format: it has no list of "annotations".')
    captions = read_captions(content["annotations"], path)
    try:
        images = [image["id"] for image in content.get("images", [])]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{path} is not in COCO format: each image is {{"id": 1, ...}}.') from error
    return {image: captions.get(image, []) for image in [*images, *captions]}


def write(path: Path, scores: CaptionScores, health: dict[str, float], predictions: dict[Any, str]) -> None:
    images = [
        {"image_id": image, "caption": predictions[image]}
        | {name: float(values[i]) for name, values in scores.per_image.items()}
        for i, image in enumerate(scores.image_ids)
    ]
    content = {"scores": scores, "not_computed": scores.not_computed, "health": health, "images": images}
    write_json(path, content, indent=1)


if __name__ == "__main__":
    main()
