"""The steps from options to a trained classifier; `examples/train_classifier.py` takes them one by one."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..data.batching import load_stored_image
from ..data.image_batches import LabelledImages
from ..data.labelled_images import load_labelled_dataset_from, split_last
from ..data.reporting import some
from ..evaluation.classification import evaluate_classifier
from ..files import write_json
from ..hub.push_classifier import push_classifier
from ..models.configuration_convnet_cnnrnn import ConvNetConfig
from ..models.error_messages_cnnrnn import shown
from ..models.modeling_convnet_cnnrnn import ConvNetForImageClassification
from ..models.processing_cnnrnn import load_image_processor
from .classification_arguments import (
    ClassificationDataArguments,
    ClassificationModelArguments,
    ClassificationTrainingArguments,
)
from .networks import Networks


logger = logging.getLogger(__name__)

# share of the training images that are kept for validation where the dataset has no such split
VALIDATION_SHARE = 0.1
LARGEST_SIDE = 64  # of pictures for a CNN from scratch, unless another is asked for
NUM_WHITENING_IMAGES = 5000


def load_splits(
    data_args: ClassificationDataArguments, accelerator: Accelerator
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Load the rows to train on and those to evaluate on; a missing validation split is taken from the training images.

    Raises:
        ValueError: the dataset cannot be read, has no such split, or the images to train on are of one class.
    """
    with accelerator.main_process_first():
        splits = load_labelled_dataset_from(data_args)
    if data_args.train_split not in splits:
        raise ValueError(f"`train_split` is '{data_args.train_split}', but the dataset has the splits {list(splits)}.")
    train_rows, number = splits[data_args.train_split], data_args.num_validation_images
    if data_args.validation_split in splits:
        if number is not None:
            raise ValueError(
                f"`num_validation_images` is {number}, but the dataset has the split '{data_args.validation_split}': leave "
                "one of the two out."
            )
        eval_rows = splits[data_args.validation_split]
    elif number is not None:
        train_rows, eval_rows = split_last(train_rows, number)
    else:
        logger.info("No split '%s': a tenth of the training images is kept for it.", data_args.validation_split)
        parts = train_rows.train_test_split(VALIDATION_SHARE, seed=0)
        train_rows, eval_rows = parts["train"], parts["test"]
    train_rows = train_rows.select(range(min(len(train_rows), data_args.max_train_samples or len(train_rows))))
    eval_rows = eval_rows.select(range(min(len(eval_rows), data_args.max_eval_samples or len(eval_rows))))
    _check_classes(train_rows)
    logger.info("%d images to train on, %d to evaluate on.", len(train_rows), len(eval_rows))
    return train_rows, eval_rows


def _check_classes(train_rows: datasets.Dataset) -> None:
    """Refuse to learn one class."""
    names = train_rows.features["label"].names
    present = set(train_rows["label"][:])
    if len(present) < 2:
        raise ValueError(
            f"All {len(train_rows)} images to train on are of the class '{names[min(present)]}': a classifier takes two or "
            "more."
        )


def build_classifier(
    data_args: ClassificationDataArguments, model_args: ClassificationModelArguments, train_rows: datasets.Dataset
) -> tuple[PreTrainedModel, PilBackend]:
    """
    Load the classifier or CNN that is trained further, or make a new one.

    The classifier of a pretrained model is kept where its classes are those of the dataset, in their order.

    Raises:
        ValueError: the configuration is wrong, or the pictures are smaller than the strides of the CNN.
        OSError: a pretrained model is not there.
    """
    names = train_rows.features["label"].names
    labels = _labels(names)
    name = model_args.model_name_or_path
    if name:
        processor = load_image_processor(name, data_args.image_size)
        config = AutoConfig.from_pretrained(name)
        is_same = list(config.id2label.values()) == names
        options = {} if is_same else {"ignore_mismatched_sizes": True, **labels}
        model = AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, **options)
    else:
        settings = _read_settings(model_args.model_config)
        first = load_stored_image(train_rows.cast_column("image", datasets.Image(decode=False))[0]["image"])
        side = data_args.image_size or settings.get("image_size") or min(*first.size, LARGEST_SIDE)
        try:
            config = configure(settings, names, side)
        except StrictDataclassError as error:  # its message has several lines
            raise ValueError(f"`model_config` cannot be used: {shown(error.__cause__ or error)}") from error
        model = AutoModelForImageClassification.from_config(config)
        size = {"height": side, "width": side}
        mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        processor = ViTImageProcessorPil(size=size, image_mean=mean, image_std=std)
    return model, processor


