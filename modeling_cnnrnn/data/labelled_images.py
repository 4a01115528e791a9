"""
Load a dataset of pictures with a class each by its name: every layout becomes rows of `image`, `label` and `image_id`.

Images are not decoded here.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict

from .arguments import LabelledDatasetArguments
from .columns import LabelColumns, shown
from .image_cells import file_names, resolve_images, warn_of_problems
from .image_files import ImageFiles, files_of_dataset
from .reporting import left_out
from .shapes import SCENE
from .shapes.language import Meaning
from .sources import read_splits


logger = logging.getLogger(__name__)

# other names of the validation split
SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}


def load_labelled_dataset(
    dataset_name: str | os.PathLike,
    *,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    data_dir: str | os.PathLike | None = None,
    image_dir: str | os.PathLike | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> DatasetDict:
    """
    Load a dataset of labelled pictures.

    The columns that are used are logged in one line (level INFO), and what is left out as a warning.

    Args:
        dataset_name: a dataset of the Hub, `user/name` or `user/name@revision`; a folder with a folder for each class, or of
            Parquet files; a `.parquet` file or a pattern of some; or `"shapes"`, those of the drawn pictures that show one
            kind of thing, which is their class.
        dataset_config_name, dataset_revision: configuration and commit, tag or branch of a dataset of the Hub.
        data_dir: folder of the dataset to read, as in `datasets.load_dataset`.
        image_dir: folder of the images for datasets that only name them. No file outside these folders is opened.
        image_column: column of images, or of file names in `image_dir`.
        label_column: column of classes: names, numbers, or names with numbers (`ClassLabel`).
        cache_dir: folder of the cache; defaults to that of `datasets`.

    Returns:
        The splits, with the columns `image`, `label` (a `ClassLabel`, the same in all splits) and `image_id` (a string). `val`,
        `valid` and `dev` are called `validation`.

    Raises:
        ValueError: the dataset cannot be read, its columns cannot be told apart, or it has fewer than two classes.
    """
    name = os.fspath(dataset_name)
    root, images, cache = (path if path is None else os.fspath(path) for path in (data_dir, image_dir, cache_dir))
    try:
        raw = read_splits(name, dataset_config_name, dataset_revision, root, cache)
        raw = {SPLITS.get(split, split): rows for split, rows in raw.items()}
        features = next(iter(raw.values())).features
        is_drawn = label_column is None and SCENE in features and "label" not in features
        columns = LabelColumns.infer(features, image_column, SCENE if is_drawn else label_column)
        logger.info("`%s`: %s.", name, columns)
        files = files_of_dataset(name, root, images, cache)
        classes = _classes(raw, columns.label)
        left_out(
            shown(name), "folders without a picture, which are no class", empty_folders(root or name, classes.values())
        )
        splits = {split: _standardize(rows, split, columns, classes, files) for split, rows in raw.items()}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"The dataset `{name}` cannot be used: {' '.join(str(error).split())}") from error
    return DatasetDict({split: rows for split, rows in splits.items() if len(rows)})


def empty_folders(root: str, classes: Iterable[str]) -> list[str]:
    """Name the folders beside those of the classes of a dataset, or of its splits, in which there is nothing."""
    names, empty = {*classes}, []
    for place in (root, *_folders(root)):
        folders = _folders(place)
        if names & {os.path.basename(folder) for folder in folders}:
            empty += [os.path.relpath(folder, root) for folder in folders if not os.listdir(folder)]
    return empty


def _folders(place: str) -> list[str]:
    """List the folders in a folder; none where it is no folder, as of a dataset of the Hub."""
    if not os.path.isdir(place):
        return []
    return sorted(entry.path for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))


def load_labelled_dataset_from(arguments: LabelledDatasetArguments) -> DatasetDict:
    """Load the dataset that the options of a script name, see [`load_labelled_dataset`]."""
    options = {field.name: getattr(arguments, field.name) for field in fields(LabelledDatasetArguments)}
    return load_labelled_dataset(**options)


def split_last(rows: Dataset, number: int) -> tuple[Dataset, Dataset]:
    """
    Hold out the last rows.

    Raises:
        ValueError: there are no more rows than that.
    """
    if not 1 <= number < len(rows):
        raise ValueError(
            f"`num_validation_images` is {number}, but there are {len(rows)} images: pass a number below that."
        )
    return rows.select(range(len(rows) - number)), rows.select(range(len(rows) - number, len(rows)))


def _values(rows: Dataset, column: str) -> list[Any]:
    """Read a column of classes; the class of a drawn picture is its kind of thing, `None` if it shows several."""
    if column != SCENE:
        return rows[column][:]
    kinds = [{thing.name for thing in Meaning.from_json(scene).things} for scene in rows[column][:]]
    return [min(names) if len(names) == 1 else None for names in kinds]


def _classes(raw: Mapping[str, Dataset], column: str) -> dict[Any, str]:
    """
    Return the names of the classes by the values of a column, in their order.

    Raises:
        ValueError: the column holds no classes, or fewer than two.
    """
    feature = next(iter(raw.values())).features[column]
    if isinstance(feature, datasets.ClassLabel):
        classes = dict(enumerate(feature.names))
    elif getattr(feature, "dtype", "").startswith(("int", "uint", "bool", "string", "large_string")):
        values = {value for rows in raw.values() for value in _values(rows, column) if _is_label(value)}
        classes = {value: str(value) for value in sorted(values)}
    else:
        raise ValueError(
            f"{shown(column)} holds {feature}: one class for each picture is needed, a name or a number; name another "
            "`label_column`."
        )
    if len(classes) < 2:
        found = f"only the class {shown(next(iter(classes.values())))}" if classes else "no class"
        raise ValueError(f"{shown(column)} holds {found}: a classifier takes two or more.")
    return classes


def _is_label(value: Any) -> bool:
    """Tell a class from the ways to say that there is none: nothing, an empty text, a negative number."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value >= 0


def _standardize(
    rows: Dataset, split: str, columns: LabelColumns, classes: Mapping[Any, str], files: ImageFiles
) -> Dataset:
    """Make rows of `image`, `label` and `image_id`, without those that lack an image or a label."""
    images = rows.select_columns([columns.image])
    images = images if columns.image == "image" else images.rename_column(columns.image, "image")
    images = images.cast_column("image", datasets.Image())
    ids = file_names(images) or [f"{split}-{index}" for index in range(len(images))]
    images, found = resolve_images(images, files)
    problems = found or [""] * len(images)
    warn_of_problems(split, ids, problems, files)
    numbers = {value: number for number, value in enumerate(classes)}
    labels = [numbers.get(value) if _is_label(value) else None for value in _values(rows, columns.label)]
    usable = [index for index, problem in enumerate(problems) if not problem]
    what = "drawn images of several kinds of things" if columns.label == SCENE else "images without a label"
    left_out(split, what, [ids[index] for index in usable if labels[index] is None])
    usable = [index for index in usable if labels[index] is not None]
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=list(classes.values())), "image_id": datasets.Value("string")}
    )
    table = Dataset.from_dict(
        {"label": [label if label is not None else -1 for label in labels], "image_id": ids}, features
    )
    table = datasets.concatenate_datasets([images, table], axis=1)
    return table if len(usable) == len(table) else table.select(usable)
