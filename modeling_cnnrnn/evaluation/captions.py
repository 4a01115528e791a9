"""Generate captions for a dataset and score them: loss, sentences and probabilities from one pass of the CNN."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutput

from ..data.batching import CaptionDataset, collate_captions
from ..metrics import CaptionScores, caption_metrics
from ..models.image_view_cnnrnn import View
from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_cnnrnn import CnnRnnProcessor
from .consensus import rank_by_consensus


MAP_SIZE = 32  # rows and columns of an attention map that lies on a picture
BOX_LIMIT = 2.0  # boxes in parts of a picture end near 1, those in pixels far beyond


@dataclass
class GeneratedCaption:
    """
    A generated caption of one image.

    Attributes:
        row: the image's row in the dataset.
        caption: the sentence.
        log_probability: log-probability of the sentence, its end included, in nats.
        words: the sentence's tokens, with the end token if it was generated.
        word_probabilities: the probability of each of `words`.
        attention: attention map of each of `words`, `(num_words, height, width)`, for models with attention; with `boxes`,
            the weight of each of them, `(num_words, 1, num_regions)`.
        cell_centers: where the rows and the columns of these maps look, in parts of the picture that the CNN sees.
        all_captions: all sentences that were generated about the image, this one first, if they are several.
        boxes: left, top, right and bottom of the regions of a detector, `(num_regions, 4)`, in pixels or in parts of the
            picture.
    """

    row: int
    caption: str
    log_probability: float = math.nan
    words: list[str] = field(default_factory=list)
    word_probabilities: list[float] = field(default_factory=list)
    attention: np.ndarray | None = None
    cell_centers: tuple[torch.Tensor, torch.Tensor] | None = None
    all_captions: list[str] = field(default_factory=list)
    boxes: np.ndarray | None = None

    def attention_over(self, view: View) -> np.ndarray | None:
        """Lay the attention maps on the whole picture, of which the CNN sees a part, `(num_words, MAP_SIZE, MAP_SIZE)`."""
        if self.attention is not None and self.boxes is not None:
            is_pixels = self.boxes.max() > BOX_LIMIT
            sides = (view.width, view.height) * 2 if is_pixels else (1, 1, 1, 1)
            return _lay_boxes(self.attention[:, 0], self.boxes / np.array(sides, np.float32))
        if self.attention is None or self.cell_centers is None:
            return None
        return view.lay_maps(torch.from_numpy(self.attention), self.cell_centers, (MAP_SIZE, MAP_SIZE)).numpy()


@dataclass
class CaptionEvaluation:
    """
    What one pass over a dataset gives; the same on every process.

    Attributes:
        loss: cross-entropy per token over all captions, end tokens included, in nats (its exponential is the perplexity);
            `None` if it was not asked for.
        captions: for each setting of `generation`, one caption of each readable image, in the order of the rows.
        seconds: for each setting of `generation`, the time to read the images, encode them and generate the captions.
        broken: the rows whose image cannot be read, each with the reason.
    """

    loss: float | None
    captions: list[list[GeneratedCaption]]
    seconds: list[float]
    broken: dict[int, str]


@torch.inference_mode()
def evaluate_captioner(
    model: CnnRnnForConditionalGeneration,
    dataset: CaptionDataset,
    accelerator: Accelerator | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    generation: Sequence[Mapping[str, Any]] = ({},),
    with_loss: bool = True,
    with_attention: bool = False,
    progress: Callable = tqdm,
) -> CaptionEvaluation:
    """
    Compute the loss over all captions and generate captions, in one or several ways, encoding each image once.

    Several processes share the images, and each receives the whole result. Images that cannot be read are left out.

    Args:
        model: the captioner, not wrapped for several processes.
        dataset: images or stored features, with all captions of an image in one example (`captions_per_image`).
        batch_size: images in a batch.
        generation: keyword arguments of `generate` (`num_beams`, `max_length`, ...), one mapping for each way to generate;
            what is not given is as in the model's generation config. With `num_return_sequences` the first sentence counts;
            `by_consensus=True` ranks them before, see [`rank_by_consensus`].
        with_loss: whether to compute the loss.
        with_attention: whether to return attention maps, for models with attention and a square grid of regions.
        progress: shows the progress over batches, as `tqdm` does.
    """
    rank, num_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    rows = range(rank, len(dataset), num_processes)
    loader = DataLoader(Subset(dataset, rows), batch_size, collate_fn=collate_captions, num_workers=num_workers)
    was_training = model.training
    model.eval()
    total_loss = torch.zeros(2, dtype=torch.float64)  # the sum over tokens, and their number
    found = CaptionEvaluation(None, [[] for _ in generation], [0.0 for _ in generation], {})
    started = time.perf_counter()
    for batch in progress(loader, desc="Evaluation", unit="batch", disable=rank > 0, leave=False):
        with accelerator.autocast() if accelerator else nullcontext():
            encoder_outputs = _encode(model, batch)
            encoding_seconds = time.perf_counter() - started
            if with_loss:
                total_loss += _sum_of_losses(model, encoder_outputs, batch["labels"].to(model.device))
            for index, options in enumerate(generation):
                started = time.perf_counter()
                found.captions[index] += _generate_batch(
                    model, dataset.processor, encoder_outputs, batch["rows"], with_attention, options, dataset.boxes
                )
                found.seconds[index] += encoding_seconds + time.perf_counter() - started
        found.broken |= dict(batch["broken"])
        started = time.perf_counter()
    model.train(was_training)
    if accelerator and num_processes > 1:
        total_loss = accelerator.reduce(total_loss.to(accelerator.device), reduction="sum").cpu()
        found = _gather(found)
    if with_loss:
        found.loss = (total_loss[0] / total_loss[1]).item()
    found.captions = [[caption for caption in written if caption.row not in found.broken] for written in found.captions]
    return found


@torch.inference_mode()
def caption_pictures(
    model: CnnRnnForConditionalGeneration, processor: CnnRnnProcessor, images: Sequence[Image.Image], **options: Any
) -> list[GeneratedCaption]:
    """
    Generate a caption of each of some pictures, with the probability and the attention map of each word.

    Args:
        model: the captioner, in evaluation mode.
        images: the pictures; `row` of a caption counts them.
        options: keyword arguments of `generate`.
    """
    pixel_values = processor(images=list(images), return_tensors="pt")["pixel_values"]
    encoder_outputs = _encode(model, {"pixel_values": pixel_values})
    return list(_generate_batch(model, processor, encoder_outputs, range(len(images)), True, options))


def _gather(found: CaptionEvaluation) -> CaptionEvaluation:
    """Put together what each process has found; the slowest one decides the time."""
    return CaptionEvaluation(
        found.loss,
        [sorted(gather_object(written), key=lambda caption: caption.row) for written in found.captions],
        [max(seconds) for seconds in zip(*gather_object([found.seconds]), strict=True)],
        dict(sorted(gather_object(list(found.broken.items())))),
    )


def _encode(model: CnnRnnForConditionalGeneration, batch: Mapping[str, Any]) -> BaseModelOutput:
    """Encode the images of a batch, and wait until the device has done so."""
    names = ("pixel_values", "image_features", "image_features_mask")
    inputs = {name: batch[name].to(model.device) for name in names if name in batch}
    encoder_outputs = model.get_encoder()(**inputs)
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)  # or the time of the CNN would be counted elsewhere
    return encoder_outputs


def _sum_of_losses(
    model: CnnRnnForConditionalGeneration, encoder_outputs: BaseModelOutput, labels: torch.Tensor
) -> torch.Tensor:
    """The cross-entropy summed over all tokens of a batch, and their number, `(2,)`."""
    loss = model(labels=labels, encoder_outputs=encoder_outputs, skip_logits=True, num_items_in_batch=1).loss
    return torch.tensor([loss.item(), (labels != IGNORE_INDEX).sum().item()], dtype=torch.float64)


def _generate_batch(
    model,
    processor,
    encoder_outputs,
    rows: Sequence[int],
    with_attention: bool,
    options: Mapping[str, Any],
    boxes_of: Callable[[int], np.ndarray | None] = lambda row: None,
) -> Iterator[GeneratedCaption]:
    """Generate one caption of each image of a batch, or several of which the first counts."""
    options = dict(options)
    by_consensus = options.pop("by_consensus", False)
    sequences = model.generate(encoder_outputs=encoder_outputs, **options)
    each = len(sequences) // len(rows)
    texts = processor.batch_decode(sequences, skip_special_tokens=True)
    by_image = [texts[start : start + each] for start in range(0, len(texts), each)]
    orders = rank_by_consensus(by_image) if by_consensus else [[*range(each)] for _ in rows]
    by_image = [[captions[place] for place in order] for captions, order in zip(by_image, orders, strict=True)]
    sequences = sequences[[image * each + order[0] for image, order in enumerate(orders)]]
    # one pass over the finished sentences gives their probabilities and attention, whatever the way of decoding
    scores = model.score_sentences(sequences, encoder_outputs, output_attentions=with_attention)
    # regions that come from outside have no grid
    has_cells = scores.attentions is not None and getattr(model.config, "feature_size", None) is None
    centers = _cell_centers(model, processor) if has_cells else None
    for index, row in enumerate(rows):
        is_token = scores.mask[index]
        log_probabilities = scores.log_probs[index][is_token]
        boxes = boxes_of(row) if scores.attentions is not None and centers is None else None
        maps = None
        if centers is not None:
            maps = _maps(scores.attentions[index][is_token], centers)
        elif boxes is not None:
            maps = scores.attentions[index][is_token][:, None, : len(boxes)].float().cpu().numpy()
        yield GeneratedCaption(
            row,
            by_image[index][0],
            log_probabilities.sum().item(),
            processor.tokenizer.convert_ids_to_tokens(sequences[index, 1:][is_token].tolist()),
            log_probabilities.exp().tolist(),
            maps,
            centers,
            by_image[index] if each > 1 else [],
            boxes,
        )


def _lay_boxes(weights: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Lay weights of boxes `(num_words, num_regions)`, in parts of a picture, on it: `(num_words, MAP_SIZE, MAP_SIZE)`."""
    edges = np.arange(MAP_SIZE + 1, dtype=np.float32) / MAP_SIZE
    # the share of each row and of each column of the map that a box covers
    columns, rows = (np.diff(edges.clip(boxes[:, [low]], boxes[:, [low + 2]]), axis=1) * MAP_SIZE for low in (0, 1))
    return np.einsum("wr,rh,rv->whv", weights, rows, columns)


