"""
`shapes`: drawn pictures with five sentences each, what the pictures show, and whether a sentence says it.

A dataset whose captions can be checked has the column [`SCENE`]: what the picture of a row shows, as a JSON text. Hand
[`scenes_of`] the rows, and its result to `checker` and `hallucination_scores` of [`~modeling_cnnrnn.data.shapes.language`].
Where each object of the picture is, is in the column [`SCENE_BOXES`], which [`boxes_of`] reads.
"""

import json
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset


SCENE = "scene"
SCENE_BOXES = "scene_boxes"

Box = tuple[float, float, float, float]


def scenes_of(dataset: "Dataset") -> list[str] | None:
    """Read what each picture shows; `None` for a dataset that does not say, whose captions cannot be checked."""
    return dataset[SCENE][:] if SCENE in dataset.column_names else None


def boxes_of(dataset: "Dataset") -> list[list[tuple[str, Box]]] | None:
    """
    Read where the objects of each picture are: `("red circle", (x_min, y_min, x_max, y_max))` for each, in parts of the
    picture's width and height. `None` for a dataset that does not say.
    """
    if SCENE_BOXES not in dataset.column_names:
        return None
    return [[(name, tuple(box)) for name, box in json.loads(text)] for text in dataset[SCENE_BOXES][:]]
