"""Draw the pictures of a training: generated captions, confusion matrices, and curves of its numbers."""

import os
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import matplotlib
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ..evaluation.fonts import plain_text
from ..files import atomic_path


LINE_WIDTH = 34  # characters below an image


def save_caption_sheet(
    path: str | os.PathLike,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> None:
    """Draw images in a grid, each with its caption below and an optional title above."""
    rows = -(-len(images) // columns)
    with plain_text([*captions, *(titles or ())]):
        figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.6 * rows), squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            axis = axes.flat[index]
            axis.imshow(image)
            axis.text(0.5, -0.04, _wrap(caption), transform=axis.transAxes, ha="center", va="top", fontsize=9)
            if titles is not None:
                axis.set_title(titles[index], fontsize=9)
        _save(figure, path)


def _wrap(caption: str) -> str:
    """Break a caption into lines as wide as its image; Chinese and Japanese characters have the width of two."""
    is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in caption)
    return textwrap.fill(caption, LINE_WIDTH // 2 if is_wide else LINE_WIDTH)


def save_training_curves(
    path: str | os.PathLike,
    steps: Sequence[Mapping[str, float]],
    evaluations: Sequence[Mapping[str, float]],
    panels: Mapping[str, Sequence[str]],
) -> None:
    """
    Draw the numbers of a training against its steps.

    Args:
        steps: rows of the log with `step`, `loss` and `learning_rate`. In self-critical training they have a `reward`, and
            their `loss`, which is no cross-entropy, is not drawn.
        evaluations: rows with `step` and scores.
        panels: the columns to draw in each panel, by its title. A panel without numbers is left out. The first one also
            shows the learning rate.
    """
    losses = [{name: value for name, value in row.items() if name != "loss" or "reward" not in row} for row in steps]
    sources = (("training", losses, "-"), ("validation", evaluations, "o-"))
    curves: dict[str, list] = {}
    for title, names in panels.items():
        for name in names:
            for source, rows, style in sources:
                points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
                if points:
                    curves.setdefault(title, []).append((source if len(names) == 1 else name, points, style))
    with plain_text([*panels, *chain.from_iterable(panels.values())]):
        figure, grid = plt.subplots(1, max(1, len(curves)), figsize=(4.7 * max(1, len(curves)), 4), squeeze=False)
        figure.set_layout_engine("constrained")
        for axis, (title, lines) in zip(grid.flat, curves.items(), strict=False):
            for label, points, style in lines:
                axis.plot(*zip(*points, strict=True), style, label=label, linewidth=1)
            axis.set(xlabel="step", title=title)
            axis.legend()
        rate = grid.flat[0].twinx()
        rate.plot([row["step"] for row in steps], [row["learning_rate"] for row in steps], color="0.75", linewidth=1)
        rate.set_ylabel("learning rate", color="0.5")
        _save(figure, path)


def save_confusion_matrix(path: str | os.PathLike, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """
    Draw a confusion matrix.

    Args:
        matrix: number of images by class (rows) and predicted class (columns).
        classes: names of the classes.
    """
    shares = [[number / max(1, sum(row)) for number in row] for row in matrix]
    side = max(4.0, 0.45 * len(classes) + 2)
    with plain_text(classes):
        figure, axis = plt.subplots(figsize=(side, side))
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
        axis.set(xlabel="predicted", ylabel="class", title="images")
        if len(classes) <= 30:  # beyond that the numbers are too small to read
            for y, row in enumerate(matrix):
                for x, number in enumerate(row):
                    color = "white" if shares[y][x] > 0.5 else "0.3"
                    axis.text(x, y, str(number or ""), ha="center", va="center", fontsize=7, color=color)
        _save(figure, path)


def _save(figure, path: str | os.PathLike) -> None:
    path = Path(path)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=110, bbox_inches="tight", format=path.suffix.removeprefix("."))
    plt.close(figure)
