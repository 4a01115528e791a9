"""Find the captions of a local folder: in its metadata, in a table, or in a text file beside each picture."""

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets import Dataset
from datasets.data_files import DataFilesDict, DataFilesPatternsDict, get_data_patterns
from datasets.load import infer_module_for_data_files
from datasets.packaged_modules.imagefolder.imagefolder import IMAGE_EXTENSIONS

from .columns import CaptionColumns, shown
from .image_files import OTHER_EXTENSIONS
from .json_files import from_records, read_json
from .reporting import left_out, some
from .text_files import has_caption_columns, read_table, read_text, split_by_lists


METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".token")
# text beside a picture; a picture that has both has two columns
TEXT_SUFFIXES = (".caption", ".txt")


def split_in_name(name: str) -> str:
    """Return the split that a file name tells; `"train"` if it tells none."""
    found = re.search(r"(?<![a-z])(train|restval|val|valid|validation|dev|test)(?![a-z])", name.lower())
    return found[0] if found else "train"


def matching_files(path: Path) -> list[Path]:
    """
    Return the file of this name, or those that match the pattern.

    Raises:
        ValueError: there is none.
    """
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise ValueError("there is no such file.")
    return found


class LocalFolder:
    """The files of a folder, without hidden ones; symbolic links to folders are not followed."""

    def __init__(self, path: Path):
        self.path = path.absolute()

    @cached_property
    def files(self) -> list[Path]:
        found = []
        for folder, subfolders, names in os.walk(self.path):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
            found += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        return found

    @cached_property
    def pictures(self) -> list[Path]:
        endings = (*IMAGE_EXTENSIONS, *OTHER_EXTENSIONS)
        return [path for path in self.files if path.suffix.lower() in endings]

    @cached_property
    def metadata(self) -> list[Path]:
        return [path for path in self.files if path.name in METADATA_NAMES]

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the files with one of these endings."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def read_beside(self) -> dict[str, Dataset] | None:
        """Read the text files beside the pictures; `None` if there are none, or only few."""
        texts = {path for path in self.with_suffix(*TEXT_SUFFIXES) if path.name != "captions.txt"}
        beside = {path: [s for s in TEXT_SUFFIXES if path.with_suffix(s) in texts] for path in self.pictures}
        used = {path.with_suffix(suffix) for path, suffixes in beside.items() for suffix in suffixes}
        if len(used) * 2 <= len(texts):
            return None
        suffixes = [suffix for suffix in TEXT_SUFFIXES if any(suffix in found for found in beside.values())]
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for path, found in beside.items():
            captions = {suffix[1:]: _lines(path.with_suffix(suffix)) if suffix in found else [] for suffix in suffixes}
            rows[self._split_of(path)].append({"image": {"bytes": None, "path": str(path)}} | captions)
        left_out(self.path.name, "texts without a picture", [path.name for path in sorted(texts - used)])
        text = datasets.List(datasets.Value("string"))
        features = datasets.Features({"image": datasets.Image()} | {suffix[1:]: text for suffix in suffixes})
        return {split: Dataset.from_list(some_rows, features=features) for split, some_rows in rows.items()}

    def _split_of(self, path: Path) -> str:
        folders = path.relative_to(self.path).parts[:-1]
        return split_in_name(folders[0]) if folders else "train"

    def tables(self) -> list[Path]:
        """Return the files of captions, in the folder or one folder down."""
        near = [path for path in self.files if len(path.relative_to(self.path).parts) <= 2]
        near = [path for path in near if path not in self.metadata and ".lemma." not in path.name.lower()]
        tables = [path for path in near if path.suffix.lower() in TABLE_SUFFIXES and has_caption_columns(path)]
        json_files = [path for path in near if path.suffix.lower() in (".json", ".jsonl")]
        named = [path for path in json_files if re.match("caption|dataset_|annotations|karpathy", path.stem.lower())]
        return tables + (named or [path for path in json_files if _has_captions(path)])

    def read_table(self, cache_dir: str | None) -> dict[str, Dataset] | None:
        """
        Read the files of captions; `None` if there are none.

        Raises:
            ValueError: there are several for one split.
        """
        tables = self.tables()
        splits = Counter(split_in_name(path.name) for path in tables)
        if len(tables) > 1 and max(splits.values()) > 1:
            names = [str(path.relative_to(self.path)) for path in tables]
            raise ValueError(f"the folder has several files of captions, {some(names)}: pass one of them instead.")
        read: dict[str, Dataset] = {}
        for path in tables:
            read |= read_captions(path, cache_dir)
        return read or None

    def read_metadata(self) -> dict[str, Dataset]:
        """Read the metadata of an imagefolder whose rows are not of one form, or name files outside."""
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for path in self.metadata:
            records = _metadata_records(path)
            for number, record in enumerate(records, 1):
                if not isinstance(record.get("file_name"), str):
                    raise ValueError(f"row {number} of `{path.name}` lacks 'file_name'.")
                name = record.pop("file_name")
                image = {"bytes": None, "path": os.path.join(path.parent, name)}
                rows[self._split_of(path)].append({"image": image} | record)
        splits = {split: from_records(records) for split, records in rows.items()}
        return {split: rows.cast_column("image", datasets.Image()) for split, rows in splits.items()}

    def warn_of_unread(self) -> None:
        """
        Count and name the pictures that `datasets` does not find.

        Raises:
            ValueError: there are no others.
        """
        unread = [path for path in self.pictures if path.suffix.lower() in OTHER_EXTENSIONS]
        names = [str(path.relative_to(self.path)) for path in unread]
        if unread and len(unread) == len(self.pictures):
            raise ValueError(
                f"all its pictures ({len(names)}) are in formats that are not read, {some(names)}: save as JPEG."
            )
        left_out(self.path.name, "pictures in formats that are not read", names, "; save them as JPEG")


def _has_captions(path: Path) -> bool:
    try:
        rows = next(iter(read_captions(path).values()))
        CaptionColumns.infer(rows.features)
    except ValueError:
        return False
    return True


def _metadata_records(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        (rows,) = read_json(path, "train").values()
        return rows.to_list()
    text = read_text(path) if path.suffix == ".csv" else ""
    try:
        table = pd.read_csv(StringIO(text)) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # what pandas raises depends on where it gives up
        raise ValueError(f"{shown(path.name)} cannot be read: {str(error).strip()}.") from error
    return table.to_dict("records")  # type: ignore[return-value]


def _lines(path: Path) -> list[str]:
    return [line for line in read_text(path).splitlines() if line.strip()]


def read_captions(path: Path, cache_dir: str | None = None) -> dict[str, Dataset]:
    """Read a file of captions that names its images: a table, or JSON."""
    split = split_in_name(path.name)
    if path.suffix.lower() in (".json", ".jsonl"):
        return read_json(path, split)
    rows = read_table(path, cache_dir)
    return split_by_lists(path, rows) or {split: rows}


def local_data_files(folder: Path) -> tuple[str, dict[str, list[str]]]:
    """Find the builder of `datasets` and the files of each split of a folder, in whose name `[` means itself."""
    base = glob.escape(str(folder))
    patterns = DataFilesPatternsDict.from_patterns(get_data_patterns(base))
    found = DataFilesDict.from_patterns(patterns, base_path=base)
    builder, _ = infer_module_for_data_files(found, path=str(folder))
    assert builder is not None  # or it would have raised
    return builder, {str(split): [str(path) for path in paths] for split, paths in found.items()}


def escaped(paths: Sequence[str | Path]) -> list[str]:
    """Make patterns of paths in which `[`, `*` and `?` mean themselves."""
    return [glob.escape(str(path)) for path in paths]
