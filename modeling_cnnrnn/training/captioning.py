"""
The steps from options to a trained captioner, for pages and commands.

[`train_captioner`] takes them all; `examples/train_captioner.py` takes them one by one.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..data.batching import CaptionDataset, RandomResizedCrop
from ..data.loading import load_dataset_from, split_dataset
from ..data.region_features import RegionFeatures, open_region_features
from ..data.shapes import scenes_of
from ..data.shapes.language import checker
from ..files import check_writable
from ..hub import push
from ..models.base_cnnrnn import CnnRnnPreTrainedModel
from ..models.configuration_cnnrnn import CnnRnnConfig
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_cnnrnn import CnnRnnProcessor
from ..models.tokenization_cnnrnn import build_tokenizer
from .arguments import (
    CaptionDataArguments,
    CaptionModelArguments,
    EncoderArguments,
    StageArguments,
    TrainingArguments,
    check_options,
)
from .caption_trainer import CaptionTrainer
from .features import compute_image_features
from .networks import Networks
from .optimization import unfreeze_encoder_layers
from .tracking import create_accelerator
from .trainer import TrainerState
from .word_vectors import load_word_vectors


logger = logging.getLogger(__name__)

# share of the training images that are kept for validation where the dataset has no such split
VALIDATION_SHARE = 0.05
# a CNN for small pictures: of 64 x 64 pixels it makes a grid of 4 x 4 regions
SMALL_CNN = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128],
    "depths": [1, 1, 1],
}
SMALL_SIZE = 64


def train_captioner(
    data_args: CaptionDataArguments,
    model_args: CaptionModelArguments,
    args: TrainingArguments,
    stage_args: StageArguments,
) -> TrainerState:
    """
    Train a captioner as the options say, and leave it in the output folder.

    Raises:
        ValueError: options do not fit each other, the dataset or the captioner.
        OSError: the dataset, a model or a checkpoint is not there.
        ImportError: a tracker is not installed.
    """
    check_options(data_args, model_args, args, stage_args)
    accelerator = create_accelerator(args)
    check_environment(accelerator, args, stage_args)
    set_seed(args.seed)
    train_rows, eval_rows = load_splits(data_args, args.seed, accelerator)
    regions = [open_region_features(rows, data_args.region_features) for rows in (train_rows, eval_rows)]
    model, processor = build_captioner(data_args, model_args, train_rows["captions"][:], regions[0])
    prepare_encoder(model, model_args, args, stage_args, accelerator)
    train_dataset, eval_dataset = build_datasets(
        model, processor, train_rows, eval_rows, data_args, args, accelerator, regions
    )
    scenes = scenes_of(eval_rows)
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
    state = trainer.train()
    if args.push_to_hub and accelerator.is_main_process:
        push_to_hub(args)
    return state


def check_environment(accelerator: Accelerator, args: TrainingArguments, stage_args: StageArguments) -> None:
    """
    Refuse what would fail after hours of training.

    Raises:
        ValueError: there is no token to push with, or FSDP cannot do what is asked.
        OSError: the output folder cannot be written to.
    """
    if args.push_to_hub and huggingface_hub.get_token() is None:
        raise ValueError("`push_to_hub` needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")
    has_stages = stage_args.unfreezes_encoder or stage_args.has_self_critical_training
    if accelerator.distributed_type == DistributedType.FSDP and (has_stages or args.max_grad_value):
        raise ValueError(
            "FSDP can only train in one stage, by cross-entropy, and clip gradients by their norm: leave out "
            "`unfreeze_encoder_after_...`, `self_critical_after_...` and `max_grad_value`, or train without FSDP."
        )
    check_writable(args.output_dir)


def load_splits(
    data_args: CaptionDataArguments, seed: int, accelerator: Accelerator
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Load the rows to train on and those to evaluate on; a missing validation split is taken from the training images.

    Raises:
        ValueError: the dataset cannot be read, or has no such split.
    """
    with accelerator.main_process_first():
        splits = load_dataset_from(data_args)
    if data_args.train_split not in splits:
        raise ValueError(f"`train_split` is '{data_args.train_split}', but the dataset has the splits {list(splits)}.")
    train_rows = splits[data_args.train_split]
    if data_args.validation_split in splits:
        eval_rows = splits[data_args.validation_split]
    else:
        logger.info("No split '%s': a twentieth of the training images is kept for it.", data_args.validation_split)
        splits = split_dataset(train_rows, VALIDATION_SHARE, seed)
        train_rows, eval_rows = splits["train"], splits["validation"]
    train_rows = train_rows.select(range(min(len(train_rows), data_args.max_train_samples or len(train_rows))))
    eval_rows = eval_rows.select(range(min(len(eval_rows), data_args.max_eval_samples or len(eval_rows))))
    logger.info("%d images to train on, %d to evaluate on.", len(train_rows), len(eval_rows))
    return train_rows, eval_rows


