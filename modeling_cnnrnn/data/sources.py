"""Read the splits of a dataset as they are, from its name."""

import hashlib
import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict
from huggingface_hub.utils import WeakFileLock

from ..files import whole_folder
from .columns import listed, shown
from .folders import LocalFolder, escaped, local_data_files, matching_files, read_captions, split_in_name
from .image_files import decode_images
from .tar_files import find_samples, read_tars


BUILDERS = {".arrow": "arrow", ".parquet": "parquet", ".tar": "webdataset"}
CAPTION_SUFFIXES = (".csv", ".json", ".jsonl", ".token", ".tsv", ".txt")
# `datasets` reads a folder that has them; tables of captions in it are something else
DATA_SUFFIXES = (*BUILDERS, ".lance", ".vortex", ".h5", ".hdf5", ".zip", ".gz", ".zst")


def split_names(dataset_name: str) -> list[str]:
    """Split a list of names at its commas, unless it is a path with commas."""
    is_list = "," in dataset_name and not Path(dataset_name).expanduser().exists()
    return [name.strip() for name in dataset_name.split(",")] if is_list else [dataset_name]


def read_splits(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Dataset]:
    """
    Read the splits of a dataset with the columns that they have. Images in base64 are decoded to bytes.

    Rows can name any file: open none but those of [`~modeling_cnnrnn.data.image_files.files_of_dataset`].

    Args:
        name: one of the names that [`~modeling_cnnrnn.data.loading.load_caption_dataset`] takes.
        config, revision, data_dir, cache_dir: as there, for a dataset of the Hub or a folder.

    Raises:
        ValueError: the dataset cannot be read; the message is one sentence.
    """
    path = Path(name).expanduser()
    try:
        if name == "shapes":
            return dict(_draw_shapes(cache_dir))
        if path.is_dir():
            splits = _read_folder(path, config, data_dir, cache_dir)
        elif path.suffix.lower() in CAPTION_SUFFIXES:
            splits = _read_caption_files(matching_files(path), cache_dir)
        elif path.suffix.lower() in BUILDERS:
            splits = _read_data_files(path, cache_dir)
        elif path.exists():
            known = listed([*CAPTION_SUFFIXES, *BUILDERS])
            raise ValueError(
                f"files with the ending {shown(path.suffix)} are not read: pass a folder, or one of {known}."
            )
        elif re.match(r"[./~]", name) or name.count("/") > 1:
            raise ValueError("there is no such file or folder.")
        else:
            repository, _, its_revision = name.partition("@")
            splits = _load_dataset(
                path=repository, revision=its_revision or revision, name=config, data_dir=data_dir, cache_dir=cache_dir
            )
        if not any(map(len, splits.values())):
            raise ValueError("there are no rows in it.")
        return {split: decode_images(rows) for split, rows in splits.items()}
    except OSError as error:
        raise ValueError(f"{shown(error.filename or name, 200)} cannot be read: {error.strerror or error}.") from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def _draw_shapes(cache_dir: str | None) -> DatasetDict:
    """Draw the pictures, or read them from the cache if the code that draws them has not changed since."""
    from .shapes import drawing, language

    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (drawing, language))
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"shapes-{hashlib.sha256(code).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{folder}.lock"):  # several processes of a training ask at once, and one of them draws
        if not folder.exists():
            with whole_folder(folder) as partial:
                drawing.build_shapes(num_proc=os.cpu_count() or 1).save_to_disk(partial)
    return DatasetDict(datasets.load_from_disk(str(folder)))


def _read_folder(path: Path, config: str | None, data_dir: str | None, cache_dir: str | None) -> dict[str, Dataset]:
    if (path / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(path)))
    if (path / "state.json").is_file():
        return {"train": datasets.load_from_disk(str(path))}
    folder = LocalFolder(path / data_dir if data_dir and (path / data_dir).is_dir() else path)
    if not any(path.iterdir()):
        raise ValueError("the folder is empty.")
    if not folder.with_suffix(*DATA_SUFFIXES) and not folder.metadata and config is None:
        splits = (folder.read_beside() if folder.pictures else None) or folder.read_table(cache_dir)
        if splits:
            return splits
    if not folder.with_suffix(*DATA_SUFFIXES):
        folder.warn_of_unread()  # a table or a text beside a picture may name them, and load_image may read them
    if folder.with_suffix(".tar"):
        builder, files = local_data_files(folder.path)
        if builder == "webdataset" and (splits := _read_irregular_tars(files, cache_dir)):
            return splits
    try:
        if re.search(r"[\[\]*?]", str(path.resolve())):
            builder, files = local_data_files(folder.path.resolve())
            return _load_dataset(
                path=builder, data_files={split: escaped(paths) for split, paths in files.items()}, cache_dir=cache_dir
            )
        return _load_dataset(path=str(path.resolve()), name=config, data_dir=data_dir, cache_dir=cache_dir)
    except ValueError:
        if not folder.metadata or not folder.pictures:
            raise
    return folder.read_metadata()


def _read_caption_files(paths: list[Path], cache_dir: str | None) -> dict[str, Dataset]:
    """Read the files of a name or pattern; files of one split follow each other."""
    parts: dict[str, list[Dataset]] = defaultdict(list)
    for path in paths:
        for split, rows in read_captions(path, cache_dir).items():
            parts[split].append(rows)
    return {split: rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows) for split, rows in parts.items()}


def _read_data_files(path: Path, cache_dir: str | None) -> dict[str, Dataset]:
    files = [str(found) for found in matching_files(path)]
    split = split_in_name(path.name)
    if path.suffix.lower() == ".tar" and (splits := _read_irregular_tars({split: files}, cache_dir)):
        return splits
    builder = BUILDERS[path.suffix.lower()]
    return _load_dataset(path=builder, data_files={split: escaped(files)}, cache_dir=cache_dir)


def _read_irregular_tars(files: dict[str, list[str]], cache_dir: str | None) -> dict[str, Dataset] | None:
    """Read shards that `datasets` refuses; `None` if it reads them."""
    found = {split: find_samples(paths) for split, paths in files.items()}
    if all(is_regular for _, is_regular in found.values()):
        return None
    return {split: read_tars(files[split], endings, cache_dir) for split, (endings, _) in found.items()}


def _load_dataset(**options: Any) -> dict[str, Dataset]:
    """Call `datasets.load_dataset`, and turn its errors into one sentence."""
    try:
        return dict(datasets.load_dataset(**options))
    except Exception as error:  # what comes out of `datasets` depends on the format and on where reading stops
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = str(cause or error) or type(error).__name__
        if "scripts are no longer supported" in reason:
            reason += "; the Hub's own conversion may be there, as revision `refs/convert/parquet`."
        elif isinstance(error, datasets.exceptions.DatasetNotFoundError) and "revision" not in reason.lower():
            reason += " There is no folder of this name either."
        elif "don't share the same prefix or the same types" in reason:
            reason += " Download the shards, and pass their folder: samples that lack a file are left out then."
        elif isinstance(cause or error, pa.ArrowException | json.JSONDecodeError | OSError | UnicodeError):
            reason = f"a file of it is damaged, or not what its ending says: {reason}"
        raise ValueError(reason) from error
