"""Figures of captions: where the model looks while it writes each word, and which region each sentence is about."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from ..files import atomic_path
from .fonts import plain_text


matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle


VEIL_OPACITY = 0.75
TILE_SIZE = 1.5  # inches


def save_attention_figure(
    path: str | os.PathLike,
    images: Sequence[Image.Image],
    words: Sequence[Sequence[str]],
    attentions: Sequence[np.ndarray],
) -> None:
    """
    Draw one row for each image: the image, then for each word of its caption the image, dark where the model does not look.

    The layout is that of figure 3 of Show, Attend and Tell (https://arxiv.org/abs/1502.03044).

    Args:
        path: the PNG file.
        images: the pictures.
        words: the words of each caption.
        attentions: for each caption `(num_words, height, width)`, over the whole picture; maps of further tokens, such as the
            end, are left out.
    """
    columns = 1 + max(len(row) for row in words)
    size = (TILE_SIZE * columns, 1.2 * TILE_SIZE * len(images))
    with plain_text(word for row in words for word in row), atomic_path(path) as partial:
        figure, axes = plt.subplots(len(images), columns, figsize=size, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for row, image, its_words, maps in zip(axes, images, words, attentions, strict=True):
            row[0].imshow(image)
            for axis, word, attention in zip(row[1:], its_words, maps, strict=False):
                axis.imshow(_veiled(image, np.asarray(attention, dtype=np.float32)))
                axis.set_title(word, fontsize=13)
        figure.subplots_adjust(wspace=0.06, hspace=0.3)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=80, bbox_inches="tight", pad_inches=0.05, format="png")
        plt.close(figure)
        # few colors look the same and take a third of the space
        Image.open(drawn).convert("RGB").quantize(128).save(partial, "PNG", optimize=True)


def save_region_figure(
    path: str | os.PathLike, image: Image.Image, regions: Sequence[Mapping[str, Any]], size: float = 6.0
) -> None:
    """
    Draw a picture with a box for each region, and the sentences beside it in the colours of their boxes.

    The layout is that of dense captioning (https://arxiv.org/abs/1511.07571).

    Args:
        path: the PNG file.
        image: the picture.
        regions: `[{"box": (left, top, right, bottom), "text": sentence, "score": probability}]`, as
            [`~modeling_cnnrnn.evaluation.region_captions.caption_regions`] returns them.
        size: longer side of the picture in the figure, in inches.
    """
    scale = size / max(image.size)
    width, height = image.width * scale, image.height * scale
    colors = [plt.get_cmap("tab10")(number % 10) for number in range(len(regions))]
    with plain_text(region["text"] for region in regions), atomic_path(path) as partial:
        figure = plt.figure(figsize=(width, height))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(image)
        axis.axis("off")
        for number, (region, color) in enumerate(zip(regions, colors, strict=True), 1):
            left, top, right, bottom = region["box"]
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=2))
            label = {"facecolor": color, "edgecolor": "none", "pad": 2}
            axis.text(left, top, str(number), color="white", fontsize=9, va="top", ha="left", bbox=label)
            line = f"{number}  {region['text']}  ({region['score']:.2f})"
            height_of_line = 0.28 / height  # inches
            figure.text(1 + 0.1 / width, 1 - height_of_line * number, line, color=color, fontsize=11)
        figure.savefig(partial, dpi=100, bbox_inches="tight", pad_inches=0.05, format="png")
        plt.close(figure)


def save_alignment_figure(
    path: str | os.PathLike,
    image: Image.Image,
    snippets: Sequence[tuple[Sequence[float], str, float]],
    size: float = 6.0,
) -> None:
    """
    Draw a picture with the boxes of the snippets of a sentence, and the sentence below it, its words in the colours of the boxes.

    The layout is that of figure 5 of Deep Visual-Semantic Alignments (https://arxiv.org/abs/1412.2306). Words of the whole
    picture are grey.

    Args:
        path: the PNG file.
        image: the upright picture.
        snippets: `[(box, text, score)]` in the order of the sentence, as `CnnRnnForImageTextRetrieval.align` returns them.
        size: longer side of the picture in the figure, in inches.
    """
    scale = size / max(image.size)
    width, height = image.width * scale, image.height * scale
    whole = (0, 0, image.width, image.height)
    named = dict.fromkeys(tuple(box) for box, _, _ in snippets if tuple(box) != whole)
    colors: dict[tuple, Any] = {box: plt.get_cmap("tab10")(number % 10) for number, box in enumerate(named)}
    colors[whole] = "0.45"
    with plain_text(text for _, text, _ in snippets), atomic_path(path) as partial:
        figure = plt.figure(figsize=(width, height))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(image)
        axis.axis("off")
        for left, top, right, bottom in named:
            edge = colors[left, top, right, bottom]
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=2))
        x, y = 0.0, -0.32  # of the next snippet, in inches
        for box, text, score in snippets:
            for part in (*text.split(), f"({score:.2f})"):
                is_score = part.startswith("(")
                color, font = colors[tuple(box)], 8 if is_score else 12
                word = figure.text(x / width, y / height, part, color=color, fontsize=font)
                length = word.get_window_extent().width / figure.dpi + 0.08
                if x > 0 and x + length > width:  # the word begins the next line
                    x, y = 0.0, y - 0.26
                    word.set_position((x / width, y / height))
                x += length
        figure.savefig(partial, dpi=100, bbox_inches="tight", pad_inches=0.05, format="png")
        plt.close(figure)


def _veiled(image: Image.Image, attention: np.ndarray) -> np.ndarray:
    """The pixels of an image, darker where `attention` `(height, width)` is smaller."""
    grid = Image.fromarray(attention / max(float(attention.max()), 1e-12))
    light = np.asarray(grid.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    visible = 1 - VEIL_OPACITY * (1 - light)
    return (np.asarray(image.convert("RGB")) * visible[..., None]).astype(np.uint8)
