"""
Load a captioning dataset by its name: every layout becomes rows of `image`, `captions` and `image_id`.

Images are not decoded here. Rows that have one caption each are grouped, so that a row is an image.
"""

import logging
import os
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict

from .arguments import DatasetArguments
from .batching import load_stored_image
from .columns import CaptionColumns, listed, shown
from .image_cells import file_names, resolve_cell, resolve_images, warn_of_problems
from .image_files import ImageFiles, files_of_dataset, first_values, is_image_name
from .region_features import BOX_NAMES, COLUMN
from .reporting import left_out, some
from .shapes import SCENE, SCENE_BOXES
from .sources import read_splits, split_names


logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
    }
)
KEPT = (SCENE, SCENE_BOXES, COLUMN, *BOX_NAMES)  # columns that stay as they are: of drawn pictures, and of a detector
# other names of the splits; Karpathy's `restval` are the images of COCO's validation set that all papers train on
SPLITS = {"restval": "train", "val": "validation", "valid": "validation", "dev": "validation"}


def load_caption_dataset(
    dataset_name: str | os.PathLike,
    *,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    data_dir: str | os.PathLike | None = None,
    image_dir: str | os.PathLike | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_id_column: str | None = None,
    split_column: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> DatasetDict:
    """
    Load a captioning dataset of any layout.

    The columns that are used are logged in one line (level INFO), and what is left out as a warning.

    Args:
        dataset_name: one of
            - `"shapes"`, the pictures that this package draws;
            - a dataset of the Hub, `user/name` or `user/name@revision`;
            - a folder: an imagefolder with captions in its metadata, a `.txt` or `.caption` file beside each image, a
              table of captions beside the images (as Kaggle packs Flickr8k), Parquet files, webdataset shards, or one
              that `save_to_disk` wrote;
            - files: `.parquet`, webdataset `.tar`, tables (`.csv`, `.tsv`, `.txt`, `.token` of Flickr8k and Flickr30k)
              and `.json` in COCO's format, as a Karpathy split, as AI Challenger's, as a list of records or as lines.
              Patterns such as `shards/*.tar` too. Images may stand in a table as base64 or as `data:` URIs.
            Several, separated by commas, give the splits of all: `captions_train2017.json,captions_val2017.json`.
        dataset_config_name: configuration of a dataset of the Hub.
        dataset_revision: commit, tag or branch of a dataset of the Hub.
        data_dir: folder of the dataset to read, as in `datasets.load_dataset`.
        image_dir: folder of the images for datasets that only name them; defaults to the folder of a local dataset. No
            file outside these folders is opened, whatever a row names.
        image_column: column of images, of file names or of URLs whose files are in `image_dir`.
        caption_column: column or columns of captions: a name, names separated by commas, or a pattern (`caption_*`).
        image_id_column: column that tells one image from another. Rows of one image are grouped by it.
        split_column: column with the split of each row, for datasets that keep all rows in one.
        cache_dir: folder of the cache; defaults to that of `datasets`.

    Returns:
        The splits, with the columns `image`, `captions` (a list), `image_id` (a string) and, if there are these, `scene`,
        `image_features` and `boxes`.
        `val`, `valid` and `dev` are called `validation`; `restval` is a part of `train`.

    Raises:
        ValueError: the dataset cannot be read, or its columns cannot be told apart.
    """
    dataset_name = os.fspath(dataset_name)
    root, images, cache = (path if path is None else os.fspath(path) for path in (data_dir, image_dir, cache_dir))
    columns = {"image_column": image_column, "caption_column": caption_column, "image_id_column": image_id_column}
    loaded: dict[str, Dataset] = {}
    for name in split_names(dataset_name):
        try:
            raw = read_splits(name, dataset_config_name, dataset_revision, root, cache)
            layout = _find_layout(raw, columns, split_column, files_of_dataset(name, root, images, cache))
            splits = _standardize(name, raw, layout)
        except (OSError, ValueError, pa.ArrowException) as error:
            is_text = isinstance(error, UnicodeError)
            reason = "it holds text that is not UTF-8." if is_text else " ".join(str(error).split())
            raise ValueError(f"The dataset `{name}` cannot be used: {reason}") from error
        if twice := loaded.keys() & splits.keys():
            raise ValueError(f"Several of `{dataset_name}` have the split `{min(twice)}`: name one of them only.")
        loaded |= splits
    return DatasetDict(loaded)


def load_dataset_from(arguments: DatasetArguments) -> DatasetDict:
    """Load the captioning dataset that the options of a script or command name, see [`load_caption_dataset`]."""
    options = {field.name: getattr(arguments, field.name) for field in fields(DatasetArguments)}
    return load_caption_dataset(**options)


def load_split(arguments: DatasetArguments, split: str, max_samples: int | None = None) -> Dataset:
    """
    Load one split of the dataset that the options of a script or command name.

    Args:
        max_samples: the number of images to keep at most, the first ones.

    Raises:
        ValueError: there is no such split, or [`load_caption_dataset`] cannot read the dataset.
    """
    splits = load_dataset_from(arguments)
    if split not in splits:
        raise ValueError(f"`split` is '{split}', but the dataset has the splits {list(splits)}.")
    rows = splits[split]
    return rows.select(range(min(len(rows), max_samples or len(rows))))


def references_by_image(dataset: Dataset) -> dict[str, list[str]]:
    """Gather the captions of every image, in the order of the images. No image is decoded."""
    captions = defaultdict(list)
    for image_id, texts in zip(dataset["image_id"][:], dataset["captions"][:], strict=True):
        captions[image_id].append(texts)
    return {image_id: _merge(lists) for image_id, lists in captions.items()}


def group_by_image(dataset: Dataset) -> Dataset:
    """
    Group rows of one caption each into one row per image. No image is decoded.

    [`load_caption_dataset`] has done it already; a dataset with one row per image is returned unchanged.
    """
    image_ids = dataset["image_id"][:]
    first: dict[str, int] = {}
    for index, image_id in enumerate(image_ids):
        first.setdefault(image_id, index)
    if len(first) == len(image_ids):
        return dataset
    references = references_by_image(dataset)
    captions = [references[image_id] if first[image_id] == index else [] for index, image_id in enumerate(image_ids)]
    grouped = Dataset.from_dict({"captions": captions}, features=datasets.Features(captions=FEATURES["captions"]))
    # columns before rows: columns cannot be put beside selected rows without copying the images
    return _beside(dataset.remove_columns("captions"), grouped).select(list(first.values()))


def split_dataset(dataset: Dataset, validation_share: float = 0.1, seed: int = 0) -> DatasetDict:
    """Put a random share of the images into a validation split, each with all its captions."""
    if not 0 < validation_share < 1:
        raise ValueError(f"`validation_share` is {validation_share}: pass a number between 0 and 1.")
    image_ids = dataset["image_id"][:]
    images = sorted(set(image_ids))
    if len(images) < 2:
        raise ValueError(f"`dataset` has {len(images)} image: a validation split takes two or more.")
    random.Random(seed).shuffle(images)
    validation = set(images[: min(max(round(validation_share * len(images)), 1), len(images) - 1)])
    rows: dict[str, list[int]] = {"train": [], "validation": []}
    for index, image_id in enumerate(image_ids):
        rows["validation" if image_id in validation else "train"].append(index)
    return DatasetDict({split: dataset.select(indices) for split, indices in rows.items()})


# --------------------------------------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------------------------------------


def check_images(dataset: Dataset, num_proc: int | None = None) -> tuple[Dataset, list[tuple[str, str]]]:
    """
    Decode every image once.

    Returns:
        The dataset without the broken images, and `(image_id, reason)` of each of these.
    """
    undecoded = dataset.select_columns(["image", "image_id"]).cast_column("image", datasets.Image(decode=False))
    reasons = undecoded.map(
        _check_image,
        remove_columns=undecoded.column_names,
        # a file may have changed since
        load_from_cache_file=False,
        keep_in_memory=True,
        num_proc=num_proc,
        desc="Checking images",
    )["reason"][:]
    broken = [(image_id, reason) for image_id, reason in zip(dataset["image_id"][:], reasons, strict=True) if reason]
    if not broken:
        return dataset, broken
    return dataset.select([index for index, reason in enumerate(reasons) if not reason]), broken


def _check_image(row: Mapping[str, Any]) -> dict[str, str]:
    try:
        load_stored_image(row["image"], name=f"image {row['image_id']}")
    except (OSError, ValueError) as error:
        return {"reason": str(error)}
    return {"reason": ""}


# --------------------------------------------------------------------------------------------------------------------
# Splits as they are -> rows of image, captions, image_id
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    columns: CaptionColumns
    files: ImageFiles
    split_column: str | None


def _find_layout(
    raw: Mapping[str, Dataset], given: Mapping[str, str | None], split_column: str | None, files: ImageFiles
) -> _Layout:
    rows = next(iter(raw.values()))
    features = rows.features
    columns = CaptionColumns.infer(features, **given, names_image=partial(names_image, rows))
    if files.folder is not None and not os.path.isdir(files.folder):
        raise ValueError(f"`image_dir` is {shown(files.folder, 200)}, and there is no such folder.")
    if files.folder is None and not columns.embedded:
        raise ValueError(
            f"`{columns.image}` only names the images: download them, and pass their folder as `image_dir`."
        )
    if split_column is None:
        split_column = _guess_split_column(raw)
    elif split_column not in features:
        raise ValueError(f"`split_column` is `{split_column}`, but the columns are {listed(features)}.")
    return _Layout(columns, files, split_column)


def names_image(rows: Dataset, column: str) -> bool:
    """Return whether a column holds names of image files; its first values tell."""
    return any(isinstance(value, str) and is_image_name(value) for value in first_values(rows, column))


def _guess_split_column(raw: Mapping[str, Dataset]) -> str | None:
    """Find the column `"split"` of a dataset whose rows are all in one split and name several."""
    (rows, *others) = raw.values()
    if others or "split" not in rows.column_names:
        return None
    named = {SPLITS.get(split, split) for split in rows.unique("split")}
    return "split" if len(named) > 1 and named <= {"train", "validation", "test"} else None


def _standardize(name: str, raw: Mapping[str, Dataset], layout: _Layout) -> dict[str, Dataset]:
    parts: dict[str, list[Dataset]] = defaultdict(list)
    for split, rows in raw.items():
        parts["" if layout.split_column else SPLITS.get(split, split)].append(rows)
    splits: dict[str, Dataset] = {}
    for split, pieces in parts.items():
        rows = datasets.concatenate_datasets(pieces)
        if len(rows):
            splits |= _standardize_rows(rows, split, layout)
    if not splits:
        folder = "" if layout.columns.embedded else f" in {shown(layout.files.folder, 200)}"
        raise ValueError(f"no row has both a caption and an image{folder}; the columns used were: {layout.columns}.")
    sizes = [f"{split} ({len(rows)} images)" for split, rows in splits.items()]
    logger.info("`%s`: %s; %s.", name, layout.columns, ", ".join(sizes))
    return splits


def _standardize_rows(rows: Dataset, split: str, layout: _Layout) -> dict[str, Dataset]:
    """One row per image, in the split that its row names if there is a column of splits."""
    columns = layout.columns
    kept = [name for name in (*KEPT, layout.split_column) if name is not None and name in rows.column_names]
    images, ids, problems = None, None, None
    if columns.embedded:
        images = rows.select_columns([columns.image])
        images = images if columns.image == "image" else images.rename_column(columns.image, "image")
        images = images.cast_column("image", FEATURES["image"])
        ids = file_names(images)
        images, problems = resolve_images(images, layout.files)
    table = _read_table(rows, split, layout, kept, ids, problems)
    _warn(table, split or "the dataset", layout)
    # a row without its image gives its captions to none
    table = table if images is None else _beside(images, table)
    readable = [index for index, problem in enumerate(table["problem"][:]) if not problem]
    table = group_by_image(table if len(readable) == len(table) else table.select(readable))
    _warn_of_bare(table, split or "the dataset")
    usable = [index for index, captions in enumerate(table["captions"][:]) if captions]
    table = table if len(usable) == len(table) else table.select(usable)
    names = [*FEATURES, *(name for name in KEPT if name in kept)]
    if layout.split_column is None:
        return {split: table.select_columns(names)} if usable else {}
    by_split = defaultdict(list)
    for index, value in enumerate(table[layout.split_column][:]):
        by_split[SPLITS.get(value, value)].append(index)
    return {value: table.select_columns(names).select(indices) for value, indices in by_split.items()}


def _read_table(
    rows: Dataset, split: str, layout: _Layout, kept: list[str], ids: list[str] | None, problems: list[str] | None
) -> Dataset:
    """
    Read captions, ids and, where images are named only, their files.

    Args:
        kept: columns that stay as they are.
        ids: file names of the images, which identify them if no column does.
        problems: of each row, why it has no image; `None` if there are none, or if this is found out here.
    """
    sources = [name for name in rows.column_names if name in {*layout.columns.sources, *kept}]
    text = datasets.Value("string")
    return rows.select_columns(sources).map(
        partial(_read_rows, layout=layout, ids=ids, problems=problems),
        batched=True,
        with_indices=True,
        remove_columns=[name for name in sources if name not in kept],
        features=datasets.Features(
            {name: feature for name, feature in FEATURES.items() if name != "image" or not layout.columns.embedded}
            | {"num_empty": datasets.Value("int64"), "problem": text}
            | {name: rows.features[name] for name in kept}
        ),
        # a cache would know neither changes in `image_dir` nor those in this code
        load_from_cache_file=False,
        keep_in_memory=True,
        desc=" ".join(["Reading captions", split]).strip(),
    )


def _read_rows(
    batch: dict[str, list], indices: list[int], layout: _Layout, ids: list[str] | None, problems: list[str] | None
) -> dict[str, list[Any]]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    read = []
    for row, index in zip(rows, indices, strict=True):
        try:
            read.append(_read_row(row, str(index) if ids is None else ids[index], layout))
        except ValueError as error:
            raise ValueError(f"row {index + 1}: {error}") from error
        if problems is not None:
            read[-1]["problem"] = problems[index]
    return {name: [row[name] for row in read] for name in read[0]}


def _read_row(row: Mapping[str, Any], default_id: str, layout: _Layout) -> dict[str, Any]:
    columns = layout.columns
    captions = columns.read_captions(row)
    read: dict[str, Any] = {
        "captions": [caption for caption in captions if caption],
        "image_id": columns.read_image_id(row, default_id),
        "num_empty": captions.count(""),
        "problem": "",
    }
    if not columns.embedded:
        read["image"], read["problem"] = resolve_cell(row[columns.image], layout.files)
    return read


def _warn(table: Dataset, split: str, layout: _Layout) -> None:
    """Count and name the captions and images that are left out."""
    ids = table["image_id"][:]
    num_empty = sum(table["num_empty"][:])
    if num_empty:
        with_empty = [image_id for image_id, number in zip(ids, table["num_empty"][:], strict=True) if number]
        of_images = some(list(dict.fromkeys(with_empty)))
        logger.warning("Left out of %s: empty captions (%d): of %s.", split, num_empty, of_images)
    warn_of_problems(split, ids, table["problem"][:], layout.files)


def _warn_of_bare(table: Dataset, split: str) -> None:
    rows = zip(table["image_id"][:], table["captions"][:], strict=True)
    left_out(split, "images without a caption", [image_id for image_id, captions in rows if not captions])


def _beside(left: Dataset, right: Dataset) -> Dataset:
    return datasets.concatenate_datasets([left, right], axis=1)


def _merge(lists: list[list[str]]) -> list[str]:
    """Merge the captions of an image from its rows, each of which has some of them, or all."""
    has_all = len(lists[0]) > 1 and all(captions == lists[0] for captions in lists)
    return lists[0] if has_all else list(chain.from_iterable(lists))
