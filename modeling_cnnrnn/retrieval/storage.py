"""
The files of an index of pictures.

    index.json              which model, which folder, which shards, and which of their rows are no longer valid
    00000.safetensors       a shard: `regions` (N, R, D) and `pooled` (N, D) in float16, the names of the files, their
                            sizes and times; with a query bank also `bank_scores` (N,) in float32
    pooled.usearch          the graph of an approximate search, if one was asked for

A shard is written whole and never changed. Regions are memory-mapped: a search reads those of its shortlist alone.
"""

import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..files import atomic_path, write_text
from ..models.error_messages_cnnrnn import shown


MANIFEST_NAME = "index.json"
GRAPH_NAME = "pooled.usearch"
FORMAT_VERSION = 1


class DamagedIndexError(ValueError):
    """A file of an index cannot be read."""


class PictureFile(NamedTuple):
    """A file as it was when its picture was embedded: path below the folder, bytes, time of its last change."""

    name: str
    size: int
    mtime_ns: int


@dataclass
class Manifest:
    """
    What `index.json` holds.

    Attributes:
        folder: folder of the pictures, to which their names are relative.
        model_name_or_path, model_fingerprint: the model that embedded them, and its [`model_fingerprint`].
        bank: sentences of the query bank, if there is one.
        shards: the rows of each shard that are no longer valid, by the shard's name.
        is_complete: whether all pictures of the folder were embedded, or are known not to be readable.
        has_graph: whether the graph of the approximate search holds the valid rows and no others.
    """

    folder: str
    model_name_or_path: str
    model_fingerprint: str
    bank: list[str] = field(default_factory=list)
    shards: dict[str, list[int]] = field(default_factory=dict)
    is_complete: bool = False
    has_graph: bool = False

    def save(self, index_dir: Path) -> None:
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        write_text(index_dir / MANIFEST_NAME, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, index_dir: str | os.PathLike) -> "Manifest":
        """
        Read the manifest of an index.

        Raises:
            FileNotFoundError: the folder is no index.
            DamagedIndexError: the file is damaged.
            ValueError: a later version of this package has written it.
        """
        path = Path(index_dir) / MANIFEST_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format_version")
            manifest = cls(**content)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"'{index_dir}' is no index of pictures: make one with `cnnrnn index`.") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedIndexError(f"'{path}' is damaged ({shown(error)}): {_REBUILD}.") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"'{path}' has format version {shown(version)}, not {FORMAT_VERSION}: {_REBUILD}.")
        if not manifest.is_sound():
            raise DamagedIndexError(f"'{path}' is damaged (a field is of another kind): {_REBUILD}.")
        return manifest

    def is_sound(self) -> bool:
        """Return whether each field is of its kind."""
        texts = (self.folder, self.model_name_or_path, self.model_fingerprint)
        return (
            all(isinstance(text, str) for text in texts)
            and isinstance(self.bank, list)
            and all(isinstance(sentence, str) for sentence in self.bank)
            and isinstance(self.shards, dict)
            and all(re.fullmatch(r"\d+\.safetensors", name) for name in self.shards)
            and all(isinstance(rows, list) and all(type(row) is int for row in rows) for rows in self.shards.values())
        )


_REBUILD = "make the index again with `cnnrnn index ... --overwrite_output_dir`"


@dataclass
class Shard:
    """
    Some embedded pictures.

    Attributes:
        files: the files of the pictures.
        regions: `(N, R, D)`, float16.
        pooled: `(N, D)`, float16.
        bank: digest of the query bank by which `bank_scores` `(N,)` were computed; empty without one.
    """

    files: list[PictureFile]
    regions: np.ndarray
    pooled: np.ndarray
    bank: str = ""
    bank_scores: np.ndarray | None = None

    def save(self, path: Path) -> None:
        tensors = {"regions": self.regions, "pooled": self.pooled}
        if self.bank_scores is not None:
            tensors["bank_scores"] = self.bank_scores
        with atomic_path(path) as partial:
            save_file(tensors, partial, {"files": json.dumps(self.files), "bank": self.bank})

    @classmethod
    def load(cls, path: Path) -> "Shard":
        """
        Map a shard into memory; only the pages that are used are read.

        Raises:
            DamagedIndexError: the file is gone, cut short or damaged.
        """
        try:
            with safe_open(path, framework="numpy") as file:  # checks the header and the size of the file
                metadata = file.metadata()
            files = [PictureFile(*row) for row in json.loads(metadata["files"])]
            arrays = _map_tensors(path)
            shard = cls(files, arrays["regions"], arrays["pooled"], metadata["bank"], arrays.get("bank_scores"))
            fits = len(files) == len(shard.regions) == len(shard.pooled) and shard.regions.ndim == 3
            if not (fits and shard.pooled.shape[1] == shard.regions.shape[2]):
                raise ValueError("its tensors do not fit each other")
        except Exception as error:  # of a type that safetensors' Rust code makes
            raise DamagedIndexError(
                f"'{path}' is damaged ({shown(error)}): run `cnnrnn index` again, which embeds its pictures again."
            ) from error
        return shard