def _labels(names: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def configure(settings: Mapping[str, Any], names: Sequence[str], image_size: int) -> PreTrainedConfig:
    """
    Make the configuration of a CNN from scratch.

    Args:
        settings: its fields, `model_type` among them.
        names: names of the classes.
        image_size: side of the pictures.

    Raises:
        ValueError, StrictDataclassError: a field is wrong, or the pictures are smaller than the strides of the CNN.
    """
    side = {"image_size": image_size} if settings["model_type"] == ConvNetConfig.model_type else {}
    config = AutoConfig.for_model(**{**settings, **side, **_labels(names)})
    check_image_size(config, image_size)
    return config


def _read_settings(model_config: str | None) -> dict[str, Any]:
    """Read the configuration of a CNN from scratch; by default that of a ConvNet."""
    if model_config is None:
        return {"model_type": ConvNetConfig.model_type}
    try:
        settings = json.loads(model_config)
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ValueError(
            f'`model_config` is {shown(model_config, 80)}: pass JSON such as \'{{"model_type": "resnet"}}\'.'
        )
    return settings


def check_image_size(config: PreTrainedConfig, image_size: int) -> None:
    """
    Refuse pictures of which the strides of a CNN leave nothing.

    Raises:
        ValueError: names the smallest size.
    """
    if isinstance(config, ConvNetConfig):
        smallest = config.min_image_size
    else:
        with torch.device("meta"):  # shapes alone
            cnn = AutoModel.from_config(config)
            pixel_values = torch.empty(1, getattr(config, "num_channels", 3), 512, 512)
            features = cnn(pixel_values=pixel_values).last_hidden_state
        smallest = 512 // features.shape[-1] if features.ndim == 4 else 1
    if image_size < smallest:
        raise ValueError(
            f"`image_size` is {image_size}, but the strides of this CNN come to {smallest}: pass {smallest} or more."
        )


def prepare_classifier(
    model: PreTrainedModel,
    train_dataset: LabelledImages,
    model_args: ClassificationModelArguments,
    args: ClassificationTrainingArguments,
    accelerator: Accelerator,
) -> None:
    """Set how the CNN is computed, and compute the whitening filters of a new ConvNet from training pictures."""
    is_new = not model_args.model_name_or_path
    if is_new and isinstance(model, ConvNetForImageClassification) and model.convnet.whitening is not None:
        step = max(1, len(train_dataset) // NUM_WHITENING_IMAGES)
        model.convnet.initialize_whitening(train_dataset.normalize(train_dataset.pixels[::step]))
    if accelerator.distributed_type != DistributedType.FSDP:  # FSDP supports only contiguous weights
        # convolutions are fastest with it
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if args.torch_compile:
        model.compile()


class ClassifierNetworks(Networks):
    """
    Make classifiers from the configuration of a CNN.

    Args:
        data_args, model_args, args, train_rows, train_dataset, accelerator: of the training.
    """

    def __init__(
        self,
        data_args: ClassificationDataArguments,
        model_args: ClassificationModelArguments,
        args: ClassificationTrainingArguments,
        train_rows: datasets.Dataset,
        train_dataset: LabelledImages,
        accelerator: Accelerator,
    ):
        self.data_args, self.model_args, self.args = data_args, model_args, args
        self.train_rows, self.train_dataset, self.accelerator = train_rows, train_dataset, accelerator

    def describe(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the fields of the configuration that differ from the defaults."""
        hidden = ("id2label", "label2id", "architectures", "auto_map", "dtype", "transformers_version", "num_labels")
        return {name: value for name, value in model.config.to_diff_dict().items() if name not in hidden}

    def configure(self, settings: dict[str, Any]) -> PreTrainedConfig:
        """Make the configuration of a CNN for the pictures of the training."""
        if "model_type" not in settings:
            raise ValueError('it has no `model_type`: write {"model_type": "convnet", ...}.')
        names = self.train_rows.features["label"].names
        return configure(settings, names, min(self.train_dataset.pixels.shape[2:]))

    def sketch(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Make a classifier."""
        return AutoModelForImageClassification.from_config(config)

    def build(self, network: dict[str, Any] | None) -> PreTrainedModel:
        """Make a classifier, and its whitening filters if it has such."""
        model_args = self.model_args
        if network is not None:
            model_args = ClassificationModelArguments(model_config=json.dumps(network))
        side = min(self.train_dataset.pixels.shape[2:])
        model, _ = build_classifier(replace(self.data_args, image_size=side), model_args, self.train_rows)
        prepare_classifier(model, self.train_dataset, model_args, self.args, self.accelerator)
        return model


def build_datasets(
    train_rows: datasets.Dataset,
    eval_rows: datasets.Dataset,
    image_processor: PilBackend,
    data_args: ClassificationDataArguments,
    args: ClassificationTrainingArguments,
) -> tuple[LabelledImages, LabelledImages]:
    """
    Read the pictures to train on, which are augmented, and those to evaluate on.

    Raises:
        ValueError: no picture can be read, or they do not fit into memory.
    """
    augmentation: dict[str, Any] = {"max_shift": data_args.max_shift, "flip": data_args.flip, "seed": args.seed}
    train_dataset = LabelledImages(train_rows, image_processor, "the training images", **augmentation)
    names, present = train_rows.features["label"].names, set(train_dataset.labels.tolist())
    if absent := [name for label, name in enumerate(names) if label not in present]:
        logger.warning("%d of %d classes have no image to train on: %s.", len(absent), len(names), some(absent))
    return train_dataset, LabelledImages(eval_rows, image_processor, "the validation images")


def evaluate_trained(
    eval_dataset: LabelledImages, args: ClassificationTrainingArguments, accelerator: Accelerator
) -> None:
    """Evaluate the best classifier, which is in the output folder, and write `evaluation/eval_results.json` there."""
    model = AutoModelForImageClassification.from_pretrained(args.output_dir, dtype=torch.float32)
    model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    evaluation = evaluate_classifier(model, eval_dataset, accelerator, args.per_device_eval_batch_size)
    if accelerator.is_main_process:
        write_json(Path(args.output_dir) / "evaluation" / "eval_results.json", evaluation.to_dict())
        logger.info("\n%s\n", evaluation.table())
        scores = evaluation.scores
        logger.info(
            "Accuracy %.4f; with the mirror image of each picture %.4f (%d images).",
            scores["accuracy"],
            scores["accuracy_with_mirror"],
            len(eval_dataset),
        )


def push_to_hub(args: ClassificationTrainingArguments) -> None:
    """Push the trained classifier with its card."""
    repo_id = args.hub_model_id or Path(args.output_dir).name
    commit = push_classifier(args.output_dir, repo_id, private=args.hub_private_repo, revision=args.hub_revision)
    logger.info("Pushed: %s", commit.commit_url)
