"""Pictures of a training: what the model writes, and how its numbers move."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ..files import atomic_path


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
    Draw loss, learning rate, metrics and rewards against the training step.

    Args:
        steps: rows with `step`, `loss` and `learning_rate`; those of self-critical training have a `reward`, and their
            `loss`, which is no cross-entropy, is not drawn.
        evaluations: rows with `step` and any scores; `loss` is drawn beside the training's.
    """
    rewards = [row for row in steps if "reward" in row]
    losses = [row for row in steps if "reward" not in row]
    panels = [("loss (nats per token)", ["loss"]), ("CIDEr", ["CIDEr"])]
    panels += [("other scores", ["BLEU-1", "BLEU-4", "ROUGE-L", "accuracy"])]
    figure, axes = plt.subplots(1, 4 if rewards else 3, figsize=(18 if rewards else 14, 4), layout="constrained")
    axes[0].plot([row["step"] for row in losses], [row["loss"] for row in losses], label="training", linewidth=1)
    if rewards:
        for name in ("reward", "baseline"):
            axes[3].plot([row["step"] for row in rewards], [row[name] for row in rewards], label=name, linewidth=1)
        axes[3].set(xlabel="step", title="reward of sampled sentences")
        axes[3].legend()
    for axis, (title, names) in zip(axes, panels, strict=False):
        for name in names:
            rows = [row for row in evaluations if row.get(name) is not None]
            if rows:
                label = "validation" if len(names) == 1 else name
                axis.plot([row["step"] for row in rows], [row[name] for row in rows], "o-", label=label)
        axis.set(xlabel="step", title=title)
        if axis.lines:
            axis.legend()
    rate = axes[0].twinx()
    rate.plot([row["step"] for row in steps], [row["learning_rate"] for row in steps], color="0.75", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    _save(figure, path)


def _save(figure, path: str | os.PathLike) -> None:
    path = Path(path)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=110, bbox_inches="tight", format=path.suffix.removeprefix("."))
    plt.close(figure)
