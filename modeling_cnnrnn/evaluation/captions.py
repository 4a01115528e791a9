"""Sentences for images never seen, and how good they are."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data.batching import CaptionDataset, collate_captions
from ..metrics import CaptionScores, caption_metrics
from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration


@dataclass
class GeneratedCaption:
    """
    What the model wrote about one image.

    Attributes:
        row: the image's place in the dataset.
        caption: the sentence.
        log_probability: of the sentence with its end, in nats.
        words: the sentence's words.
        word_probabilities: the probability of each word, and of the end.
        attention: where the model looked for each word, `(num_words, height, width)`, of an attention model.
    """

    row: int
    caption: str
    log_probability: float = math.nan
    words: list[str] = field(default_factory=list)
    word_probabilities: list[float] = field(default_factory=list)
    attention: np.ndarray | None = None


@torch.inference_mode()
def generate_captions(
    model: CnnRnnForConditionalGeneration,
    dataset: CaptionDataset,
    accelerator: Accelerator | None = None,
    batch_size: int = 32,
    with_attention: bool = False,
    num_workers: int = 0,
    progress: Callable = tqdm,
    **generate_kwargs,
) -> list[GeneratedCaption]:
    """
    Write one sentence about each image; several processes share the work and all receive the whole result.

    Args:
        dataset: of images or stored features; its captions are not looked at. Broken images are left out.
        with_attention: return the attention maps too, for models that have them and images of a square grid of regions.
        generate_kwargs: `num_beams`, `max_length` and so on; what is not given is as in the model's generation config.
    """
    rank, num_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    rows = range(rank, len(dataset), num_processes)
    loader = DataLoader(Subset(dataset, rows), batch_size, collate_fn=collate_captions, num_workers=num_workers)
    was_training = model.training
    model.eval()
    captions: list[GeneratedCaption] = []
    broken: set[int] = set()
    for start, batch in enumerate(progress(loader, desc="Captions", unit="batch", disable=rank > 0, leave=False)):
        batch_rows = rows[start * batch_size : (start + 1) * batch_size]
        with accelerator.autocast() if accelerator else nullcontext():
            captions += _caption_batch(model, dataset, batch, batch_rows, with_attention, generate_kwargs)
        broken |= {row for row, _ in batch["broken"]}
    model.train(was_training)
    captions = [caption for caption in captions if caption.row not in broken]
    if num_processes > 1:
        captions = sorted(gather_object(captions), key=lambda caption: caption.row)
    return captions


def _caption_batch(model, dataset, batch, rows, with_attention, generate_kwargs) -> list[GeneratedCaption]:
    inputs = {name: batch[name].to(model.device) for name in ("pixel_values", "image_features") if name in batch}
    encoder_outputs = model.get_encoder()(**inputs)
    sequences = model.generate(encoder_outputs=encoder_outputs, **generate_kwargs)
    # one pass over the finished sentences gives their probabilities and attention, whatever the way of decoding
    tokenizer = dataset.processor.tokenizer
    targets = sequences[:, 1:]
    ends = (targets == tokenizer.eos_token_id).long()
    is_token = ends.cumsum(dim=1) - ends == 0  # up to the first end, the end included
    outputs = model(
        decoder_input_ids=sequences[:, :-1], encoder_outputs=encoder_outputs, use_cache=False, output_attentions=True
    )
    log_probabilities = outputs.logits.float().log_softmax(dim=-1).gather(2, targets[..., None]).squeeze(-1)
    texts = dataset.processor.batch_decode(sequences, skip_special_tokens=True)
    captions = []
    for index, row in enumerate(rows):
        ids = targets[index][is_token[index]]
        probabilities = log_probabilities[index][is_token[index]]
        attention = None
        if with_attention and outputs.cross_attentions:
            maps = outputs.cross_attentions[0][index, 0][is_token[index]].float().cpu().numpy()
            side = math.isqrt(maps.shape[-1])
            attention = maps.reshape(-1, side, side) if side * side == maps.shape[-1] else None
        captions.append(
            GeneratedCaption(
                row,
                texts[index],
                probabilities.sum().item(),
                tokenizer.convert_ids_to_tokens(ids.tolist()),
                probabilities.exp().tolist(),
                attention,
            )
        )
    return captions


@torch.inference_mode()
def evaluation_loss(
    model: CnnRnnForConditionalGeneration,
    dataset: CaptionDataset,
    accelerator: Accelerator,
    batch_size: int = 32,
    num_workers: int = 0,
) -> float:
    """Cross-entropy per token over all captions, the end counted, in nats: its exponential is the perplexity."""
    rows = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    loader = DataLoader(Subset(dataset, rows), batch_size, collate_fn=collate_captions, num_workers=num_workers)
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for batch in loader:
        batch = {name: value.to(model.device) for name, value in batch.items() if name not in ("rows", "broken")}
        num_tokens = (batch["labels"] != IGNORE_INDEX).sum().item()
        with accelerator.autocast():
            loss = model(**batch, skip_logits=True, num_items_in_batch=1).loss
        total += torch.tensor([loss.item(), num_tokens], dtype=torch.float64)
    model.train(was_training)
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total.to(accelerator.device), reduction="sum").cpu()
    return (total[0] / total[1]).item()


def score_captions(
    captions: Sequence[GeneratedCaption],
    references: Sequence[Sequence[str]],
    metrics: Iterable[str] = ("bleu", "rouge", "cider"),
    scenes: Sequence[str] | None = None,
) -> tuple[CaptionScores, list[bool] | None]:
    """
    Score what was written against the references of each image.

    Args:
        references: of each row of the dataset.
        scenes: of `shapes`, what each picture shows. The scores then hold "accuracy", the share of sentences that say
            exactly what their picture shows.

    Returns:
        The scores, and for `shapes` which captions are right.
    """
    scores = caption_metrics(
        {caption.row: caption.caption for caption in captions},
        {caption.row: references[caption.row] for caption in captions},
        metrics,
    )
    if scenes is None:
        return scores, None
    from ..data.shapes.language import is_correct

    right = [is_correct(caption.caption, scenes[caption.row]) for caption in captions]
    scores["accuracy"] = sum(right) / len(right)
    return scores, right
