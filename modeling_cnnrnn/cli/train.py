"""`cnnrnn train`: train a captioner."""

from collections.abc import Sequence
from typing import Any

from ..training.arguments import CaptionDataArguments, CaptionModelArguments, StageArguments, TrainingArguments
from .arguments import parse_arguments
from .errors import RESUME_TRAINING, user_errors


DESCRIPTION = """
Train a captioner: a CNN encodes the image, an RNN writes the sentence.

    cnnrnn train --dataset_name shapes --output_dir outputs/shapes
    cnnrnn train --dataset_name photographs/ --encoder_name_or_path microsoft/resnet-50 --cache_image_features \\
        --output_dir outputs/mine
    cnnrnn train recipe.json --seed 1

A recipe is a JSON file of options; options of the command line win over it. A training that was stopped or killed
resumes with --resume_from_checkpoint latest.
On several GPUs: accelerate launch -m modeling_cnnrnn train ...
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn train`."""
    with user_errors(RESUME_TRAINING):
        kinds: list[Any] = [CaptionDataArguments, CaptionModelArguments, TrainingArguments, StageArguments]
        options = parse_arguments(kinds, DESCRIPTION, arguments, "cnnrnn train")

        from tqdm.contrib.logging import logging_redirect_tqdm

        from ..training.captioning import train_captioner

        with logging_redirect_tqdm():  # lines of the log go above the bar
            train_captioner(*options)
