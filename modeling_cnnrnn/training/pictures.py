"""Pictures of a training: what the model writes, and how its numbers move."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt


def save_caption_sheet(
    path: str | os.PathLike,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> None:
    """Draw images with the sentence written about each below it, and an optional title above."""
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axis = axes.flat[index]
        axis.imshow(image)
        axis.text(0.5, -0.04, textwrap.fill(caption, 34), transform=axis.transAxes, ha="center", va="top", fontsize=9)
        if titles is not None:
            axis.set_title(titles[index], fontsize=9)
    _save(figure, path)


def save_training_curves(
    path: str | os.PathLike,
    steps: Sequence[Mapping[str, float]],
    evaluations: Sequence[Mapping[str, float]],
) -> None:
    """
    Draw loss, learning rate and metrics against the training step.

    Args:
        steps: rows with `step`, `loss` and `learning_rate`.
        evaluations: rows with `step` and any scores; `loss` is drawn beside the training's.
    """
    metrics = [name for name in ("CIDEr", "BLEU-4", "ROUGE-L", "accuracy") if any(name in row for row in evaluations)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    left.plot([row["step"] for row in steps], [row["loss"] for row in steps], label="training", linewidth=1)
    left.plot([row["step"] for row in evaluations], [row["loss"] for row in evaluations], "o-", label="validation")
    left.set(xlabel="step", ylabel="loss (nats per token)")
    left.legend(loc="upper right")
    rate = left.twinx()
    rate.plot([row["step"] for row in steps], [row["learning_rate"] for row in steps], color="0.75", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    for name in metrics:
        rows = [row for row in evaluations if row.get(name) is not None]
        right.plot([row["step"] for row in rows], [row[name] for row in rows], "o-", label=name)
    right.set(xlabel="step", ylabel="score on validation")
    if metrics:
        right.legend(loc="lower right")
    _save(figure, path)


def _save(figure, path: str | os.PathLike) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, dpi=110, bbox_inches="tight", format=path.suffix.removeprefix("."))
    plt.close(figure)
    os.replace(partial, path)