def build_captioner(
    data_args: CaptionDataArguments,
    model_args: CaptionModelArguments,
    captions: list[list[str]],
    regions: RegionFeatures | None = None,
) -> tuple[CnnRnnForConditionalGeneration, CnnRnnProcessor]:
    """
    Load the captioner that is trained further, or make a new one with a pretrained CNN or a CNN from scratch.

    Args:
        captions: captions of each training image; the vocabulary of a new captioner is made of them.
        regions: features that it reads in place of images.

    Raises:
        ValueError: a layer's option is not one of its choices or does not fit another, no word is frequent enough, or the
            captioner reads other features.
        OSError: a pretrained model is not there.
    """
    place = model_args.model_name_or_path
    if place:
        processor = CnnRnnProcessor.from_pretrained(place)
        model = CnnRnnForConditionalGeneration.from_pretrained(place, dtype=torch.float32)
    else:
        classes = CnnRnnForConditionalGeneration, CnnRnnProcessor
        options = {} if regions is None else {"feature_size": regions.num_channels}
        model, processor = build_new_model(*classes, data_args, model_args, captions, **options)
        if model_args.word_vectors is not None:
            load_word_vectors(model, processor.tokenizer, model_args.word_vectors)
    has_regions = regions is not None
    if has_regions != (model.config.feature_size is not None):
        reads, given = ("images", "regions of a detector")[:: 1 if has_regions else -1]
        raise ValueError(f"`model_name_or_path` is {place}, which reads {reads} and not {given}: pass what it reads.")
    model.generation_config.max_length = model_args.max_length
    return model, processor


def build_new_model(
    model_class: Any,
    processor_class: Any,
    data_args: CaptionDataArguments,
    model_args: EncoderArguments,
    captions: list[list[str]],
    **more_options: Any,
) -> tuple[Any, Any]:
    """
    Make a model with a pretrained CNN or a CNN from scratch, and its processor with the vocabulary of the captions.

    Raises:
        ValueError: a layer's option is not one of its choices or does not fit another, or no word is frequent enough.
        OSError: the CNN is not there.
    """
    tokenizer = build_tokenizer(captions, min_frequency=data_args.min_frequency)
    logger.info("The vocabulary has %d words.", len(tokenizer))
    options, encoder = model_args.layer_options() | more_options, model_args.encoder_name_or_path
    if encoder:
        processor = processor_class.from_encoder_pretrained(encoder, tokenizer, data_args.image_size)
        return model_class.from_encoder_pretrained(encoder, tokenizer, **options), processor
    processor = processor_class.from_image_size(data_args.image_size or SMALL_SIZE, tokenizer)
    settings = json.loads(model_args.encoder_config) if model_args.encoder_config else SMALL_CNN
    config = model_class.config_class.from_tokenizer(tokenizer, encoder=AutoConfig.for_model(**settings), **options)
    return model_class(config), processor


