"""
Find the files of a captioner, and say in one sentence why it does not load: the file, the field, the remedy.

Loading itself checks little. After a failure, the files are questioned in turn: is each there and whole, and which of its
fields, left out, lets the others load?
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from .error_messages_cnnrnn import shown


LFS_POINTER = b"version https://git-lfs"
REMEDY = "download the file again, or save the captioner again"
# A file of 10,000 words has a field for each of them: they are not left out one by one.
MAX_FIELDS = 200
SECONDS = 3.0  # for the search of a field
# Folders of captioners by their short names. The package enters those that come with it, the default first; the same code
# in a repository of the Hub knows none.
PRETRAINED_FOLDERS: dict[str, Path] = {}


def find_pretrained(place: Any) -> Any:
    """
    Find the folder of a captioner that comes with the package by its short name.

    A captioner in a folder of this name wins. The Hub, where names have an owner, is not asked.

    Args:
        place: folder, name on the Hub or short name, as in `from_pretrained`.

    Returns:
        The folder, or `place` as it is where it is no short name.
    """
    folder = PRETRAINED_FOLDERS.get(str(place))
    return place if folder is None or os.path.isfile(os.path.join(place, "config.json")) else folder


class CnnRnnLoadingError(OSError, ValueError):
    """
    Name the file that keeps a captioner from loading.

    Both an `OSError` and a `ValueError`: transformers raises sometimes one, sometimes the other for the same fault.
    """


@dataclass
class Part:
    """
    What loads from some files of a captioner, independently of the other files.

    Attributes:
        files: names of the files that it reads, the most likely culprit first.
        load: loads it from a folder with copies of these files, and raises any exception where it cannot be used.
    """

    files: tuple[str, ...]
    load: Callable[[Path], Any]


@contextmanager
def explain_errors(
    place: str | os.PathLike, parts: tuple[Part, ...], cache_dir=None, revision=None, subfolder="", **kwargs
) -> Iterator[None]:
    """
    Turn what libraries raise while a captioner loads into one sentence.

    Args:
        place: folder or name on the Hub.
        parts: what is loaded from it, to find the file and the field at fault.
        cache_dir, revision, subfolder: as in `from_pretrained`; other arguments have no effect.

    Raises:
        CnnRnnLoadingError: in place of any other exception, but an `OSError` about the Hub and a library that is not installed.
    """
    try:
        yield
    except (CnnRnnLoadingError, ImportError):
        raise
    except Exception as error:
        is_folder = place is not None and os.path.isdir(place)
        if isinstance(error, OSError) and not is_folder:
            if PRETRAINED_FOLDERS and "/" not in str(place):  # a name on the Hub has an owner
                raise CnnRnnLoadingError(
                    f"{shown(place)} is neither a folder here nor a captioner of the package ({', '.join(PRETRAINED_FOLDERS)}): "
                    "pass one of these, or a name on the Hub with its owner, 'owner/name'."
                ) from error
            raise
        subfolder = subfolder or ""
        folder = Path(place, subfolder) if is_folder else _cached(str(place), subfolder, cache_dir, revision)
        fault = _find_fault(folder, parts) if folder else None
        other = f"{shown(place)} does not load ({shown(error, 400)}): check the arguments, and that its files are of one captioner."
        raise CnnRnnLoadingError(fault or other) from error


def _cached(name: str, subfolder: str, cache_dir: str | None, revision: str | None) -> Path | None:
    """Find the folder of a repository's snapshot in the cache."""
    path = f"{subfolder}/config.json" if subfolder else "config.json"
    try:
        config = try_to_load_from_cache(name, path, cache_dir=cache_dir, revision=revision)
    except ValueError:  # not a name of a repository
        return None
    return Path(config).parent if isinstance(config, str) else None


