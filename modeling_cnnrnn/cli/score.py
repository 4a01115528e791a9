"""`cnnrnn score`: score captions in a COCO results file."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.arguments import ScoreArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Score captions with the official metrics of image captioning. Files are in COCO's format.

    cnnrnn score --results captions_results.json --references captions.json
    cnnrnn score --results captions_results.json --references captions.json --metrics bleu rouge cider meteor spice
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn score`."""
    with user_errors():
        (args,) = parse_arguments([ScoreArguments], DESCRIPTION, arguments, "cnnrnn score")

        from ..metrics.coco_files import score_files

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"Warning: {message}", file=sys.stderr)
            table = score_files(
                Path(args.results),
                Path(args.references),
                metrics=args.metrics,
                training_captions=Path(args.training_captions) if args.training_captions else None,
                subset=args.subset,
                timeout=args.timeout,
                output=Path(args.output) if args.output else None,
            )
        print(table)
