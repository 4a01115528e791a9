"""
`shapes`: drawn pictures with five sentences each, what the pictures show, and whether a sentence says it.

A dataset whose captions can be checked has the column [`SCENE`]: what the picture of a row shows, as a JSON text. Hand
[`scenes_of`] the rows, and its result to `checker` and `hallucination_scores` of [`~modeling_cnnrnn.data.shapes.language`].
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset


SCENE = "scene"


def scenes_of(dataset: "Dataset") -> list[str] | None:
    """Read what each picture shows; `None` for a dataset that does not say, whose captions cannot be checked."""
    return dataset[SCENE][:] if SCENE in dataset.column_names else None
