"""
Open the image files that the rows of a dataset name, and no others.

A dataset is written by somebody else: a row can name any file of this machine, by an absolute path, by `../`, by a symbolic
link or by the address of a private repository. Only files whose resolved path is inside the dataset's own folders are opened.
"""

import base64
import binascii
import glob
import os
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import pyarrow as pa
from datasets import Dataset
from datasets.packaged_modules.imagefolder.imagefolder import IMAGE_EXTENSIONS
from datasets.table import InMemoryTable, embed_table_storage
from huggingface_hub import constants
from PIL import Image

from ..models.image_files_cnnrnn import CAMERA_RAW_SUFFIXES, open_image
from .columns import shown


# pictures that `datasets` does not find in a folder: of phones, and of cameras
OTHER_EXTENSIONS = CAMERA_RAW_SUFFIXES | {".heic", ".heif", ".hif", ".avif", ".jxl"}
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
# a member of an archive may unpack to a thousand times its size
MAX_MEMBER_BYTES = 2**28


class OutsideFilesError(ValueError):
    """A row names a file outside the folders of its dataset."""


class ImageFiles:
    """
    The image files of a dataset.

    Args:
        folder: the folder that names are relative to; `None` for a dataset of the Hub that holds its images.
        others: further folders whose files may be opened.
    """

    def __init__(self, folder: str | None, others: Sequence[str] = ()):
        self.folder = folder
        folders = [*([] if folder is None else [folder]), *others]
        self.folders = tuple(dict.fromkeys(os.path.realpath(path) for path in folders))
        self._resolved: dict[str, str] = {}
        self._found: dict[str, str] = {}

    def contains(self, path: str) -> bool:
        """
        Return whether the file at `path`, with its symbolic links resolved, is inside the folders.

        Hidden files and folders are not: a table in the home folder must not reach the keys in `.ssh`.
        """
        folder, name = os.path.split(path)
        if folder not in self._resolved:  # thousands of files share a folder
            self._resolved[folder] = os.path.realpath(folder)
        real = os.path.join(self._resolved[folder], name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(path)
        inside = [real[len(root) :] for root in self.folders if real.startswith(os.path.join(root, ""))]
        return any(f"{os.sep}." not in below for below in inside)

    def find(self, name: str) -> str | None:
        """
        Find a file by a name, path or URL that may have been written on another machine.

        Returns:
            The file whose path shares the longest ending with `name`, or `None`. Where no file is called exactly so, case,
            quotes, the form of accents, and `.jpg` or `.jpeg` make no difference.

        Raises:
            OutsideFilesError: the only file of this name is outside the folders.
            ValueError: several files fit.
        """
        if self.folder is None:
            return None
        try:
            path = os.path.join(self.folder, name)
            is_outside = False
            if os.path.isfile(path):
                if self.contains(path):
                    return path
                is_outside = True
        except ValueError:  # a null character
            return None
        tail = _parts(urlsplit(unquote(name)).path if "://" in name else name)
        candidates = self._candidates(tail[-1]) if tail else []
        agreement = {path: _common_tail(_parts(path), tail) for path in candidates}
        best = [path for path in candidates if agreement[path] == max(agreement.values())]
        inside = [path for path in best if self.contains(path)]
        if len(inside) > 1:
            first, second = (os.path.relpath(path, self.folder) for path in inside[:2])
            raise ValueError(
                f"{shown(name)} may be {shown(first)} or {shown(second)}: keep one of them in `image_dir`."
            )
        if not inside and (is_outside or best):
            raise OutsideFilesError(f"{shown(name)} is outside {shown(self.folder, 200)}")
        return inside[0] if inside else None

    def _candidates(self, name: str) -> list[str]:
        spellings: tuple[Callable[[str], str], ...] = (str, _spelling, _stem)
        for index, spell in zip(self._indices, spellings, strict=True):
            if found := index.get(spell(name)):
                return found
        return []

    @cached_property
    def _indices(self) -> tuple[dict[str, list[str]], ...]:
        """The files by their names, by their names in any spelling, and by these without their endings."""
        exact, alike, stems = defaultdict(list), defaultdict(list), defaultdict(list)
        for folder, subfolders, names in os.walk(self.folder or ""):
            subfolders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                exact[name].append(path)
                alike[_spelling(name)].append(path)
                if is_image_name(name):  # a name without its ending means the picture, not the text beside it
                    stems[os.path.splitext(_spelling(name))[0]].append(path)
        return dict(exact), dict(alike), dict(stems)

    def resolve(self, cell: Any) -> Any:
        """
        Return the cell of an image column so that it can be opened: with bytes, or with the path of an allowed file.

        Args:
            cell: bytes, a struct of `bytes` and `path`, the name of a file, or an image of PIL.

        Raises:
            FileNotFoundError: the row has no image, or there is no such file.
            OutsideFilesError: the file is outside the folders of the dataset.
            ValueError: the name fits several files, or the archive that holds the file is damaged.
        """
        name = cell
        if isinstance(cell, Mapping):
            if cell.get("bytes"):
                return cell
            name = cell.get("path")
        if name is None or name == "":
            raise FileNotFoundError("the row has no image.")
        if isinstance(name, bytes | Image.Image):
            return cell
        if not isinstance(name, str | int):
            raise ValueError(f"{type(name).__name__} {shown(name)} is no image and no name of one.")
        name = str(name)
        if not isinstance(cell, Mapping):
            return {"bytes": None, "path": self._find_or_raise(name)}
        if name.startswith("zip://") and name.count("::") == 1:
            return {"bytes": self._read_member(name), "path": os.path.basename(name.partition("::")[0])}
        if "://" in name or "::" in name:
            raise OutsideFilesError(f"{shown(name)} is an address, not a file of the dataset")
        path = os.path.join(self.folder or "", name)
        if not self.contains(path):  # the path of another machine, perhaps
            if self.folder is None:
                raise OutsideFilesError(f"{shown(name)} is outside the folder of the dataset")
            path = self._find_or_raise(name)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{shown(name)} does not exist.")
        return cell if path == name else {"bytes": None, "path": path}

    def _find_or_raise(self, name: str) -> str:
        if name not in self._found:  # an image has five rows in many a table
            path = self.find(name)
            if path is None:
                raise FileNotFoundError(f"{shown(name)} is not found in {shown(self.folder, 200)}.")
            self._found[name] = path
        return self._found[name]

    def _read_member(self, address: str) -> bytes:
        member, _, archive = address.removeprefix("zip://").partition("::")
        if not self.contains(archive):
            raise OutsideFilesError(f"{shown(archive)} is outside the folder of the dataset")
        try:
            with zipfile.ZipFile(archive) as file:
                if file.getinfo(member).file_size > MAX_MEMBER_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_MEMBER_BYTES} bytes")
                return file.read(member)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{shown(archive)} does not exist.") from error
        except Exception as error:  # what zipfile raises depends on where the archive is damaged
            raise ValueError(f"{shown(member)} in {shown(archive)} cannot be read: {error}.") from error


