"""
Any captioning dataset, by name: every layout becomes rows of `image`, `captions` and `image_id`.

Images are not decoded here. Rows that carry one caption each are grouped, so that a row is an image.
"""

import json
import logging
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import datasets
import fsspec
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from PIL import Image

from modeling_cnnrnn.data.columns import CaptionColumns, listed
from modeling_cnnrnn.processing_cnnrnn import load_rgb


logger = logging.getLogger(__name__)

Rows: TypeAlias = Dataset | IterableDataset

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
    }
)
# kept where a dataset has it: what a picture of `shapes` shows
SCENE = "scene"
# other names of the splits; Karpathy's `restval` are the images of COCO's validation set that all papers train on
SPLITS = {"restval": "train", "val": "validation", "valid": "validation", "dev": "validation"}
BUILDERS = {".arrow": "arrow", ".csv": "csv", ".parquet": "parquet", ".tar": "webdataset", ".tsv": "csv", ".txt": "csv"}


def load_caption_dataset(
    dataset_name: str,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    data_dir: str | None = None,
    image_dir: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_id_column: str | None = None,
    split_column: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
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
        streaming: read while iterating. Images come undecoded as `{"bytes", "path"}` (see [`decode_image`]), and rows
            are not grouped.

    Returns:
        The splits, with the columns `image`, `captions` (a list), `image_id` (a string) and, if there is one, `scene`.
        `val`, `valid` and `dev` are called `validation`; `restval` is a part of `train`.
    """
    is_several = "," in dataset_name and not Path(dataset_name).exists()
    columns = {"image_column": image_column, "caption_column": caption_column, "image_id_column": image_id_column}
    loaded: dict[str, Rows] = {}
    for name in dataset_name.split(",") if is_several else [dataset_name]:
        try:
            raw = _read_splits(name, dataset_config_name, dataset_revision, data_dir, streaming, cache_dir)
            layout = _find_layout(raw, columns, split_column, image_dir or _local_folder(name, data_dir))
            splits = _standardize(name, raw, layout)
        except (OSError, ValueError) as error:
            raise ValueError(f"The dataset `{name}` cannot be used: {error}") from error
        if twice := loaded.keys() & splits.keys():
            raise ValueError(f"Several of `{dataset_name}` have the split `{min(twice)}`: name one of them only.")
        loaded |= splits
    return IterableDatasetDict(loaded) if streaming else DatasetDict(loaded)


def references_by_image(dataset: Rows) -> dict[str, list[str]]:
    """The captions of every image, in the order of the images. No image is decoded."""
    captions = defaultdict(list)
    for row in dataset.select_columns(["image_id", "captions"]):
        captions[row["image_id"]].append(row["captions"])
    return {image_id: _merge(lists) for image_id, lists in captions.items()}


def group_by_image(dataset: Dataset) -> Dataset:
    """One row per image with all its captions, where rows carried one caption each. No image is decoded or copied."""
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
        num_proc=num_proc,
        desc="Checking images",
    )["reason"][:]
    broken = [(image_id, reason) for image_id, reason in zip(dataset["image_id"], reasons, strict=True) if reason]
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
    return load_rgb(image, name=name)


def _read_bytes(image: Mapping[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    # streamed folders name files of the Hub (hf://) and of archives (zip://)
    with fsspec.open(image["path"], "rb") as file:
        return file.read()


class _ImageFiles:
    """The files below a folder, found by names, paths or URLs that were written on another machine."""

    def __init__(self, folder: str):
        self.folder = folder

    def find(self, name: str) -> str | None:
        """The file whose path agrees with `name` from the end on, the longer the better."""
        if os.path.isfile(path := os.path.join(self.folder, name)):
            return path
        tail = self._parts(urlsplit(unquote(name)).path if "://" in name else name)
        candidates = self._by_name.get(tail[-1], []) if tail else []
        agreement = {path: _common_tail(self._parts(path), tail) for path in candidates}
        best = [path for path in candidates if agreement[path] == max(agreement.values())]
        if len(best) > 1:
            raise ValueError(f"`{name}` may be `{best[0]}` or `{best[1]}`: keep one of them in `image_dir`.")
        return best[0] if best else None

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        paths = defaultdict(list)
        for folder, _, names in os.walk(self.folder):
            for name in names:
                paths[name].append(os.path.join(folder, name))
        return dict(paths)

    @staticmethod
    def _parts(path: str) -> list[str]:
        return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]


def _common_tail(parts: list[str], others: list[str]) -> int:
    pairs = zip(reversed(parts), reversed(others), strict=False)
    return next((length for length, (a, b) in enumerate(pairs) if a != b), min(len(parts), len(others)))


# --------------------------------------------------------------------------------------------------------------------
# Reading: a name -> splits as they are
# --------------------------------------------------------------------------------------------------------------------


def _read_splits(
    name: str, config: str | None, revision: str | None, data_dir: str | None, streaming: bool, cache_dir: str | None
) -> dict[str, Rows]:
    path = Path(name).expanduser()
    if name == "shapes":
        from modeling_cnnrnn.data.shapes import build_shapes

        splits = build_shapes()
    elif path.suffix in (".json", ".jsonl"):
        splits = _read_json(path)
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        splits = datasets.load_from_disk(str(path))
    else:
        return _load_dataset(name, path, config, revision, data_dir, streaming, cache_dir)
    splits = dict(splits) if isinstance(splits, dict) else {str(splits.split or "train"): splits}
    return {split: rows.to_iterable_dataset() for split, rows in splits.items()} if streaming else splits


def _load_dataset(
    name: str,
    path: Path,
    config: str | None,
    revision: str | None,
    data_dir: str | None,
    streaming: bool,
    cache_dir: str | None,
) -> dict[str, Rows]:
    """`datasets.load_dataset`, with one sentence for what goes wrong."""
    options: dict[str, Any] = {"name": config, "data_dir": data_dir, "streaming": streaming, "cache_dir": cache_dir}
    if path.suffix in BUILDERS:
        options |= {"path": BUILDERS[path.suffix], "data_files": {_split_in_name(path.name): str(path)}}
        if path.suffix == ".tsv":
            options["sep"] = "\t"
    elif path.is_dir():
        if not any(path.iterdir()):
            raise ValueError("the folder is empty.")
        options["path"] = str(path)
    elif re.match(r"[./~]", name) or name.count("/") > 1:
        raise ValueError("there is no such file or folder.")
    else:
        repository, _, its_revision = name.partition("@")
        options |= {"path": repository, "revision": its_revision or revision}
    try:
        return dict(datasets.load_dataset(**options))
    except Exception as error:  # what comes out of `datasets` depends on the format and on where reading stops
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = " ".join(str(cause or error).split()) or type(error).__name__
        if "scripts are no longer supported" in reason:
            reason += "; the Hub's own conversion may be there, as revision `refs/convert/parquet`."
        elif isinstance(error, datasets.exceptions.DatasetNotFoundError) and "@" not in name:
            reason += " There is no folder of this name either."
        raise ValueError(reason) from error


def _read_json(path: Path) -> Dataset | dict[str, Dataset]:
    """COCO's `captions_*.json`, Karpathy's `dataset_*.json`, a list of records, or a record a line."""
    if not path.is_file():
        raise ValueError("there is no such file.")
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise ValueError(f"the file is not JSON: {error}.") from error
    split = _split_in_name(path.name)
    if isinstance(content, list) and content and all(isinstance(record, dict) for record in content):
        return {split: Dataset.from_list(content)}
    if not isinstance(content, dict) or "images" not in content:
        shown = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"the file is neither of COCO's format, nor a Karpathy split, nor records, but holds {shown}.")
    try:
        if "annotations" in content:
            captions = defaultdict(list)
            for annotation in content["annotations"]:
                captions[annotation["image_id"]].append(annotation["caption"])
            rows = [
                {"file_name": image["file_name"], "captions": captions[image["id"]], "image_id": str(image["id"])}
                for image in content["images"]
            ]
            return {split: Dataset.from_list(rows)}
        by_split = defaultdict(list)
        for image in content["images"]:
            row = {
                "file_name": os.path.join(image.get("filepath", ""), image["filename"]),
                "captions": [sentence["raw"] for sentence in image["sentences"]],
                "image_id": str(image.get("cocoid", image.get("imgid", image["filename"]))),
            }
            by_split[image["split"]].append(row)
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry of the file lacks {error}; its parts are {', '.join(content)}.") from error
    return {name: Dataset.from_list(rows) for name, rows in by_split.items()}


def _split_in_name(name: str) -> str:
    found = re.search(r"(?<![a-z])(train|val|valid|validation|dev|test)(?![a-z])", name.lower())
    return found[0] if found else "train"


def _local_folder(name: str, data_dir: str | None) -> str | None:
    path = Path(name).expanduser()
    if path.is_file():
        return str(path.parent)
    return str(path) if path.is_dir() else data_dir


# --------------------------------------------------------------------------------------------------------------------
# Mapping: splits as they are -> rows of image, captions, image_id
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    columns: CaptionColumns
    files: _ImageFiles | None
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
        files = _ImageFiles(folder)
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
        raise ValueError(f"no row has both an image and a caption ({layout.columns}).")
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
        partial(_read_rows, layout=layout, names=images and _file_names(images)),
        batched=True,
        with_indices=True,
        remove_columns=[name for name in sources if name not in kept],
        features=datasets.Features(
            {name: feature for name, feature in FEATURES.items() if name != "image" or images is None}
            | {"num_empty": datasets.Value("int64"), "missing": datasets.Value("string")}
            | {name: rows.features[name] for name in kept}
        ),
        # neither this code nor the files in `image_dir` are known to the cache
        load_from_cache_file=False,
        desc=" ".join(["Reading captions", split]).strip(),
    )
    table = group_by_image(table if images is None else _beside(images, table))
    _warn(table, split, layout)
    usable = [index for index, captions in enumerate(table["captions"]) if captions]
    table = table if len(usable) == len(table) else table.select(usable)
    names = [*FEATURES, *([SCENE] if SCENE in kept else [])]
    if layout.split_column is None:
        return {split: table.select_columns(names)} if usable else {}
    by_split = defaultdict(list)
    for index, value in enumerate(table[layout.split_column]):
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


def _warn(table: Dataset, split: str, layout: _Layout) -> None:
    """Count and name what is left out."""
    where = f" of {split}" if split else ""
    if num_empty := sum(table["num_empty"]):
        logger.warning("%d empty captions%s are left out.", num_empty, where)
    if missing := [name for name in table["missing"] if name]:
        folder = layout.files and layout.files.folder
        logger.warning("%d images%s are left out, not found in `%s`: %s.", len(missing), where, folder, _some(missing))
    columns = zip(table["image_id"], table["captions"], table["missing"], strict=True)
    if bare := [image_id for image_id, captions, missing_name in columns if not captions and not missing_name]:
        logger.warning("%d images%s are left out, without a caption: %s.", len(bare), where, _some(bare))


def _some(names: list[str], number: int = 10) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:number])
    return shown if len(names) <= number else f"{shown} and {len(names) - number} more"


def _file_names(images: Dataset) -> list[str] | None:
    """Paths below their common folder, where images are files and not a part of the table."""
    table = images.cast_column("image", datasets.Image(decode=False)).flatten()
    if table.data["image.bytes"].null_count < len(table) or table.data["image.path"].null_count:
        return None
    paths = table["image.path"][:]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def _standardize_stream(rows: IterableDataset, split: str, layout: _Layout) -> dict[str, Rows]:
    features = _features(rows)
    # what is decoded before it is mapped would be encoded and decoded again
    rows = rows if rows.features is None else rows.decode(False)
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
    is_file = image is not None and image["bytes"] is None
    read = _read_row(row, os.path.basename(image["path"]) if is_file else str(index), layout)
    if layout.files is None:
        read["image"] = image
    elif read["image"] is not None:
        read["image"] = {"bytes": None, "path": read["image"]}
    if not read["captions"]:
        reason = f"`{read['missing']}` is not found" if read["missing"] else "it has no caption"
        logger.warning("Image `%s` is skipped: %s.", read["image_id"], reason)
    return {name: read[name] for name in FEATURES}


def _has_captions(row: Mapping[str, Any]) -> bool:
    return len(row["captions"]) > 0


def _is_in(column: str, values: set[str], row: Mapping[str, Any]) -> bool:
    return row[column] in values


def _beside(left: Dataset, right: Dataset) -> Dataset:
    return datasets.concatenate_datasets([left, right], axis=1)


def _merge(lists: list[list[str]]) -> list[str]:
    """The captions of an image from its rows: each has some, or each has all."""
    has_all = len(lists[0]) > 1 and all(captions == lists[0] for captions in lists)
    return lists[0] if has_all else list(chain.from_iterable(lists))
