r"""
Train an alignment of images and sentences: regions and words in one space (Deep Visual-Semantic Alignments).

It finds photographs by a sentence and sentences by a photograph, and says which words belong to which region. From nothing,
on pictures that the project draws itself, where it is measured whether words point at their object:

    python examples/train_alignment.py examples/recipes/shapes_alignment.json --output_dir outputs/shapes_alignment

On your own photographs, with a frozen CNN that was trained on ImageNet (Flickr8k: see examples/README.md for the layouts):

    python examples/train_alignment.py examples/recipes/flickr8k_alignment.json --dataset_name path/to/flickr8k \
        --encoder_name_or_path google/efficientnet-b4 --output_dir outputs/flickr8k_alignment

On several GPUs: `accelerate launch --multi_gpu examples/train_alignment.py ...`. A training that was stopped or killed resumes
with `--resume_from_checkpoint latest`, bit by bit as if nothing had happened. `--help` lists every option.
"""

import logging
from dataclasses import asdict

from accelerate.utils import set_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import RESUME_TRAINING, user_errors
from modeling_cnnrnn.training.alignment import (
    build_alignment,
    build_alignment_datasets,
    pointing_of,
    prepare_alignment_encoder,
)
from modeling_cnnrnn.training.alignment_arguments import (
    AlignmentDataArguments,
    AlignmentModelArguments,
    AlignmentTrainingArguments,
    check_alignment_options,
)
from modeling_cnnrnn.training.alignment_trainer import AlignmentTrainer
from modeling_cnnrnn.training.arguments import StageArguments
from modeling_cnnrnn.training.captioning import check_environment, load_splits, push_to_hub
from modeling_cnnrnn.training.tracking import create_accelerator


def main():
    # 1. Options, from a recipe and the command line; those that have no effect together are refused
    data_args, model_args, args = parse_arguments(
        [AlignmentDataArguments, AlignmentModelArguments, AlignmentTrainingArguments], __doc__
    )
    check_alignment_options(data_args, model_args, args)
    accelerator = create_accelerator(args)
    check_environment(accelerator, args, StageArguments())
    set_seed(args.seed)

    # 2. The data: rows of image, image_id and captions
    train_rows, eval_rows = load_splits(data_args, args.seed, accelerator)

    # 3. The model: an alignment to train further, a pretrained CNN with new layers, or all of it new
    model, processor = build_alignment(data_args, model_args, train_rows["captions"][:])
    prepare_alignment_encoder(model, model_args, args, accelerator)

    # 4. The examples: each image with one caption or several; or its stored features, if the CNN is frozen
    train_dataset, eval_dataset = build_alignment_datasets(
        model, processor, train_rows, eval_rows, data_args, model_args, args, accelerator
    )

    # 5. Train: the trainer takes the steps, evaluates, saves, and keeps the alignment with the highest recalls
    trainer = AlignmentTrainer(
        model,
        processor,
        train_dataset,
        eval_dataset,
        accelerator,
        args,
        further_scores=pointing_of(eval_dataset, eval_rows),  # of drawn pictures, where words point
        options={"data": asdict(data_args), "model": asdict(model_args), "training": asdict(args)},
    )
    trainer.train()

    # 6. The output folder is what `from_pretrained` loads, and what the Hub shows
    if args.push_to_hub and accelerator.is_main_process:
        push_to_hub(args)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    with user_errors(RESUME_TRAINING), logging_redirect_tqdm():  # lines of the log go above the bar
        main()
