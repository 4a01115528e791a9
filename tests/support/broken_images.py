"""Datasets with an image that cannot be read."""

import datasets


def with_broken(pictures: datasets.Dataset, row: int) -> datasets.Dataset:
    """The pictures, one of which ends in mid-file."""
    images = [example["image"] for example in pictures.cast_column("image", datasets.Image(decode=False))]
    images[row] = {"bytes": images[row]["bytes"][:60], "path": None}
    return pictures.remove_columns("image").add_column("image", images).cast_column("image", datasets.Image())
