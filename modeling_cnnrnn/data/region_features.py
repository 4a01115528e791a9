"""
Read the features of image regions that a detector has found, as people have them on disk.

The layouts are those of bottom-up features (https://arxiv.org/abs/1707.07998): a file for each image, HDF5, Parquet, or a
column of the dataset itself. Nothing is read before it is asked for, and nothing is unpickled.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import datasets
import numpy as np

from .columns import listed, shown


COLUMN = "image_features"
FEATURE_NAMES = (COLUMN, "features", "feat", "x")  # in an .npz, in a group of an HDF5 file, and as columns
BOX_NAMES = ("boxes", "bbox")
ID_NAMES = ("image_id", "image_ids", "id")


class _Reader(Protocol):
    """Where features lie: `keys` by the name of an image, and what is stored there."""

    @property
    def keys(self) -> Mapping[str, Any]: ...

    def read(self, key: Any, names: tuple[str, ...]) -> np.ndarray | None: ...


class _Folder:
    """A folder with `image_id.npy` or `image_id.npz` for each image."""

    def __init__(self, path: Path):
        files = sorted(entry for entry in path.iterdir() if entry.suffix in (".npy", ".npz") and entry.is_file())
        if not files:
            raise ValueError(f"{shown(path, 200)} holds no .npy and no .npz file.")
        self.keys = {file.stem: file for file in files}

    def read(self, key: Path, names: tuple[str, ...]) -> np.ndarray | None:
        stored = np.load(key, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored if names == FEATURE_NAMES else None
        with stored:
            name = next((name for name in names if name in stored.files), None)
            return None if name is None else stored[name]


class _HDF5:
    """An HDF5 file with a dataset `(num_regions, num_channels)` or a group for each image, named by its id."""

    def __init__(self, path: Path):
        self.path = path
        with _open_hdf5(path) as file:
            self.keys = {name: name for name in file}

    def read(self, key: str, names: tuple[str, ...]) -> np.ndarray | None:
        with _open_hdf5(self.path) as file:  # a file that is open does not travel to other processes
            stored = file[key]
            if hasattr(stored, "shape"):
                return stored[()] if names == FEATURE_NAMES else None
            name = next((name for name in names if name in stored), None)
            return None if name is None else stored[name][()]


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{shown(path, 200)} needs h5py: `pip install h5py`.") from error
    return h5py.File(path, "r")


class _Rows:
    """Rows of a dataset with a column of features and, where images are found by their name, one of ids."""

    def __init__(self, rows: datasets.Dataset, ids: Sequence[str] | None = None):
        columns = [name for name in (*FEATURE_NAMES, *BOX_NAMES) if name in rows.column_names]
        self.rows = rows.select_columns(columns)
        self.keys = {str(name): row for row, name in enumerate(ids if ids is not None else range(len(rows)))}

    @classmethod
    def of_file(cls, path: Path) -> "_Rows":
        rows: Any = datasets.Dataset.from_parquet(str(path))
        id_name, feature_name = (
            next((name for name in names if name in rows.column_names), None) for names in (ID_NAMES, FEATURE_NAMES)
        )
        if id_name is None or feature_name is None:
            raise ValueError(
                f"{shown(path, 200)} has the columns {listed(rows.column_names)}: `image_id` and `image_features` are needed."
            )
        return cls(rows, rows[id_name][:])

    def read(self, key: int, names: tuple[str, ...]) -> np.ndarray | None:
        row = self.rows[key]
        name = next((name for name in names if row.get(name) is not None), None)
        return None if name is None else np.asarray(row[name], np.float32)


class RegionFeatures:
    """
    Features of the regions of the images of a dataset, `(num_regions, num_channels)` each, read when they are asked for.

    Args:
        reader: where they lie.
        image_ids: of the images of the dataset, in its order.

    Attributes:
        num_channels: of the features.
        missing: rows of the dataset without features, each with the reason.
    """

    def __init__(self, reader: _Reader, image_ids: Sequence[str], place: str):
        self.reader = reader
        self.found = [_find(reader.keys, image_id) for image_id in image_ids]
        reason = f"there are no features of it in {place}"
        self.missing = {row: reason for row, key in enumerate(self.found) if key is None}
        self.num_channels: int | None = None
        for row in range(len(self.found)):
            if row not in self.missing:
                try:
                    self.num_channels = self[row].shape[1]
                except (OSError, ValueError) as error:
                    self.missing[row] = str(error)
                else:
                    break
        if self.num_channels is None:
            raise ValueError(f"{place} has features of none of the {len(image_ids)} images, such as {image_ids[0]!r}.")

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, row: Any) -> np.ndarray:
        """
        Read the features of an image.

        Raises:
            OSError, ValueError: they cannot be read, or are no features of regions.
        """
        if row in self.missing:
            raise ValueError(self.missing[row])
        features = self.reader.read(self.found[row], FEATURE_NAMES)
        if features is None:
            raise ValueError(f"its file holds none of {listed(FEATURE_NAMES)}")
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"its features have the shape {features.shape}, not (num_regions, num_channels)")
        if self.num_channels not in (None, features.shape[1]):
            raise ValueError(
                f"its regions have {features.shape[1]} features, those of other images {self.num_channels}"
            )
        if not np.isfinite(features).all():
            raise ValueError("its features hold NaN or infinite values")
        return features

    def boxes(self, row: int) -> np.ndarray | None:
        """Read the boxes `(num_regions, 4)` of the regions of an image, as they are stored; `None` if there are none."""
        return None if row in self.missing else self.reader.read(self.found[row], BOX_NAMES)


def _find(keys: Mapping[str, Any], image_id: str) -> Any:
    """Find an image by its id, or by the name of its file without folder and suffix."""
    return keys.get(image_id, keys.get(PurePosixPath(image_id).stem))


def load_region_features(path: str | os.PathLike, image_ids: Sequence[str]) -> RegionFeatures:
    """
    Open the features of the regions of images.

    Args:
        path: a folder of `image_id.npy`, `(num_regions, num_channels)`, or `image_id.npz` with `features` or `feat` and
            perhaps `boxes` or `bbox`; an `.h5` file with a dataset or a group of these for each image; or a `.parquet` file
            with the columns `image_id`, `image_features` and perhaps `boxes`.
        image_ids: of the images of a dataset; names of files are found without their suffix too.

    Raises:
        ValueError: there is nothing of these, or none of the images is in it.
    """
    place = Path(path)
    if place.is_dir():
        reader: _Reader = _Folder(place)
    elif not place.is_file():
        raise ValueError(f"`region_features` is {shown(path, 200)}, and there is no such file or folder.")
    elif place.suffix in (".h5", ".hdf5"):
        reader = _HDF5(place)
    elif place.suffix == ".parquet":
        reader = _Rows.of_file(place)
    else:
        raise ValueError(
            f"`region_features` is {shown(path, 200)}: pass a folder of .npy or .npz files, an .h5 or a .parquet file."
        )
    return RegionFeatures(reader, image_ids, shown(path, 200))


def open_region_features(rows: datasets.Dataset, path: str | os.PathLike | None) -> RegionFeatures | None:
    """
    Open the features of the regions of the images of a dataset.

    Args:
        rows: as `load_caption_dataset` returns them.
        path: as in [`load_region_features`]; by default the column `image_features`.

    Returns:
        The features; `None` without a path and without such a column.

    Raises:
        ValueError: as [`load_region_features`].
    """
    if path is not None:
        return load_region_features(path, rows["image_id"][:])
    if COLUMN not in rows.column_names:
        return None
    return RegionFeatures(_Rows(rows), [str(row) for row in range(len(rows))], f"the column `{COLUMN}`")


def check_reader(feature_size: int | None, path: str | os.PathLike | None, regions: RegionFeatures | None) -> None:
    """
    Check that a captioner reads what there is.

    Args:
        feature_size: of its configuration, `None` if it reads images.
        path: option that names region features.
        regions: what was found.

    Raises:
        ValueError: it reads regions and there are none, or images and the option names regions.
    """
    if feature_size is not None and regions is None:
        raise ValueError("this captioner reads regions of a detector: pass `region_features`.")
    if feature_size is None and path is not None:
        raise ValueError(f"`region_features` is {shown(path, 200)}, and this captioner reads images: leave it out.")


__all__ = ["BOX_NAMES", "COLUMN", "RegionFeatures", "check_reader", "load_region_features", "open_region_features"]
