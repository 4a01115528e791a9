"""Score the images of a dataset with its captions, each with each, by an alignment; and measure the retrieval."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.batching import CaptionDataset, collate_captions
from ..metrics.retrieval import retrieval_metrics
from ..models.modeling_alignment_cnnrnn import CnnRnnForImageTextRetrieval
from ..models.region_encoder_cnnrnn import CnnRnnRegionOutput


CAPTIONS_IN_A_BATCH = 256
IMAGES_IN_A_BATCH = 256


@dataclass
class AlignmentScores:
    """
    How well the images of a dataset fit its captions; the same on every process.

    Attributes:
        scores: of all images and all captions, `(num_images, num_captions)`, the captions of an image side by side.
        rows: the row of each image in the dataset; images that cannot be read, or have no caption of known words, are left
            out.
        captions_per_image: number of captions of each image.
        broken: the rows whose image cannot be read, each with the reason.
    """

    scores: np.ndarray
    rows: list[int]
    captions_per_image: list[int]
    broken: dict[int, str]


@torch.inference_mode()
def score_dataset(
    model: CnnRnnForImageTextRetrieval,
    dataset: CaptionDataset,
    accelerator: Accelerator | None = None,
    batch_size: int = 50,
    num_workers: int = 0,
    captions: Sequence[Sequence[int]] | None = None,
    progress: Callable = tqdm,
) -> AlignmentScores:
    """
    Score all images of a dataset with all its captions.

    Several processes share the captions, and each embeds all images and receives the whole result.

    Args:
        model: the alignment, not wrapped for several processes.
        dataset: images or stored features, with all captions of an image in one example (`captions_per_image`).
        batch_size: images in a batch of the CNN.
        captions: token ids of other captions to score the images with, in place of their own.
        progress: shows the progress over batches, as `tqdm` does.

    Raises:
        ValueError: no image can be read and has a caption.
    """
    rank, num_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    was_training = model.training
    model.eval()
    rows: list[int] = []
    broken: dict[int, str] = {}
    embedded = []
    loader = DataLoader(dataset, batch_size, collate_fn=collate_captions, num_workers=num_workers)
    for batch in progress(loader, desc="Evaluation", unit="batch", disable=rank > 0, leave=False):
        broken |= dict(batch["broken"])
        kept = [index for index, row in enumerate(batch["rows"]) if dataset.labels[row] and row not in broken]
        inputs = {name: batch[name].to(model.device) for name in ("pixel_values", "image_features") if name in batch}
        if kept:
            with accelerator.autocast() if accelerator else nullcontext():
                embedded.append(_select(model.get_image_features(**inputs), kept))
        rows += [batch["rows"][index] for index in kept]
    if not rows:
        raise ValueError("No image can be read and has a caption of known words, so there is nothing to score.")
    counts = [len(dataset.labels[row]) for row in rows]
    own = [caption for row in rows for caption in dataset.labels[row]]
    with accelerator.autocast() if accelerator else nullcontext():
        scores = _score(model, _join(embedded), own if captions is None else captions, rank, num_processes)
    model.train(was_training)
    if accelerator and num_processes > 1:
        scores = accelerator.reduce(scores.to(accelerator.device), reduction="sum")
    return AlignmentScores(scores.cpu().numpy(), rows, counts, broken)


def _select(regions: CnnRnnRegionOutput, kept: list[int]) -> CnnRnnRegionOutput:
    return CnnRnnRegionOutput(
        last_hidden_state=regions.last_hidden_state[kept],
        pooler_output=regions.pooler_output[kept],
        region_mask=None if regions.region_mask is None else regions.region_mask[kept],
    )


def _join(parts: Sequence[CnnRnnRegionOutput]) -> list[CnnRnnRegionOutput]:
    """Put images together in batches whose products are efficient."""
    regions = torch.cat([part.last_hidden_state for part in parts])
    pooled = torch.cat([part.pooler_output for part in parts])
    return [
        CnnRnnRegionOutput(last_hidden_state=some, pooler_output=means)
        for some, means in zip(regions.split(IMAGES_IN_A_BATCH), pooled.split(IMAGES_IN_A_BATCH), strict=True)
    ]


def _score(
    model: CnnRnnForImageTextRetrieval,
    images: Sequence[CnnRnnRegionOutput],
    captions: Sequence[Sequence[int]],
    rank: int,
    num_processes: int,
) -> torch.Tensor:
    """Score all images with this process's share of the captions; the others score 0."""
    num_images = sum(len(part.pooler_output) for part in images)
    scores = torch.zeros(num_images, len(captions), device=model.device)
    pad_token_id = model.config.pad_token_id or 0
    for start in range(rank * CAPTIONS_IN_A_BATCH, len(captions), num_processes * CAPTIONS_IN_A_BATCH):
        ids = [torch.tensor(caption) for caption in captions[start : start + CAPTIONS_IN_A_BATCH]]
        padded = pad_sequence(ids, batch_first=True, padding_value=pad_token_id).to(model.device)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
        words = model.get_text_features(padded, mask)
        scores[:, start : start + len(ids)] = torch.cat([model.similarity(part, words) for part in images])
    return scores


def flat_metrics(
    scores: np.ndarray, captions_per_image: Sequence[int], fold_size: int | None = None
) -> dict[str, float]:
    """
    Name the values of [`retrieval_metrics`] in one level, with "rsum", the sum of the six recalls, beside them.

    Returns:
        `{"rsum", "image_to_text_R@1", ..., "text_to_image_median_rank"}`.
    """
    measured: Mapping[str, Mapping[str, float]] = retrieval_metrics(scores, captions_per_image, fold_size)
    flat = {f"{direction}_{name}": value for direction, values in measured.items() for name, value in values.items()}
    return {"rsum": sum(value for name, value in flat.items() if "R@" in name)} | flat
