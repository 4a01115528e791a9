"""What a classifier is worth: accuracy, the confusion matrix, and a row for each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from ..data.image_batches import LabelledImages


@dataclass(frozen=True)
class ClassifierEvaluation:
    """
    The logits of pictures, and what follows from them.

    Args:
        logits: `(num_images, num_labels)`.
        mirror_logits: of the mirror images, the same.
        labels: the classes, `(num_images,)`.
        classes: names of the classes.
    """

    logits: torch.Tensor
    mirror_logits: torch.Tensor
    labels: torch.Tensor
    classes: Sequence[str]

    @property
    def scores(self) -> dict[str, float]:
        """
        The cross-entropy and the accuracy, and the accuracy of the mean of the logits of each picture and its mirror image.
        """
        both = self.logits + self.mirror_logits
        return {
            "loss": torch.nn.functional.cross_entropy(self.logits, self.labels).item(),
            "accuracy": _accuracy(self.logits, self.labels),
            "accuracy_with_mirror": _accuracy(both, self.labels),
        }

    @property
    def confusion_matrix(self) -> torch.Tensor:
        """Number of pictures by their class (rows) and by the class that is predicted (columns)."""
        size = len(self.classes)
        return torch.bincount(self.labels * size + self.logits.argmax(1), minlength=size**2).view(size, size)

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Of each class: its number of pictures, recall, precision, F1, and the class that it is most often taken for."""
        matrix = self.confusion_matrix
        rows = []
        for index, name in enumerate(self.classes):
            right, actual, predicted = (
                int(x) for x in (matrix[index, index], matrix[index].sum(), matrix[:, index].sum())
            )
            mistakes = matrix[index].clone()
            mistakes[index] = 0
            taken_for = self.classes[int(mistakes.argmax())] if mistakes.any() else None
            rows.append(
                {
                    "class": name,
                    "images": actual,
                    "recall": right / actual if actual else None,
                    "precision": right / predicted if predicted else None,
                    "f1": 2 * right / (actual + predicted) if actual + predicted else None,
                    "most_often_taken_for": taken_for,
                }
            )
        return rows

    def table(self) -> str:
        """Write the row of each class as text."""
        width = max(5, *map(len, self.classes))
        lines = [f"{'class':{width}}  images  recall  precision      F1  most often taken for"]
        for row in self.per_class:
            numbers = [f"{row[name]:.3f}" if row[name] is not None else "-" for name in ("recall", "precision", "f1")]
            lines.append(
                f"{row['class']:{width}}  {row['images']:6}  {numbers[0]:>6}  {numbers[1]:>9}  {numbers[2]:>6}  "
                f"{row['most_often_taken_for'] or ''}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores, the confusion matrix and the rows as JSON has them."""
        matrix = {"classes": list(self.classes), "confusion_matrix": self.confusion_matrix.tolist()}
        return {**self.scores, "images": len(self.labels), **matrix, "per_class": self.per_class}


@torch.no_grad()
def evaluate_classifier(
    model: PreTrainedModel, dataset: LabelledImages, accelerator: Accelerator, batch_size: int
) -> ClassifierEvaluation:
    """
    Classify pictures and their mirror images, on all processes, each of which has a part of them.

    Args:
        model: the classifier; it is left in the mode that it is in.
        dataset: the pictures, without augmentation.
        batch_size: pictures that a process classifies at once.
    """
    was_training = model.training
    model.eval()
    own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    found = []
    for start in range(0, len(own), batch_size):
        rows = list(own[start : start + batch_size])
        pixel_values = dataset.normalize(dataset.collate(rows)["pixel_values"].to(accelerator.device))
        with accelerator.autocast():
            pair = [model(pixel_values=images).logits for images in (pixel_values, pixel_values.flip(3))]
        found.append((rows, *(logits.float().cpu() for logits in pair)))
    model.train(was_training)
    parts = gather_object(found)
    order = torch.tensor([row for rows, _, _ in parts for row in rows]).argsort()
    logits, mirror_logits = (torch.cat([part[index] for part in parts])[order] for index in (1, 2))
    classes = [str(name) for name in (model.config.id2label or {}).values()]
    return ClassifierEvaluation(logits, mirror_logits, dataset.labels, classes)


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()