def _map_tensors(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    kinds = {"F16": np.float16, "F32": np.float32}
    return {
        name: np.memmap(path, kinds[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def valid_rows(shard: Shard, removed: Sequence[int]) -> np.ndarray:
    """
    Return the rows of a shard that have not been removed.

    Raises:
        DamagedIndexError: the shard does not have the rows that were removed.
    """
    if removed and not 0 <= min(removed) <= max(removed) < len(shard.files):
        raise DamagedIndexError(f"`{MANIFEST_NAME}` names rows that its shards do not have: {_REBUILD}.")
    is_valid = np.ones(len(shard.files), dtype=bool)
    is_valid[list(removed)] = False
    return np.flatnonzero(is_valid)


class StoredPictures:
    """
    The pictures of an index, in the order of its shards.

    Attributes:
        keys: shard and row of each picture in one number, `(N,)`, uint64, rising. They stay the same when others are added.

    Raises:
        DamagedIndexError: a shard cannot be read, or does not fit the others.
    """

    def __init__(self, index_dir: Path, manifest: Manifest):
        names = sorted(manifest.shards, key=shard_number)
        self._shards = [Shard.load(index_dir / name) for name in names]
        if len({shard.regions.shape[1:] for shard in self._shards}) > 1:
            raise DamagedIndexError(f"'{index_dir}' is damaged (its shards do not fit each other): {_REBUILD}.")
        self._rows = [valid_rows(s, manifest.shards[name]) for s, name in zip(self._shards, names, strict=True)]
        self._places = [(i, row) for i, rows in enumerate(self._rows) for row in rows.tolist()]
        keys = [shard_number(name) * 2**32 + rows for name, rows in zip(names, self._rows, strict=True)]
        self.keys = np.concatenate([np.empty(0, np.uint64), *(rows.astype(np.uint64) for rows in keys)])
        self.has_bank_scores = all(shard.bank_scores is not None for shard in self._shards)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """Return the name of a picture, relative to the folder of the index."""
        shard, row = self._places[index]
        return self._shards[shard].files[row].name

    @cached_property
    def pooled(self) -> np.ndarray:
        """The vectors of all pictures, `(N, D)`, float32: NumPy has no fast product of float16."""
        pairs = zip(self._shards, self._rows, strict=True)
        return np.concatenate([shard.pooled[rows].astype(np.float32) for shard, rows in pairs])

    def take(self, name: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read `regions`, `pooled` or `bank_scores` of some pictures."""
        places = [self._places[index] for index in indices]
        return np.stack([getattr(self._shards[shard], name)[row] for shard, row in places])


def shard_number(name: str) -> int:
    """Return the number in the name of a shard; later shards have higher ones."""
    return int(name.partition(".")[0])


def shard_paths(index_dir: Path) -> list[Path]:
    """List the files of shards, also those that the manifest does not name."""
    return [path for path in index_dir.glob("*.safetensors") if path.stem.isdecimal()]


def check_index_dir(index_dir: str | os.PathLike) -> None:
    """
    Check that a folder is an index, or can become one.

    Raises:
        ValueError: it is a file, or holds something else.
    """
    index_dir = Path(index_dir)
    if index_dir.exists() and not index_dir.is_dir():
        raise ValueError(f"`output_dir` is '{index_dir}', a file: pass a folder.")
    others: list[Any] = [] if not index_dir.exists() else [path for path in index_dir.iterdir() if path.name[0] != "."]
    if others and not (index_dir / MANIFEST_NAME).exists():
        raise ValueError(
            f"`output_dir` is '{index_dir}', which holds something else than an index ({shown(others[0].name)}): pass "
            "another folder."
        )
