"""Compute the scores that papers report, from raw captions."""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from .bleu import bleu
from .cider import cider
from .java import NotComputedError, meteor, spice
from .ngrams import PairedCaptions
from .rouge import rouge_l
from .words import tokenize_captions


METRICS = ("bleu", "rouge", "cider", "meteor", "spice")


class CaptionScores(dict[str, float | None]):
    """
    Scores of a set of predictions: a dict from a score's name to its value for the corpus, `None` if not computed.

    Args:
        image_ids: the images, in the order of `per_image`.
        per_image: for each score that was computed, its value for each image, `(num_images,)`.
        not_computed: for each score that is `None`, the reason.
    """

    def __init__(self, image_ids: Sequence[Hashable]):
        super().__init__()
        self.image_ids = list(image_ids)
        self.per_image: dict[str, np.ndarray] = {}
        self.not_computed: dict[str, str] = {}

    def __str__(self) -> str:
        return "\n".join(
            f"{name:8}{value:8.4f}" if value is not None else f"{name:8}   not computed: {self.not_computed[name]}"
            for name, value in self.items()
        )


def caption_metrics(
    predictions: Sequence[str] | Mapping[Hashable, str],
    references: Sequence[Sequence[str]] | Mapping[Hashable, Sequence[str]],
    metrics: Iterable[str] = ("bleu", "rouge", "cider"),
    timeout: float = 1800.0,
) -> CaptionScores:
    """
    Score captions as coco-caption does: same tokens, same values; only METEOR and SPICE need Java.

    The captions are raw sentences: tokenizing is part of the metric. Where a script has no spaces (Chinese, Japanese, Thai,
    ...) each character is a word, see `tokenize_captions`; coco-caption would give such captions the score 0. CIDEr is
    coco-caption's CIDEr, which is the paper's CIDEr-D. It weights words by the references given here, so scores of
    different sets of images cannot be compared.

    If every score is 0, a warning says so.

    Args:
        predictions: one caption for each image, in a list or keyed by image.
        references: the references of each image, in a list in the same order or keyed by the same images. The order
            of the images is that of `references`; Stanford's tokenizer reads on into the next caption, so the order
            can matter for a caption that ends in an abbreviation.
        metrics: some of "bleu", "rouge", "cider", "meteor" and "spice". The last two need Java and pycocoevalcap; if they
            fail, their score is `None`, and `not_computed` has the reason.
        timeout: seconds that METEOR and SPICE may each take.

    Returns:
        `CaptionScores`: "BLEU-1" .. "BLEU-4", "ROUGE-L", "CIDEr", "METEOR", "SPICE", for the metrics that were asked for.

    Raises:
        ValueError: images differ, an image has no reference, or a metric has another name.
        TypeError: a caption is not a string.
    """
    metrics = list(metrics)
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ValueError(f"`metrics` holds {unknown[0]!r}: choose from {', '.join(METRICS)}.")
    image_ids, predictions, references = _align(predictions, references)

    # two texts, as in coco-caption: all references image by image, and all predictions
    tokens = iter(tokenize_captions([caption for captions in references for caption in captions]))
    references = [[next(tokens) for _ in captions] for captions in references]
    predictions = tokenize_captions(predictions)

    scores = CaptionScores(image_ids)
    paired = PairedCaptions.from_captions(predictions, references)
    if "bleu" in metrics:
        for n, (value, per_image) in enumerate(zip(*bleu(paired), strict=True), start=1):
            scores[f"BLEU-{n}"], scores.per_image[f"BLEU-{n}"] = value, per_image
    if "rouge" in metrics:
        scores["ROUGE-L"], scores.per_image["ROUGE-L"] = rouge_l(predictions, references)
    if "cider" in metrics:
        if len(image_ids) == 1:
            warnings.warn("CIDEr of one image is 0 by definition: each word is in all images.", stacklevel=2)
        scores["CIDEr"], scores.per_image["CIDEr"] = cider(paired)
    for name, metric in ("METEOR", meteor), ("SPICE", spice):
        if name.lower() in metrics:
            try:
                scores[name], scores.per_image[name] = metric(predictions, references, timeout)
            except NotComputedError as reason:
                scores[name], scores.not_computed[name] = None, str(reason)
    _warn_of_zeros(scores, predictions, references)
    return scores