def _find_fault(folder: Path, parts: tuple[Part, ...]) -> str | None:
    """Say which file of a folder is at fault; `None` if each part loads on its own."""
    names = dict.fromkeys(name for part in parts for name in part.files)
    for path in (*(folder / name for name in names), *sorted(folder.glob("*.safetensors*"))):
        fault = file_fault(path) if path.exists() else None
        if fault:
            return f"{shown(path)} {fault}."
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for name in names:
            if (folder / name).exists():
                shutil.copyfile(folder / name, copy / name)
        for part in parts:
            error = _error_of(part, copy)
            if error is not None:
                return _find_field(folder, copy, part, error)
    return None


def file_fault(path: Path) -> str | None:
    """
    Say what is wrong with a file by itself: a pointer of Git-LFS, empty, cut short, not JSON.

    Returns:
        The end of a sentence that begins with the file's name, without a full stop, or `None`.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            return "is a pointer of Git-LFS in place of the file: run `git lfs pull` in its folder"
        if not start:
            return f"is empty: {REMEDY}"
        if path.suffix == ".json" and not isinstance(_read_json(path), dict):
            return f"holds no JSON object: {REMEDY}"
        if path.name.endswith(".index.json"):
            shards = {str(name) for name in _read_json(path)["weight_map"].values()}
            missing = sorted(name for name in shards if not (path.parent / name).is_file())
            return f"lists {missing[0]}, which is not there: {REMEDY}" if missing else None
        return _weights_fault(path) if path.suffix == ".safetensors" else None
    except OSError as error:
        return f"cannot be read ({shown(error)}): check its permissions"
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({shown(error)}): {REMEDY}"
    except (KeyError, TypeError, AttributeError) as error:
        return f"is damaged (`weight_map`: {shown(error)}): {REMEDY}"


def _weights_fault(path: Path) -> str | None:
    try:
        with safe_open(path, framework="numpy"):
            return None
    except Exception as error:  # of a type that safetensors' Rust code makes
        return f"is cut short or damaged ({shown(error)}): {REMEDY}"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _error_of(part: Part, folder: Path) -> Exception | None:
    try:
        part.load(folder)
    except Exception as error:
        return error
    return None


def _find_field(folder: Path, copy: Path, part: Part, error: Exception) -> str:
    """Name the field without which a part loads, or at least its files."""
    deadline = time.monotonic() + SECONDS
    reason = shown(error).replace(str(copy), folder.name)
    for name in part.files:
        if not (copy / name).exists():
            continue
        content = _read_json(copy / name)

        def loads(path: Path = copy / name, content: Any = content) -> bool:
            path.write_text(json.dumps(content), encoding="utf-8")
            return time.monotonic() < deadline and _error_of(part, copy) is None

        found = _field_to_leave_out(content, loads)
        loads()  # writes the file as it was
        if found:
            field, value = found
            where = f"{shown(folder / name)} does not load with `{field}` = {shown(value, 80)}"
            return f"{where} ({reason}): correct it, or {REMEDY}."
    files = ", ".join(name for name in part.files if (copy / name).exists()) or part.files[0]
    return f"{shown(folder)} does not load ({files}: {reason}): {REMEDY}."


def _field_to_leave_out(content: Any, loads: Callable[[], bool]) -> tuple[str, Any] | None:
    """Find the innermost field without which a document loads; the document is left as it was."""
    keys: list = list(content) if isinstance(content, dict) else list(range(len(content)))
    if len(keys) > MAX_FIELDS:
        return None
    inner: list = [key for key in keys if isinstance(content[key], dict | list)]
    # a required field that is at fault leaves nothing that loads: only then look inside all of them
    candidates = [key for key in keys if _loads_without(content, key, loads)] or inner
    for key in candidates:
        found = _field_to_leave_out(content[key], loads) if key in inner else None
        if found:
            return f"{key}.{found[0]}", found[1]
        if candidates is not inner:
            return str(key), content[key]
    return None


def _loads_without(content: Any, key: Any, loads: Callable[[], bool]) -> bool:
    whole = content.copy()
    del content[key]
    try:
        return loads()
    finally:
        content.clear()
        content.update(whole) if isinstance(content, dict) else content.extend(whole)


__all__ = ["PRETRAINED_FOLDERS", "CnnRnnLoadingError", "Part", "explain_errors", "file_fault", "find_pretrained"]
