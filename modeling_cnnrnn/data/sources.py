"""Read the splits of a dataset as they are, from its name, and find the files that it names as images."""

import hashlib
import json
import os
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
from datasets import Dataset, DatasetDict
from huggingface_hub.utils import WeakFileLock

from ..files import whole_folder


BUILDERS = {".arrow": "arrow", ".csv": "csv", ".parquet": "parquet", ".tar": "webdataset", ".tsv": "csv", ".txt": "csv"}


def split_names(dataset_name: str) -> list[str]:
    """Split a list of names at its commas, unless it is a path with commas."""
    is_list = "," in dataset_name and not Path(dataset_name).expanduser().exists()
    return [name.strip() for name in dataset_name.split(",")] if is_list else [dataset_name]


def local_folder(name: str, data_dir: str | None) -> str | None:
    """Folder of the images of a local dataset."""
    path = Path(name).expanduser()
    if path.is_file():
        return str(path.parent)
    return str(path) if path.is_dir() else data_dir


def read_splits(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Dataset]:
    """
    Read the splits of a dataset with the columns that they have.

    Args:
        name: one of the names that [`~modeling_cnnrnn.data.loading.load_caption_dataset`] takes.
        config, revision, data_dir, cache_dir: as there, for a dataset of the Hub or a folder.

    Raises:
        ValueError: the dataset cannot be read; the message is one sentence.
    """
    path = Path(name).expanduser()
    if name == "shapes":
        return dict(_draw_shapes(cache_dir))
    if path.suffix in (".json", ".jsonl"):
        return _read_json(path)
    if (path / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(path)))
    if (path / "state.json").is_file():
        return {"train": datasets.load_from_disk(str(path))}
    return _load_dataset(name, path, config, revision, data_dir, cache_dir)


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


def _load_dataset(
    name: str,
    path: Path,
    config: str | None,
    revision: str | None,
    data_dir: str | None,
    cache_dir: str | None,
) -> dict[str, Dataset]:
    """Call `datasets.load_dataset`, and turn its errors into one sentence."""
    options: dict[str, Any] = {"name": config, "data_dir": data_dir, "cache_dir": cache_dir}
    if path.suffix in BUILDERS:
        options |= {"path": BUILDERS[path.suffix], "data_files": {_split_in_name(path.name): str(path)}}
        if path.suffix == ".tsv":
            options["sep"] = "\t"
    elif path.is_dir():
        if not any(path.iterdir()):
            raise ValueError("the folder is empty.")
        options["path"] = str(path.resolve())
    elif re.match(r"[./~]", name) or name.count("/") > 1:
        raise ValueError("there is no such file or folder.")
    else:
        repository, _, its_revision = name.partition("@")
        options |= {"path": repository, "revision": its_revision or revision}
    try:
        return dict(datasets.load_dataset(**options))
    except Exception as error:  # what comes out of `datasets` depends on the format and on where reading stops
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = str(cause or error) or type(error).__name__
        if "scripts are no longer supported" in reason:
            reason += "; the Hub's own conversion may be there, as revision `refs/convert/parquet`."
        elif isinstance(error, datasets.exceptions.DatasetNotFoundError) and "revision" not in reason.lower():
            reason += " There is no folder of this name either."
        raise ValueError(reason) from error


def _read_json(path: Path) -> dict[str, Dataset]:
    """Read COCO's `captions_*.json`, Karpathy's `dataset_*.json`, a list of records, or one record per line."""
    if not path.is_file():
        raise ValueError("there is no such file.")
    content = _parse_json(path.read_text(encoding="utf-8"))
    split = _split_in_name(path.name)
    try:
        if isinstance(content, list) and content and isinstance(content[0], dict):
            return {split: Dataset.from_list(content)}
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            return {split: _from_coco(content)}
        if isinstance(content, dict) and "images" in content:
            return _from_karpathy(content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry of the file lacks {error}.") from error
    found = f"has {', '.join(content) or 'nothing'}" if isinstance(content, dict) else f"is {str(content)[:40]}"
    raise ValueError(f"the file {found}: it must be in COCO's format, a Karpathy split, or a list of records.")


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except json.JSONDecodeError:
            raise ValueError(f"the file is not JSON: {error}.") from error


def _from_coco(content: dict[str, Any]) -> Dataset:
    captions = defaultdict(list)
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    images = content["images"]
    return Dataset.from_list(
        [
            {"file_name": image["file_name"], "captions": captions[image["id"]], "image_id": str(image["id"])}
            for image in images
        ]
    )


def _from_karpathy(content: dict[str, Any]) -> dict[str, Dataset]:
    splits = defaultdict(list)
    for image in content["images"]:
        row = {
            "file_name": os.path.join(image.get("filepath", ""), image["filename"]),
            "captions": [sentence["raw"] for sentence in image["sentences"]],
            "image_id": str(image.get("cocoid", image.get("imgid", image["filename"]))),
            "split": image["split"],
        }
        splits[image["split"]].append(row)
    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _split_in_name(name: str) -> str:
    found = re.search(r"(?<![a-z])(train|restval|val|valid|validation|dev|test)(?![a-z])", name.lower())
    return found[0] if found else "train"


class ImageFiles:
    """Find files below a folder by names, paths or URLs that were written on another machine."""

    def __init__(self, folder: str):
        self.folder = folder

    def find(self, name: str) -> str | None:
        """Return the file whose path shares the longest ending with `name`, or `None`."""
        if os.path.isfile(path := os.path.join(self.folder, name)):
            return path
        tail = _parts(urlsplit(unquote(name)).path if "://" in name else name)
        candidates = self._by_name.get(tail[-1], []) if tail else []
        agreement = {path: _common_tail(_parts(path), tail) for path in candidates}
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


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]


def _common_tail(parts: list[str], others: list[str]) -> int:
    pairs = zip(reversed(parts), reversed(others), strict=False)
    return next((length for length, (a, b) in enumerate(pairs) if a != b), min(len(parts), len(others)))