class CaptionerNetworks(Networks):
    """
    Make captioners from the options of their layers, and from the configuration of their CNN if that is not pretrained.

    Args:
        model: the captioner of the training, as it is before it.
        processor, model_args, args, stage_args, accelerator: of the training.
    """

    def __init__(
        self,
        model: CnnRnnForConditionalGeneration,
        processor: CnnRnnProcessor,
        model_args: CaptionModelArguments,
        args: TrainingArguments,
        stage_args: StageArguments,
        accelerator: Accelerator,
    ):
        self.encoder = _encoder_settings(model)
        self.processor, self.model_args, self.args = processor, model_args, args
        self.stage_args, self.accelerator = stage_args, accelerator
        # of the captioner, and not of its training: an architecture has more, and what is trained further keeps its own
        self.options = {name: getattr(model.config, name) for name in (*model_args.layer_options(), "feature_size")}

    def describe(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the options of the layers, and the configuration of a CNN from scratch."""
        options = {name: getattr(model.config, name) for name in self.options}
        return options if self.model_args.is_pretrained else {**options, "encoder": _encoder_settings(model)}

    def configure(self, settings: dict[str, Any]) -> CnnRnnConfig:
        """Make the configuration of a captioner with the words of the training."""
        known = {*self.options} | (set() if self.model_args.is_pretrained else {"encoder"})
        if unknown := sorted({*settings} - known):
            raise ValueError(f"it has the field `{unknown[0]}`: choose among {', '.join(sorted(known))}.")
        encoder = settings.get("encoder", self.encoder)
        encoder_config = AutoConfig.for_model(**encoder) if encoder is not None else None
        options = {**self.options, **settings, "encoder": encoder_config}
        return CnnRnnConfig.from_tokenizer(self.processor.tokenizer, **options)

    def sketch(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Make a captioner."""
        return CnnRnnForConditionalGeneration(config)  # type: ignore[arg-type]

    def build(self, network: dict[str, Any] | None) -> PreTrainedModel:
        """Make a captioner; a pretrained CNN has its weights again."""
        config, model_args = self.configure(network or {}), self.model_args
        options = {name: getattr(config, name) for name in self.options}
        if model_args.model_name_or_path and network is None:
            model = CnnRnnForConditionalGeneration.from_pretrained(model_args.model_name_or_path, dtype=torch.float32)
        elif model_args.encoder_name_or_path:
            name, tokenizer = model_args.encoder_name_or_path, self.processor.tokenizer
            model = CnnRnnForConditionalGeneration.from_encoder_pretrained(name, tokenizer, **options)
        else:
            model = CnnRnnForConditionalGeneration(config)
        if model_args.word_vectors is not None:
            load_word_vectors(model, self.processor.tokenizer, model_args.word_vectors)
        model.generation_config.max_length = model_args.max_length
        prepare_encoder(model, model_args, self.args, self.stage_args, self.accelerator)
        return model


def _encoder_settings(model: PreTrainedModel) -> dict[str, Any] | None:
    """The configuration of the CNN; `None` if features come from a detector."""
    config = model.config.encoder
    return config.to_diff_dict() if isinstance(config, PreTrainedConfig) else None


def prepare_encoder(
    model: CnnRnnForConditionalGeneration,
    model_args: CaptionModelArguments,
    args: TrainingArguments,
    stage_args: StageArguments,
    accelerator: Accelerator,
) -> None:
    """
    Freeze what no stage trains of the CNN, and set how it is computed.

    Raises:
        ValueError: the CNN has no layer `unfreeze_encoder_from_layer`.
    """
    if model_args.is_pretrained or stage_args.unfreezes_encoder:
        unfreeze_encoder_layers(model, stage_args.unfreeze_encoder_from_layer)
    is_frozen = model_args.freezes_encoder(stage_args) and not stage_args.unfreezes_encoder
    if is_frozen or model.config.feature_size is not None:
        model.freeze_encoder()
    set_computation(model, args, accelerator)


def set_computation(model: CnnRnnPreTrainedModel, args: TrainingArguments, accelerator: Accelerator) -> None:
    """Set how the CNN of a model is computed: the memory format, activation checkpointing, compilation."""
    cnn = model.get_encoder().cnn
    if accelerator.distributed_type != DistributedType.FSDP:  # FSDP supports only contiguous weights
        cnn.to(memory_format=torch.channels_last)  # convolutions are fastest with it
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if args.torch_compile:
        cnn.compile()  # the CNN alone: sentences differ in length, and each length would be compiled again


def build_datasets(
    model: CnnRnnPreTrainedModel,
    processor: CnnRnnProcessor,
    train_rows: datasets.Dataset,
    eval_rows: datasets.Dataset,
    data_args: CaptionDataArguments,
    args: TrainingArguments,
    accelerator: Accelerator,
    regions: Sequence[RegionFeatures | None] = (None, None),
) -> tuple[CaptionDataset, CaptionDataset]:
    """
    Make the dataset to train on, augmented, and the one to evaluate on, with all captions of an image at once.

    With `cache_image_features` the CNN is run here, or its stored features are read.

    Args:
        regions: features of both splits, in place of their images.

    Raises:
        ValueError: several views of the images are stored without an augmentation that tells them apart, or none of the
            images of a split can be read.
    """
    augmentation = None
    if data_args.random_crop or data_args.flip_probability > 0:
        smallest = 0.6 if data_args.random_crop else 1.0
        augmentation = RandomResizedCrop((smallest, 1.0), flip_probability=data_args.flip_probability)
    seen: dict[str, Any] = {"augmentation": augmentation, "draft": data_args.draft_decoding}
    train_features: dict[str, Any] = {}
    eval_features: dict[str, Any] = {}
    if data_args.cache_image_features:
        model.to(accelerator.device)
        cache_dir = data_args.features_cache_dir or Path(args.output_dir) / "image_features"
        views = {"num_views": data_args.num_feature_views, **seen}
        for stored, rows, options in ((train_features, train_rows, views), (eval_features, eval_rows, {})):
            with accelerator.main_process_first(), accelerator.autocast():
                features, broken = compute_image_features(model, processor, rows, cache_dir, **options)
            stored |= {"image_features": features, "broken": broken}
    for stored, own in ((train_features, regions[0]), (eval_features, regions[1])):
        if own is not None:
            stored |= {"image_features": own, "broken": own.missing}
    common: dict[str, Any] = {"seed": args.seed, "max_length": data_args.max_caption_length}
    common["preload"] = data_args.preload_images
    train_dataset = CaptionDataset(
        train_rows, processor, data_args.captions_per_image, **seen, **train_features, **common
    )
    most_captions = max(len(captions) for captions in eval_rows["captions"][:])
    eval_dataset = CaptionDataset(eval_rows, processor, most_captions, **eval_features, **common)
    for split, dataset in ((data_args.train_split, train_dataset), (data_args.validation_split, eval_dataset)):
        dataset.check(split, "; pass a larger --max_caption_length to keep them whole")
    return train_dataset, eval_dataset


def push_to_hub(args: TrainingArguments) -> None:
    """Push the trained captioner with its model card."""
    repo_id = args.hub_model_id or Path(args.output_dir).name
    commit = push.push_captioner(args.output_dir, repo_id, private=args.hub_private_repo, revision=args.hub_revision)
    logger.info("Pushed: %s", commit.commit_url)
