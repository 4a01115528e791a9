"""
Score a COCO results file:

    python -m modeling_cnnrnn.metrics --results captions_results.json --references captions.json
"""

import argparse
import sys
import warnings
from pathlib import Path

from .coco_files import score_files
from .scores import METRICS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m modeling_cnnrnn.metrics", description="Score image captions.")
    parser.add_argument("--results", type=Path, required=True, help='predictions: [{"image_id": 1, "caption": "..."}]')
    parser.add_argument("--references", type=Path, required=True, help='{"images": [...], "annotations": [...]}')
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=["bleu", "rouge", "cider"])
    parser.add_argument("--training_captions", type=Path, help="references of the training set, to count new captions")
    parser.add_argument("--subset", action="store_true", help="score only the images that have a prediction")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that METEOR and SPICE may each take")
    parser.add_argument(
        "--output", type=Path, help="file of all scores; by default <name>_scores.json beside the results"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            print(score_files(**vars(args)))
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