def _cell_centers(
    model: CnnRnnForConditionalGeneration, processor: CnnRnnProcessor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find where the cells look in pictures of the size that the processor makes."""
    pixel_values = processor(images=Image.new("RGB", (64, 64)), return_tensors="np")["pixel_values"]
    return model.get_encoder().cell_centers(*pixel_values.shape[2:])


def _maps(attentions: torch.Tensor, centers: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray | None:
    """Attention over regions `(num_words, num_regions)` as maps `(num_words, height, width)`; `None` if they do not fit."""
    height, width = (len(axis) for axis in centers)
    fits = attentions.shape[-1] == height * width
    return attentions.float().cpu().numpy().reshape(-1, height, width) if fits else None


def score_captions(
    captions: Sequence[GeneratedCaption],
    references: Sequence[Sequence[str]],
    metrics: Iterable[str] = ("bleu", "rouge", "cider"),
    checker: Callable[[str, int], bool] | None = None,
) -> tuple[CaptionScores, list[bool] | None]:
    """
    Score generated captions against the references of each image.

    Args:
        references: the reference captions of each row of the dataset.
        metrics: names of the metrics, as in [`~modeling_cnnrnn.metrics.caption_metrics`].
        checker: tells whether a sentence is true of the image of a row. The scores then hold "accuracy", the share of
            captions that are.

    Returns:
        The scores, and with a `checker` which captions are true.
    """
    scores = caption_metrics(
        {caption.row: caption.caption for caption in captions},
        {caption.row: references[caption.row] for caption in captions},
        metrics,
    )
    if checker is None:
        return scores, None
    right = [checker(caption.caption, caption.row) for caption in captions]
    scores["accuracy"] = sum(right) / len(right)
    return scores, right