def _warn_of_zeros(scores: CaptionScores, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Warn if every score that can be more than 0 is 0.0000."""
    has_one_image = len(scores.image_ids) == 1
    values = [value for name, value in scores.items() if not (has_one_image and name == "CIDEr")]
    computed = [value for value in values if value is not None]
    if not computed or any(round(value, 4) for value in computed):
        return
    if not any(predictions):
        reason = "no prediction has a word: the model ends each sentence at once, or writes only punctuation"
    else:
        place = next(place for place, prediction in enumerate(predictions) if prediction)
        reason = (
            f"predictions and references have hardly a word in common, such as {show(predictions[place])} and "
            f"{show(references[place][0])} of image {show(scores.image_ids[place])}: check that both are of the same "
            "images and in the same language; a model that has just begun to learn also scores 0"
        )
    warnings.warn(f"Every score is 0: {reason}.", stacklevel=3)


def group_by_image(rows: Iterable[tuple[Hashable, str]]) -> dict[Hashable, list[str]]:
    """Gather rows of `(image, caption)`, one caption each, into the captions of each image, in order of appearance."""
    captions: dict[Hashable, list[str]] = {}
    for image, caption in rows:
        captions.setdefault(image, []).append(caption)
    return captions


def _align(
    predictions: Sequence[str] | Mapping[Hashable, str],
    references: Sequence[Sequence[str]] | Mapping[Hashable, Sequence[str]],
) -> tuple[list[Hashable], list[str], list[Sequence[str]]]:
    """Check predictions and references, and bring them with the image ids into the order of `references`."""
    if isinstance(predictions, Mapping) and isinstance(references, Mapping):
        if predictions.keys() != references.keys():
            without_prediction = [image for image in references if image not in predictions]
            without_reference = [image for image in predictions if image not in references]
            raise ValueError(
                "predictions and references are not of the same images: "
                f"{_some(without_prediction)} without a prediction, {_some(without_reference)} without references. "
                "Name an image alike in both (1 and '1' differ), and leave out images that only one of them has."
            )
        predictions = [predictions[image] for image in references]
        image_ids, references = list(references), list(references.values())
    elif isinstance(predictions, Mapping) or isinstance(references, Mapping):
        raise TypeError("`predictions` and `references` must both be keyed by image or both be lists.")
    elif len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for the references of {len(references)} images: pass one prediction and "
            "one list of references for each image (`group_by_image` gathers rows that have one caption each)."
        )
    else:
        image_ids, predictions, references = list(range(len(references))), list(predictions), list(references)
    if not image_ids:
        raise ValueError("there are no predictions: pass at least one image.")
    for image, prediction, captions in zip(image_ids, predictions, references, strict=True):
        if not isinstance(prediction, str):
            raise TypeError(
                f"the prediction of image {show(image)} is {show(prediction)}: pass one string for each image."
            )
        if isinstance(captions, str):
            raise TypeError(f"the references of image {show(image)} are one string: pass a list of strings.")
        if not len(captions):
            raise ValueError(f"image {show(image)} has no references: pass at least one, or leave the image out.")
        if bad := [caption for caption in captions if not isinstance(caption, str)]:
            raise TypeError(f"image {show(image)} has {show(bad[0])} among its references: captions are strings.")
    return image_ids, predictions, references


def _some(images: Sequence[Hashable]) -> str:
    """Count images, and name one of them."""
    return f"{len(images)} (such as {show(images[0])})" if images else "none"


def show(value: object) -> str:
    """Write a value for a message, a long one cut."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
