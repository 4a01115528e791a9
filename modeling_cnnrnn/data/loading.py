"""
Any captioning dataset, by name: every layout becomes rows of `image`, `captions` and `image_id`.

Images are not decoded here. Rows that carry one caption each are grouped, so that a row is an image.
"""

import logging
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import datasets
import fsspec
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from PIL import Image

from ..models.processing_cnnrnn import load_image
from .columns import CaptionColumns, listed
from .shapes import SCENE
from .sources import ImageFiles, Rows, local_folder, read_splits, split_names


logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
    }
)
# other names of the splits; Karpathy's `restval` are the images of COCO's validation set that all papers train on
SPLITS = {"restval": "train", "val": "validation", "valid": "validation", "dev": "validation"}


def load_caption_dataset(
    dataset_name: str | os.PathLike,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    data_dir: str | os.PathLike | None = None,
    image_dir: str | os.PathLike | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_id_column: str | None = None,
    split_column: str | None = None,
    streaming: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> DatasetDict | IterableDatasetDict:
    """
    Load a captioning dataset in whatever layout it comes.

    Which columns were taken is logged in one line (level INFO), what was left out as a warning.

    Args:
        dataset_name: one of
            - `"shapes"`, the pictures that this package draws;
            - a dataset of the Hub, `user/name` or `user/name@revision`;
            - a folder: an imagefolder with captions in its metadata, Parquet files, webdataset shards, or one that
              `save_to_disk` wrote;
            - files: `.parquet`, `.csv`, webdataset `.tar` (patterns such as `shards/*.tar` too), and `.json` in COCO's
              format, as a Karpathy split, as a list of records or as lines.
            Several, separated by commas, give the splits of all: `captions_train2017.json,captions_val2017.json`.
        data_dir: folder of the dataset to read, as in `datasets.load_dataset`.
        image_dir: folder of the images for datasets that only name them; defaults to the folder of a local dataset.
        image_column: column of images, of file names or of URLs whose files are in `image_dir`.
        caption_column: column or columns of captions: a name, names separated by commas, or a pattern (`caption_*`).
        image_id_column: column that tells one image from another. Rows of one image are grouped by it.
        split_column: column that tells the split of each row, for datasets that keep all rows in one.
        streaming: read while iterating. Images come undecoded as `{"bytes", "path"}` (see [`decode_image`]), rows are
            not grouped, and where `image_id` is the row number it depends on the order of reading.

    Returns:
        The splits, with the columns `image`, `captions` (a list), `image_id` (a string) and, if there is one, `scene`.
        `val`, `valid` and `dev` are called `validation`; `restval` is a part of `train`.
    """
    dataset_name = os.fspath(dataset_name)
    root, images, cache = (path if path is None else os.fspath(path) for path in (data_dir, image_dir, cache_dir))
    columns = {"image_column": image_column, "caption_column": caption_column, "image_id_column": image_id_column}
    loaded: dict[str, Rows] = {}
    for name in split_names(dataset_name):
        try:
            raw = read_splits(name, dataset_config_name, dataset_revision, root, streaming, cache)
            layout = _find_layout(raw, columns, split_column, images or local_folder(name, root))
            splits = _standardize(name, raw, layout)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The dataset `{name}` cannot be used: {reason}") from error
        if twice := loaded.keys() & splits.keys():
            raise ValueError(f"Several of `{dataset_name}` have the split `{min(twice)}`: name one of them only.")
        loaded |= splits
    return IterableDatasetDict(loaded) if streaming else DatasetDict(loaded)


def references_by_image(dataset: Rows) -> dict[str, list[str]]:
    """The captions of every image, in the order of the images. No image is decoded."""
    rows: Iterable[tuple[str, list[str]]]
    if isinstance(dataset, Dataset):
        rows = zip(dataset["image_id"][:], dataset["captions"][:], strict=True)
    else:
        rows = ((row["image_id"], row["captions"]) for row in dataset.select_columns(["image_id", "captions"]))
    captions = defaultdict(list)
    for image_id, texts in rows:
        captions[image_id].append(texts)
    return {image_id: _merge(lists) for image_id, lists in captions.items()}


def group_by_image(dataset: Dataset) -> Dataset:
    """
    One row per image with all its captions, where rows carried one caption each. No image is decoded.

    [`load_caption_dataset`] has done it already; a dataset that is in order comes back as it is.
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
    # columns first, rows then: columns can't be put beside selected rows without copying the images
    return _beside(dataset.remove_columns("captions"), grouped).select(list(first.values()))


def split_dataset(dataset: Dataset, validation_share: float = 0.1, seed: int = 0) -> DatasetDict:
    """Put a random share of the images into a validation split, each with all its captions."""
    if not 0 < validation_share < 1:
        raise ValueError(f"`validation_share` is {validation_share}: it must lie between 0 and 1.")
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


def decode_image(example: Mapping[str, Any]) -> Image.Image | None:
    """
    The RGB picture of a row, or `None` with a warning that names the image and says what is wrong with it.

    Cast the column with `datasets.Image(decode=False)`: otherwise a broken image raises while the row is read.
    """
    try:
        return _load_image(example["image"], example["image_id"])
    except (OSError, ValueError) as error:
        logger.warning("Image `%s` is skipped: %s", example["image_id"], error)
        return None


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
        # a file may have been mended or broken since
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
        _load_image(row["image"], row["image_id"])
    except (OSError, ValueError) as error:
        return {"reason": str(error)}
    return {"reason": ""}


def _load_image(image: Any, image_id: str) -> Image.Image:
    if image is None:
        raise ValueError("the row has no image.")
    name = f"image {image_id}"
    if isinstance(image, Mapping):
        name = image.get("path") or name
        image = _read_bytes(image)
    return load_image(image, name=name)


def _read_bytes(image: Mapping[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    # streamed folders name files of the Hub (hf://) and of archives (zip://)
    with fsspec.open(image["path"], "rb") as file:
        return file.read()


# --------------------------------------------------------------------------------------------------------------------
# Mapping: splits as they are -> rows of image, captions, image_id
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    columns: CaptionColumns
    files: ImageFiles | None
    split_column: str | None


def _find_layout(
    raw: Mapping[str, Rows], given: Mapping[str, str | None], split_column: str | None, folder: str | None
) -> _Layout:
    features = _features(next(iter(raw.values())))
    columns = CaptionColumns.infer(features, **given)
    if columns.embedded:
        files = None
    elif folder is None:
        raise ValueError(
            f"`{columns.image}` only names the images: download them, and pass their folder as `image_dir`."
        )
    elif not os.path.isdir(folder):
        raise ValueError(f"`image_dir` is `{folder}`, and there is no such folder.")
    else:
        files = ImageFiles(folder)
    if split_column is None:
        split_column = _guess_split_column(raw)
    elif split_column not in features:
        raise ValueError(f"`split_column` is `{split_column}`, but the columns are {listed(features)}.")
    return _Layout(columns, files, split_column)


def _features(rows: Rows) -> Mapping[str, Any]:
    if rows.features is None:  # a stream of text files: only its rows tell
        rows = Dataset.from_list(list(rows.take(1)))
    return rows.features


def _guess_split_column(raw: Mapping[str, Rows]) -> str | None:
    """`"split"`, if all rows are in one split and say that they belong to several."""
    (rows, *others) = raw.values()
    if others or isinstance(rows, IterableDataset) or "split" not in rows.column_names:
        return None
    named = {SPLITS.get(split, split) for split in rows.unique("split")}
    return "split" if len(named) > 1 and named <= {"train", "validation", "test"} else None


def _standardize(name: str, raw: Mapping[str, Rows], layout: _Layout) -> dict[str, Rows]:
    parts: dict[str, list[Rows]] = defaultdict(list)
    for split, rows in raw.items():
        parts["" if layout.split_column else SPLITS.get(split, split)].append(rows)
    splits: dict[str, Rows] = {}
    for split, some in parts.items():
        rows = datasets.concatenate_datasets(some)
        if isinstance(rows, IterableDataset):
            splits |= _standardize_stream(rows, split, layout)
        elif len(rows):
            splits |= _standardize_rows(rows, split, layout)
    if not splits:
        folder = f" in `{layout.files.folder}`" if layout.files else ""
        raise ValueError(f"no row has both a caption and an image{folder}; taken were: {layout.columns}.")
    sizes = [f"{split} ({len(rows)} images)" if isinstance(rows, Dataset) else split for split, rows in splits.items()]
    logger.info("`%s`: %s; %s.", name, layout.columns, ", ".join(sizes))
    return splits


def _standardize_rows(rows: Dataset, split: str, layout: _Layout) -> dict[str, Rows]:
    columns = layout.columns
    kept = [name for name in (SCENE, layout.split_column) if name in rows.column_names]
    sources = [name for name in rows.column_names if name in {*columns.sources, *kept}]
    images = None
    if columns.embedded:
        images = rows.select_columns([columns.image])
        images = images if columns.image == "image" else images.rename_column(columns.image, "image")
        images = images.cast_column("image", FEATURES["image"])
    table = rows.select_columns(sources).map(
        partial(_read_rows, layout=layout, names=None if images is None else _file_names(images)),
        batched=True,
        with_indices=True,
        remove_columns=[name for name in sources if name not in kept],
        features=datasets.Features(
            {name: feature for name, feature in FEATURES.items() if name != "image" or images is None}
            | {"num_empty": datasets.Value("int64"), "missing": datasets.Value("string")}
            | {name: rows.features[name] for name in kept}
        ),
        # a cache would know neither of changes in `image_dir` nor of those in this code
        load_from_cache_file=False,
        keep_in_memory=True,
        desc=" ".join(["Reading captions", split]).strip(),
    )
    num_empty = sum(table["num_empty"][:])
    table = group_by_image(table if images is None else _beside(images, table))
    _warn(table, split or "the dataset", num_empty, layout)
    usable = [index for index, captions in enumerate(table["captions"][:]) if captions]
    table = table if len(usable) == len(table) else table.select(usable)
    names = [*FEATURES, *([SCENE] if SCENE in kept else [])]
    if layout.split_column is None:
        return {split: table.select_columns(names)} if usable else {}
    by_split = defaultdict(list)
    for index, value in enumerate(table[layout.split_column][:]):
        by_split[SPLITS.get(value, value)].append(index)
    return {value: table.select_columns(names).select(indices) for value, indices in by_split.items()}


def _read_rows(
    batch: dict[str, list], indices: list[int], layout: _Layout, names: list[str] | None
) -> dict[str, list[Any]]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    ids = [str(index) if names is None else names[index] for index in indices]
    read = [_read_row(row, image_id, layout) for row, image_id in zip(rows, ids, strict=True)]
    return {name: [row[name] for row in read] for name in read[0]}


def _read_row(row: Mapping[str, Any], default_id: str, layout: _Layout) -> dict[str, Any]:
    columns = layout.columns
    captions = columns.read_captions(row)
    read: dict[str, Any] = {
        "captions": [caption for caption in captions if caption],
        "image_id": columns.read_image_id(row, default_id),
        "num_empty": captions.count(""),
        "missing": "",
    }
    if layout.files is not None:
        read["image"] = layout.files.find(str(row[columns.image]))
        if read["image"] is None:
            read |= {"captions": [], "missing": str(row[columns.image])}
    return read


def _warn(table: Dataset, split: str, num_empty: int, layout: _Layout) -> None:
    """Count and name what is left out."""
    if num_empty:
        logger.warning("Left out of %s: empty captions (%d).", split, num_empty)
    rows = list(zip(table["image_id"][:], table["captions"][:], table["missing"][:], strict=True))
    if layout.files is not None and (missing := [name for _, _, name in rows if name]):
        folder = layout.files.folder
        logger.warning(
            "Left out of %s: images not found in `%s` (%d): %s.", split, folder, len(missing), _some(missing)
        )
    if bare := [image_id for image_id, captions, name in rows if not captions and not name]:
        logger.warning("Left out of %s: images without a caption (%d): %s.", split, len(bare), _some(bare))


def _some(names: list[str], number: int = 10) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:number])
    return shown if len(names) <= number else f"{shown} and {len(names) - number} more"


def _file_names(images: Dataset) -> list[str] | None:
    """Paths below their common folder, where images are files and not a part of the table."""
    contents, files = images.data.column("image").flatten()
    if contents.null_count < len(images) or files.null_count:
        return None
    paths = files.to_pylist()
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def _standardize_stream(rows: IterableDataset, split: str, layout: _Layout) -> dict[str, Rows]:
    features = _features(rows)
    streams = {split: rows}
    if layout.split_column is not None:  # the names in a stream are known at its end only
        names = {split: {split} for split in ("train", "validation", "test")}
        for name, split in SPLITS.items():
            names[split].add(name)
        streams = {split: rows.filter(partial(_is_in, layout.split_column, names[split])) for split in names}
    kept = {SCENE: features[SCENE]} if SCENE in features else {}
    read = partial(_read_streamed_row, layout=layout)
    options = {
        "with_indices": True,
        "remove_columns": [name for name in features if name not in kept],
        "features": datasets.Features({**FEATURES, "image": datasets.Image(decode=False), **kept}),
    }
    return {split: stream.map(read, **options).filter(_has_captions) for split, stream in streams.items()}


def _read_streamed_row(row: Mapping[str, Any], index: int, layout: _Layout) -> dict[str, Any]:
    image: Any = row[layout.columns.image] if layout.columns.embedded else None
    if isinstance(image, bytes):
        image = {"bytes": image, "path": None}
    file = image["path"] if image is not None and image["bytes"] is None else None
    read = _read_row(row, os.path.basename(file) if file else str(index), layout)
    if layout.files is None:
        read["image"] = image
    elif read["image"] is not None:
        read["image"] = {"bytes": None, "path": read["image"]}
    if not read["captions"]:
        reason = f"`{read['missing']}` is not found" if read["missing"] else "it has no caption"
        logger.warning("Image `%s` is skipped: %s.", read["image_id"], reason)
    return {name: read[name] for name in FEATURES}


def _has_captions(row: Mapping[str, Any]) -> bool:
    return bool(row["captions"])


def _is_in(column: str, values: set[str], row: Mapping[str, Any]) -> bool:
    return row[column] in values


def _beside(left: Dataset, right: Dataset) -> Dataset:
    return datasets.concatenate_datasets([left, right], axis=1)


def _merge(lists: list[list[str]]) -> list[str]:
    """The captions of an image from its rows: each has some, or each has all."""
    has_all = len(lists[0]) > 1 and all(captions == lists[0] for captions in lists)
    return lists[0] if has_all else list(chain.from_iterable(lists))
