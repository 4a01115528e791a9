r"""
Train an image classifier: your own small CNN, or any CNN of transformers.

On pictures that the project draws itself (`make watch`):

    python examples/train_classifier.py examples/recipes/shapes_classifier.json --output_dir outputs/shapes_classifier

On CIFAR-10, with the last 5,000 training pictures held out:

    python examples/train_classifier.py examples/recipes/cifar10.json --output_dir outputs/cifar10

On your own pictures, in a folder for each class; with ConvNetJS's network as JSON, or a CNN that has been trained before:

    python examples/train_classifier.py --dataset_name path/to/pictures --output_dir outputs/mine
    python examples/train_classifier.py --dataset_name path/to/pictures --model_config '{"model_type": "convnet",
        "layers": [{"channels": 16, "kernel_size": 5, "pool_size": 2}, {"channels": 20, "kernel_size": 5, "pool_size": 2},
        {"channels": 20, "kernel_size": 5, "pool_size": 2}], "whitening_size": 0, "norm": "none", "hidden_act": "relu",
        "pooling": "flatten", "divide_logits": false}' --optimizer adadelta --max_shift 0
    python examples/train_classifier.py --dataset_name path/to/pictures --model_name_or_path microsoft/resnet-50 \
        --optimizer adamw --learning_rate 1e-4 --per_device_train_batch_size 32

The output folder is what `pipeline("image-classification", model=...)` loads, and what `--encoder_name_or_path` of
`train_captioner.py` takes as the CNN of a captioner. Several processes and `--resume_from_checkpoint latest` work as there;
`--help` lists every option.
"""

import logging
from dataclasses import asdict

from accelerate.utils import set_seed
from tqdm.contrib.logging import logging_redirect_tqdm

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import RESUME_TRAINING, user_errors
from modeling_cnnrnn.cli.memory import keep_heap
from modeling_cnnrnn.training.arguments import StageArguments
from modeling_cnnrnn.training.captioning import check_environment
from modeling_cnnrnn.training.classification import (
    ClassifierNetworks,
    build_classifier,
    build_datasets,
    evaluate_trained,
    load_splits,
    prepare_classifier,
    push_to_hub,
)
from modeling_cnnrnn.training.classification_arguments import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    ClassificationTrainingArguments,
    check_options,
)
from modeling_cnnrnn.training.classification_trainer import ClassificationTrainer
from modeling_cnnrnn.training.tracking import create_accelerator


def main():
    keep_heap()
    # 1. Options, from a recipe and the command line
    data_args, model_args, args = parse_arguments(
        [ClassificationDataArguments, ClassificationModelArguments, ClassificationTrainingArguments], __doc__
    )
    check_options(data_args, model_args, args)
    accelerator = create_accelerator(args)
    check_environment(accelerator, args, StageArguments())
    set_seed(args.seed)

    # 2. The data: rows of image and label; without a validation split, some are held out
    train_rows, eval_rows = load_splits(data_args, accelerator)

    # 3. The model: a classifier to train further, or any CNN from scratch
    model, image_processor = build_classifier(data_args, model_args, train_rows)

    # 4. The pictures, in memory in 8 bits: a batch is gathered, shifted and mirrored at once
    train_dataset, eval_dataset = build_datasets(train_rows, eval_rows, image_processor, data_args, args)
    prepare_classifier(model, train_dataset, model_args, args, accelerator)

    # 5. Train: the trainer takes the steps, evaluates, saves, and keeps the classifier with the best accuracy
    trainer = ClassificationTrainer(
        model,
        image_processor,
        train_dataset,
        eval_dataset,
        accelerator,
        args,
        options={"data": asdict(data_args), "model": asdict(model_args), "training": asdict(args)},
        networks=ClassifierNetworks(data_args, model_args, args, train_rows, train_dataset, accelerator),
    )
    trainer.train()

    # 6. The output folder is what `from_pretrained` loads: what it is worth, class by class
    evaluate_trained(eval_dataset, args, accelerator)
    if args.push_to_hub and accelerator.is_main_process:
        push_to_hub(args)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    with user_errors(RESUME_TRAINING), logging_redirect_tqdm():  # lines of the log go above the bar
        main()