def files_of_dataset(
    name: str, data_dir: str | None = None, image_dir: str | None = None, cache_dir: str | None = None
) -> ImageFiles:
    """
    Return the files that the rows of a dataset may name.

    They are in `image_dir` and in the dataset's own folder: the folder itself, the one around a file, or what was downloaded
    of a dataset of the Hub.

    Args:
        name: one of the names that [`~modeling_cnnrnn.data.loading.load_caption_dataset`] takes.
        data_dir, image_dir, cache_dir: as there.
    """
    own = local_folder(name, data_dir)
    others = [] if own is None else [own]
    if not _is_local(name):
        repository = "--".join(["datasets", *name.partition("@")[0].split("/")])
        others.append(os.path.join(constants.HF_HUB_CACHE, repository))
    return ImageFiles(image_dir or own, others)


def local_folder(name: str, data_dir: str | None) -> str | None:
    """Return the folder of the images of a local dataset."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    return str(path.parent) if path.is_file() or glob.has_magic(path.name) else data_dir


def _is_local(name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() or glob.has_magic(path.name) or name == "shapes"


def embed_files(rows: Dataset, files: ImageFiles) -> Dataset:
    """
    Read rows with the bytes of the files that they name, to be written elsewhere.

    A cell of an image, sound or video whose file is missing or outside the folders of the dataset becomes `None`, at any
    depth; so does one of an image whose file is no picture. Nothing is downloaded.
    """
    table = rows.with_format("arrow")[:]
    for index, (name, feature) in enumerate(rows.features.items()):
        if not _has_files(feature):
            continue
        field = table.schema.field(name)
        cells = [_resolve_nested(cell, feature, files) for cell in table[name].to_pylist()]
        table = table.set_column(index, field, pa.chunked_array([pa.array(cells, type=field.type)]))
    return Dataset(InMemoryTable(embed_table_storage(table)))


def _has_files(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_has_files, feature.values()))
    if isinstance(feature, list):
        return any(map(_has_files, feature))
    return hasattr(feature, "embed_storage") or _has_files(getattr(feature, "feature", {}))


def _resolve_nested(cell: Any, feature: Any, files: ImageFiles) -> Any:
    if cell is None or not _has_files(feature):
        return cell
    if hasattr(feature, "embed_storage"):
        try:
            resolved = files.resolve(cell)
        except (OSError, ValueError):
            return None
        return resolved if not isinstance(feature, datasets.Image) or _is_picture(resolved) else None
    if isinstance(feature, dict):
        return {name: _resolve_nested(cell[name], inner, files) for name, inner in feature.items()}
    inner = feature[0] if isinstance(feature, list) else feature.feature
    if isinstance(cell, dict):  # a sequence of structs may be stored as a struct of sequences
        return {
            name: [_resolve_nested(item, inner[name], files) for item in items or []] for name, items in cell.items()
        }
    return [_resolve_nested(item, inner, files) for item in cell]


def _is_picture(cell: Any) -> bool:
    if not isinstance(cell, Mapping) or cell.get("bytes"):
        return True  # these bytes are the dataset's own
    try:
        with open(cell["path"], "rb") as file:
            open_image(file, cell["path"]).close()
    except Exception:  # what PIL raises depends on the format and on where the file is damaged
        return False
    return True


# --------------------------------------------------------------------------------------------------------------------
# Names of images, and images written as text
# --------------------------------------------------------------------------------------------------------------------


def is_image_name(name: str) -> bool:
    """Return whether a file name, path or URL ends like an image file."""
    ending = os.path.splitext(urlsplit(name).path if "://" in name else name)[1].lower().strip("\"' ")
    return ending in IMAGE_EXTENSIONS or ending in OTHER_EXTENSIONS


def is_encoded_image(value: Any) -> bool:
    """Return whether a text is a `data:` URI of an image, or base64 of one."""
    if not isinstance(value, str):
        return False
    if value[:11].lower() == "data:image/":
        return True
    head = re.sub(r"\s", "", value[:100])
    try:
        content = base64.b64decode(head[: len(head) // 4 * 4].replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(content) >= 24 and content.startswith((*SIGNATURES, b"BM"))


def decode_images(rows: Dataset) -> Dataset:
    """Decode the columns that hold images as base64 or as `data:` URIs; a damaged one becomes an empty cell."""
    for name, feature in rows.features.items():
        is_text = getattr(feature, "dtype", "") in ("string", "large_string")
        if is_text and any(map(is_encoded_image, first_values(rows, name))):
            features = datasets.Features({**rows.features, name: datasets.Image()})
            rows = rows.map(_decode_column, batched=True, batch_size=100, features=features, fn_kwargs={"name": name})
    return rows


def first_values(rows: Dataset, name: str, number: int = 20) -> list[Any]:
    """Return the first cells of a column, without empty ones; no image is decoded."""
    column = rows.select_columns([name]).with_format("arrow")[: min(number, len(rows))][name] if len(rows) else []
    return [value for value in (cell.as_py() for cell in column) if value not in (None, "")]


def _decode_column(batch: dict[str, list], name: str) -> dict[str, list]:
    return {name: [_decode_image(value) for value in batch[name]]}


def _decode_image(value: str | None) -> dict[str, Any] | None:
    if not is_encoded_image(value):
        return {"bytes": None, "path": value} if value and len(value) < 1000 else None
    assert value is not None
    if value[:5].lower() == "data:":
        header, _, value = value.partition(",")
        if ";base64" not in header.lower():
            return None
    try:
        text = re.sub(r"\s", "", unquote(value) if "%" in value else value).replace("-", "+").replace("_", "/")
        return {"bytes": base64.b64decode(text + "=" * (-len(text) % 4), validate=True) or None, "path": None}
    except ValueError:
        return None


def _spelling(name: str) -> str:
    """Bring names that people write in different ways into one form."""
    name = unicodedata.normalize("NFC", name.strip().strip("\"'`").strip()).casefold()
    return name.removesuffix(".jpeg") + ".jpg" if name.endswith(".jpeg") else name


def _stem(name: str) -> str:
    """A name without an ending of an image, as ids are; any other name as it is."""
    name = _spelling(name)
    return "" if is_image_name(name) else name


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]


def _common_tail(parts: list[str], others: list[str]) -> int:
    """Count the folders in which two paths agree, from the file upwards; files are alike already."""
    pairs = list(zip(reversed(parts[:-1]), reversed(others[:-1]), strict=False))
    return next((length for length, (a, b) in enumerate(pairs) if a.casefold() != b.casefold()), len(pairs))
