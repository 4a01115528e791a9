"""The steps from options to a trained alignment of images and sentences; `examples/train_alignment.py` takes them."""

from collections.abc import Callable

import datasets
import numpy as np
import torch
from accelerate import Accelerator

from ..data.batching import CaptionDataset
from ..data.shapes import boxes_of
from ..evaluation.shapes_pointing import point_words, pointing_scores
from ..models.modeling_alignment_cnnrnn import CnnRnnForImageTextRetrieval
from ..models.processing_alignment_cnnrnn import CnnRnnAlignmentProcessor
from .alignment_arguments import AlignmentDataArguments, AlignmentModelArguments, AlignmentTrainingArguments
from .captioning import build_datasets, build_new_model, set_computation


REDUCTION_SAMPLE = 1000  # images that principal components are computed from


def build_alignment(
    data_args: AlignmentDataArguments, model_args: AlignmentModelArguments, captions: list[list[str]]
) -> tuple[CnnRnnForImageTextRetrieval, CnnRnnAlignmentProcessor]:
    """
    Load the alignment that is trained further, or make a new one with a pretrained CNN or a CNN from scratch.

    Args:
        captions: captions of each training image; the vocabulary of a new alignment is made of them.

    Raises:
        ValueError: a layer's option is not one of its choices or does not fit another, or no word is frequent enough.
        OSError: a pretrained model is not there.
    """
    if model_args.model_name_or_path:
        place = model_args.model_name_or_path
        model = CnnRnnForImageTextRetrieval.from_pretrained(place, dtype=torch.float32)
        return model, CnnRnnAlignmentProcessor.from_pretrained(place)
    classes = CnnRnnForImageTextRetrieval, CnnRnnAlignmentProcessor
    return build_new_model(*classes, data_args, model_args, captions)


def prepare_alignment_encoder(
    model: CnnRnnForImageTextRetrieval,
    model_args: AlignmentModelArguments,
    args: AlignmentTrainingArguments,
    accelerator: Accelerator,
) -> None:
    """Freeze the CNN if the options say so, and set how it is computed."""
    if model_args.freezes_encoder:
        model.freeze_encoder()
    elif model_args.is_pretrained:
        model.unfreeze_encoder()
    set_computation(model, args, accelerator)


def build_alignment_datasets(
    model: CnnRnnForImageTextRetrieval,
    processor: CnnRnnAlignmentProcessor,
    train_rows: datasets.Dataset,
    eval_rows: datasets.Dataset,
    data_args: AlignmentDataArguments,
    model_args: AlignmentModelArguments,
    args: AlignmentTrainingArguments,
    accelerator: Accelerator,
) -> tuple[CaptionDataset, CaptionDataset]:
    """
    Make the dataset to train on and the one to evaluate on, as [`~modeling_cnnrnn.training.captioning.build_datasets`].

    Stored features are reduced to their principal components in memory, which are computed here for a new model.

    Raises:
        ValueError: several views of the images are stored without an augmentation that tells them apart, or there are fewer
            regions than components.
    """
    train_dataset, eval_dataset = build_datasets(model, processor, train_rows, eval_rows, data_args, args, accelerator)
    encoder = model.get_encoder()
    if train_dataset.image_features is None or encoder.reduction is None:
        return train_dataset, eval_dataset
    if not model_args.model_name_or_path:
        plain = train_dataset.image_features[0]
        some = plain[:: max(1, len(plain) // REDUCTION_SAMPLE)]
        encoder.fit_reduction(torch.from_numpy(np.array(some)).flatten(0, 1))
    for dataset in (train_dataset, eval_dataset):
        dataset.image_features = [reduce_features(model, view) for view in dataset.image_features or ()]
    return train_dataset, eval_dataset


def pointing_of(
    dataset: CaptionDataset, rows: datasets.Dataset
) -> Callable[[CnnRnnForImageTextRetrieval], dict[str, float]] | None:
    """
    Make the function that measures whether words point at their object, for pictures of `shapes`.

    Returns:
        A function from an alignment to [`pointing_scores`]; `None` for rows that do not say where their objects are, or
        stored features.
    """
    boxes = boxes_of(rows)
    if boxes is None or dataset.image_features is not None:
        return None
    captions = rows["captions"][:]
    return lambda model: pointing_scores(point_words(model, dataset, captions, boxes))


@torch.inference_mode()
def reduce_features(model: CnnRnnForImageTextRetrieval, features: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Reduce stored features `(num_images, num_regions, num_feature_channels)` to the components of a model."""
    encoder = model.get_encoder()
    parts = [torch.from_numpy(np.array(features[i : i + batch_size])) for i in range(0, len(features), batch_size)]
    return np.concatenate(
        [encoder.reduce_features(part.to(encoder.device, encoder.dtype)).half().cpu().numpy() for part in parts]
    )
