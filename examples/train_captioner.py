r"""
Train a captioner: a CNN sees an image, an RNN writes the sentence.

From nothing, on pictures that the project draws itself:

    python examples/train_captioner.py --dataset_name shapes --output_dir outputs/shapes

On your own photographs, with a CNN that was trained on ImageNet (a folder of images with a metadata.jsonl, a COCO JSON,
a dataset of the Hub: see examples/README.md):

    python examples/train_captioner.py --dataset_name path/to/photographs --encoder_name_or_path microsoft/resnet-50 \
        --cache_image_features --output_dir outputs/mine

In stages: first the decoder alone, then the CNN too (`--unfreeze_encoder_after_epochs 5 --unfreeze_encoder_from_layer -2`),
then on the scores of its own sentences (`--self_critical_after_epochs 8`).

On several GPUs: `accelerate launch --multi_gpu examples/train_captioner.py ...`; on several processes of a CPU: `torchrun
--nproc_per_node 2 examples/train_captioner.py ...`. A training that was stopped or killed resumes with
`--resume_from_checkpoint latest`, bit by bit as if nothing had happened. `--help` lists every option.

`examples/train_by_hand.py` is the same training without a trainer: a plain loop to read.
"""

import logging
from dataclasses import asdict

from accelerate.utils import set_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import RESUME_TRAINING, user_errors
from modeling_cnnrnn.cli.memory import keep_heap
from modeling_cnnrnn.data.shapes import scenes_of
from modeling_cnnrnn.data.shapes.language import checker
from modeling_cnnrnn.training.arguments import (
    CaptionDataArguments,
    CaptionModelArguments,
    StageArguments,
    TrainingArguments,
    check_options,
)
from modeling_cnnrnn.training.caption_trainer import CaptionTrainer
from modeling_cnnrnn.training.captioning import (
    CaptionerNetworks,
    build_captioner,
    build_datasets,
    check_environment,
    load_splits,
    prepare_encoder,
    push_to_hub,
)
from modeling_cnnrnn.training.tracking import create_accelerator


def main():
    keep_heap()
    # 1. Options, from a recipe and the command line; those that have no effect together are refused
    data_args, model_args, args, stage_args = parse_arguments(
        [CaptionDataArguments, CaptionModelArguments, TrainingArguments, StageArguments], __doc__
    )
    check_options(data_args, model_args, args, stage_args)
    accelerator = create_accelerator(args)
    check_environment(accelerator, args, stage_args)
    set_seed(args.seed)

    # 2. The data: rows of image, image_id and captions
    train_rows, eval_rows = load_splits(data_args, args.seed, accelerator)
    scenes = scenes_of(eval_rows)  # what the pictures of `shapes` show, to check sentences with

    # 3. The model: a captioner to train further, a pretrained CNN with a new decoder, or all of it new
    model, processor = build_captioner(data_args, model_args, train_rows["captions"][:])
    prepare_encoder(model, model_args, args, stage_args, accelerator)

    # 4. The examples: each image with several captions; or its stored features, while the CNN is frozen
    train_dataset, eval_dataset = build_datasets(model, processor, train_rows, eval_rows, data_args, args, accelerator)

    # 5. Train: the trainer takes the steps, evaluates, saves, and keeps the captioner with the best CIDEr
    trainer = CaptionTrainer(
        model,
        processor,
        train_dataset,
        eval_dataset,
        accelerator,
        args,
        model_args,
        stage_args,
        train_captions=train_rows["captions"][:],
        references=eval_rows["captions"][:],
        checker=checker(scenes) if scenes else None,
        options={
            "data": asdict(data_args),
            "model": asdict(model_args),
            "training": asdict(args),
            "stages": asdict(stage_args),
        },
        networks=CaptionerNetworks(model, processor, model_args, args, stage_args, accelerator),
    )
    trainer.train()

    # 6. The output folder is what `from_pretrained` loads, and what the Hub shows
    if args.push_to_hub and accelerator.is_main_process:
        push_to_hub(args)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    with user_errors(RESUME_TRAINING), logging_redirect_tqdm():  # lines of the log go above the bar
        main()
