"""
Write a page of pictures with their generated captions: one HTML file that needs no other.

Pictures are thumbnails inside the file. An attention map is a small veil over its picture, dark where the attention is low,
so that a caption of twelve words costs one picture and twelve tiny images.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..models.image_loading_cnnrnn import load_image
from .pages import data_url, is_small, write_page


VEIL_SIZE = 32  # pixels of an attention map in the page, whatever the CNN's grid
VEIL_OPACITY = 0.82


@dataclass
class GalleryRow:
    """
    One picture with its captions.

    Args:
        image: the picture, of any size and mode.
        caption: the generated sentence.
        references: the reference captions.
        log_probs: log-probability of each generated token in nats, end token included.
        is_correct: whether the caption is true, where that is known.
        attentions: attention map of each word over the whole picture, `(num_words, height, width)`; maps of further tokens,
            such as the end, are left out.
        name: file name or id.
        words: the tokens of `log_probs` and `attentions`, where they are not the words of `caption`: a tokenizer may make
            two tokens of "man's".
    """

    image: Image.Image
    caption: str
    references: Sequence[str] = ()
    log_probs: Sequence[float] | None = None
    is_correct: bool | None = None
    attentions: np.ndarray | None = None
    name: str | None = None
    words: Sequence[str] | None = None


def write_gallery(
    path: str | os.PathLike,
    rows: Iterable[GalleryRow],
    title: str = "Captions",
    summary: Mapping[str, object] | None = None,
    thumbnail_size: int = 256,
) -> Path:
    """
    Write the page, whole or not at all.

    Args:
        path: the HTML file.
        rows: the pictures, in the order of the page.
        title: heading of the page.
        summary: names and values shown above the pictures, such as scores.
        thumbnail_size: longest side of a thumbnail in pixels; a thousand photographs of 256 take about 20 MB.

    Raises:
        ValueError: the attention maps of a row do not fit its sentence.
    """
    prepared = [_prepare(row, thumbnail_size) for row in rows]
    template = Path(__file__).with_name("gallery.html.jinja")
    return write_page(path, template, title=title, summary=summary or {}, rows=prepared)


def _prepare(row: GalleryRow, thumbnail_size: int) -> dict:
    """Make the values that the template shows for a row."""
    image = load_image(row.image).copy()  # it becomes smaller
    keeps_pixels = is_small(image, thumbnail_size)
    image.thumbnail((thumbnail_size, thumbnail_size))
    words = row.caption.split() if row.words is None else row.words
    veils: list[str] = []
    if row.attentions is not None:
        maps = np.asarray(row.attentions, dtype=np.float32)
        if maps.ndim != 3 or len(maps) < len(words):
            raise ValueError(
                f"`attentions` has shape {maps.shape} for the {len(words)} words of {row.caption!r}: pass one map per "
                "word, (num_words, height, width)."
            )
        veils = [data_url(_veil(attention), "PNG") for attention in maps]
    log_probs = row.log_probs or ()
    probabilities = list(map(math.exp, log_probs)) if log_probs else [None] * len(words)
    return {
        "name": row.name,
        "caption": row.caption,
        "references": row.references,
        "is_correct": row.is_correct,
        "log_prob": sum(log_probs) if log_probs else None,
        "mean_probability": math.exp(sum(log_probs) / len(log_probs)) if log_probs else None,
        "picture": data_url(image, "PNG" if keeps_pixels else "JPEG"),
        "width": image.width,
        "height": image.height,
        "is_small": keeps_pixels,
        "words": list(zip(words, probabilities, veils, strict=False)) if row.attentions is not None else [],
    }


def _veil(attention: np.ndarray) -> Image.Image:
    """Make a black image that is the more transparent, the higher the attention."""
    attention = np.nan_to_num(attention)
    light = Image.fromarray(attention / max(attention.max(), 1e-12)).resize(
        (VEIL_SIZE, VEIL_SIZE), Image.Resampling.BICUBIC
    )
    opacity = VEIL_OPACITY * (1 - np.clip(np.asarray(light), 0, 1))
    # few levels of opacity look the same and take half the space
    levels = (opacity * 255 / 8).round().astype(np.uint8) * 8
    return Image.merge("LA", (Image.new("L", light.size), Image.fromarray(levels)))
