"""Rank the first hundred results of an alignment a second time, by how probable a captioner finds each caption."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..data.batching import CaptionDataset
from ..metrics.retrieval import retrieval_metrics
from ..models.encoder_cnnrnn import CnnRnnEncoderOutput
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration


SENTENCES_AT_ONCE = 100  # whose logits are in memory together


@torch.inference_mode()
def caption_log_probs(
    captioner: CnnRnnForConditionalGeneration,
    dataset: CaptionDataset,
    rows: Sequence[int],
    captions: Sequence[str],
    pairs: np.ndarray,
    progress: Callable = tqdm,
) -> np.ndarray:
    """
    Compute how much more probable captions are for images than for the mean image.

    A sentence of frequent words is probable for any image; its log-probability for the mean of the features of all images is
    subtracted (the mutual information of image and sentence, https://arxiv.org/abs/1510.03055).

    Args:
        captioner: the captioner.
        dataset: images or stored features, prepared by the processor of the captioner.
        rows: row of each image.
        captions: the sentences.
        pairs: which images and captions to compare, `(num_images, num_captions)`.
        progress: shows the progress over images, as `tqdm` does.

    Returns:
        `(num_images, num_captions)`, in nats; 0 where `pairs` is false.
    """
    captioner.eval()
    start = torch.tensor([captioner.generation_config.decoder_start_token_id])
    ids = [torch.cat([start, torch.tensor(row)]) for row in dataset.processor.encode_captions(list(captions))]
    images = [_encode(captioner, dataset[row]) for row in progress(rows, desc="Encoding", unit="image", leave=False)]
    prior = _log_probs(captioner, _mean_image(images), ids)
    result = np.zeros(pairs.shape, np.float32)
    for place, image in enumerate(progress(images, desc="Reranking", unit="image", leave=False)):
        chosen = np.flatnonzero(pairs[place])
        if len(chosen):
            result[place, chosen] = _log_probs(captioner, image, [ids[index] for index in chosen]) - prior[chosen]
    return result


def _encode(captioner: CnnRnnForConditionalGeneration, example: dict) -> CnnRnnEncoderOutput:
    name = "image_features" if "image_features" in example else "pixel_values"
    return captioner.get_encoder()(**{name: example[name][None].to(captioner.device)})


def _mean_image(images: list[CnnRnnEncoderOutput]) -> CnnRnnEncoderOutput:
    def mean(name: str) -> Any:
        return torch.stack([image[name] for image in images]).mean(dim=0) if name in images[0] else None

    return CnnRnnEncoderOutput(last_hidden_state=mean("last_hidden_state"), pooler_output=mean("pooler_output"))


def _log_probs(
    captioner: CnnRnnForConditionalGeneration, image: CnnRnnEncoderOutput, ids: Sequence[torch.Tensor]
) -> np.ndarray:
    """Compute the log-probabilities of sentences, start token first, for one image; those of one length together."""
    end = captioner.generation_config.eos_token_id
    padding = end[0] if isinstance(end, list) else end  # what follows the first end does not count
    order = np.argsort([len(sentence) for sentence in ids], kind="stable")
    result = np.zeros(len(ids), np.float32)
    for chosen in np.split(order, range(SENTENCES_AT_ONCE, len(ids), SENTENCES_AT_ONCE)):
        sequences = pad_sequence([ids[index] for index in chosen], batch_first=True, padding_value=padding)
        scores = captioner.score_sentences(sequences.to(captioner.device), image)
        assert scores.log_probs is not None
        result[chosen] = scores.log_probs.sum(dim=1).float().cpu().numpy()
    return result


def first_of(scores: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """
    Mark the first captions of each image and the first images of each caption.

    Returns:
        `{"image_to_text", "text_to_image"}`, each of the shape of `scores`.
    """
    marks = {}
    for direction, axis in (("image_to_text", 1), ("text_to_image", 0)):
        order = np.argsort(-scores, axis=axis, kind="stable").take(range(min(number, scores.shape[axis])), axis=axis)
        marks[direction] = np.zeros(scores.shape, bool)
        np.put_along_axis(marks[direction], order, True, axis=axis)
    return marks


def reranked_metrics(
    scores: np.ndarray,
    log_probs: np.ndarray,
    captions_per_image: Sequence[int],
    weights: Sequence[float],
    number: int = 100,
) -> dict[str, float]:
    """
    Measure the retrieval when the first results of each query are ranked by `scores + weight * log_probs`.

    Args:
        scores: of the alignment, `(num_images, num_captions)`.
        log_probs: of [`caption_log_probs`], for the pairs of [`first_of`].
        weights: of image to text and of text to image. Captions of one image are compared with care, since an unlikely one is
            raised most; images of one caption differ in nothing else.
        number: results of a query that are ranked a second time; the others keep their places behind them.

    Returns:
        the metrics of [`~modeling_cnnrnn.evaluation.alignment_scores.flat_metrics`], without their sum.

    Raises:
        ValueError: there are not two weights.
    """
    if len(weights) != 2:
        raise ValueError(f"`captioner_weights` is {weights}: pass two numbers, of image to text and of text to image.")
    measured: dict[str, float] = {}
    for (direction, mark), weight in zip(first_of(scores, number).items(), weights, strict=True):
        combined = np.where(mark, scores + weight * log_probs, scores)
        # the others stay behind: all of theirs below the lowest of the first
        gap = combined.max() - combined.min() + 1
        ranked = retrieval_metrics(np.where(mark, combined, combined - gap), captions_per_image)[direction]
        measured |= {f"{direction}_{name}": value for name, value in ranked.items()}
    return measured
