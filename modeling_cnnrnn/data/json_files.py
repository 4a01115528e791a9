"""Read captions from JSON: COCO's format, a Karpathy split, AI Challenger, records, lines, or captions by file name."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from .columns import listed, shown
from .image_files import is_image_name
from .reporting import left_out
from .text_files import read_text


def read_json(path: Path, split: str) -> dict[str, Dataset]:
    """
    Read a JSON file of captions.

    Args:
        split: the split of a file that does not tell.

    Raises:
        ValueError: the file is not JSON, or in none of the formats; the message names the entry.
    """
    content = _parse(read_text(path), path)
    if isinstance(content, dict) and not {"images", "annotations"} <= content.keys():
        if "images" in content and _is_karpathy(content["images"]):
            return _from_karpathy(_entries(content["images"], "images"))
        if captions := _by_file_name(content):
            return {split: captions}
        lists = [name for name, value in content.items() if isinstance(value, list) and value and _are_objects(value)]
        content = content[lists[0]] if len(lists) == 1 else content
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return {split: _from_coco(content, path)}
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return {split: from_records(_entries(content, "the file"))}
    if isinstance(content, dict):
        found = f"has {listed([*content][:10]).replace('`', '') or 'nothing'}"
    else:
        found = f"is {str(content)[:40]}"
    raise ValueError(f"the file {found}: it must be in COCO's format, a Karpathy split, or a list of records.")


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the file is not JSON: it is nested too deeply.") from error
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        records: list[Any] = []
        for number, line in lines:
            try:
                records.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as broken:
                if records and isinstance(records[0], dict):
                    raise ValueError(f"line {number} of {shown(path.name)} is not JSON: {broken}.") from broken
                raise ValueError(f"the file is not JSON: {error}.") from error
        return records


def _entries(values: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        raise ValueError(f"`{name}` is {type(values).__name__}, not a list.")
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(f"entry {number} of {name} is {type(value).__name__} {shown(value)}, not an object.")
    return values


def _are_objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _described(number: int, entry: Mapping[str, Any], name: str) -> str:
    """Name an entry by its number and its id."""
    key = next((key for key in ("id", "image_id", "cocoid", "imgid") if entry.get(key) is not None), None)
    return f"entry {number} of {name}" + (f" ({key} {shown(entry[key])})" if key else "")


# --------------------------------------------------------------------------------------------------------------------
# Formats
# --------------------------------------------------------------------------------------------------------------------


def _from_coco(content: Mapping[str, Any], path: Path) -> Dataset:
    images, annotations = (_entries(content[name], name) for name in ("images", "annotations"))
    for number, image in enumerate(images, 1):
        if missing := [name for name in ("id", "file_name") if image.get(name) is None]:
            raise ValueError(f"{_described(number, image, 'images')} lacks '{missing[0]}'.")
    if annotations and not any("caption" in annotation for annotation in annotations):
        raise ValueError(f"no entry of annotations has 'caption': {shown(path.name)} is another of COCO's files.")
    captions: dict[str, list[str]] = defaultdict(list)
    for number, annotation in enumerate(annotations, 1):
        if annotation.get("image_id") is None:
            raise ValueError(f"{_described(number, annotation, 'annotations')} lacks 'image_id'.")
        captions[_key(annotation["image_id"])] += _texts(annotation.get("caption"), number)
    keys = {_key(image["id"]) for image in images}
    if captions and not keys & captions.keys():  # "000000391895" in one of the lists
        captions = defaultdict(list, {key.lstrip("0"): texts for key, texts in captions.items()})
        keys = {key.lstrip("0") for key in keys}
    if strangers := [key for key in captions if key not in keys]:
        left_out(path.name, "captions of images that it does not list", strangers)
    rows = []
    for image in images:
        key = _key(image["id"])
        texts = captions[key] if key in captions else captions[key.lstrip("0")]
        rows.append({"file_name": str(image["file_name"]), "captions": texts, "image_id": str(image["id"])})
    return Dataset.from_list(rows)


def _key(image_id: Any) -> str:
    """Make ids equal that are a number here and a string there."""
    if isinstance(image_id, float) and image_id.is_integer():
        image_id = int(image_id)
    return str(image_id).strip()


def _texts(value: Any, number: int) -> list[str]:
    if value is None:
        return [""]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item, number)]
    if isinstance(value, dict) and isinstance(text := value.get("raw", value.get("caption")), str | list):
        return _texts(text, number)
    raise ValueError(f"the caption of entry {number} is {type(value).__name__} {shown(value)}, no text.")


def _is_karpathy(images: Any) -> bool:
    return isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images)


def _from_karpathy(images: Sequence[Mapping[str, Any]]) -> dict[str, Dataset]:
    splits: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, image in enumerate(images, 1):
        if missing := [name for name in ("filename", "sentences", "split") if image.get(name) is None]:
            raise ValueError(f"{_described(number, image, 'images')} lacks '{missing[0]}'.")
        sentences = image["sentences"]
        try:
            captions = [_sentence(sentence) for sentence in sentences]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{_described(number, image, 'images')} has sentences without 'raw'.") from error
        row: dict[str, Any] = {
            "file_name": os.path.join(str(image.get("filepath") or ""), str(image["filename"])),
            "captions": captions,
            "image_id": str(image.get("cocoid", image.get("imgid", image["filename"]))),
            "split": str(image["split"]),
        }
        splits[row["split"]].append(row)
    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _sentence(sentence: Any) -> str:
    if isinstance(sentence, str):
        return sentence
    return str(sentence["raw"]) if "raw" in sentence else " ".join(sentence["tokens"])


def _by_file_name(content: Mapping[str, Any]) -> Dataset | None:
    """Read `{"0000.jpg": ["A dog.", "A cat."], ...}`."""
    if not content or not all(is_image_name(name) for name in content):
        return None
    captions = [_texts(value, number) for number, value in enumerate(content.values(), 1)]
    return Dataset.from_dict({"file_name": [*content], "captions": captions})


# --------------------------------------------------------------------------------------------------------------------
# Records
# --------------------------------------------------------------------------------------------------------------------


def from_records(records: Sequence[Mapping[str, Any]]) -> Dataset:
    """
    Make a dataset from records whose values are now a text and now a list, or now a number and now a text.

    Raises:
        ValueError: a field is now an object and now something else; the message names the entry.
    """
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: _alike([record.get(name) for record in records], name) for name in names}
    try:
        return Dataset.from_dict(columns)
    except Exception as error:  # what Arrow raises depends on where in the values it gives up
        raise ValueError(f"the records cannot be made a table: {shown(error, 200)}.") from error


def _alike(values: Sequence[Any], name: str) -> Sequence[Any]:
    """Give all values one type: lists if some are lists, texts if some are texts."""
    there = [value for value in values if value is not None]
    kinds = {type(value) for value in there}
    if list in kinds:
        lists = [value if isinstance(value, list) else [] if value is None else [value] for value in values]
        items = iter(_alike([item for value in lists for item in value], name))
        return [[next(items) for _ in value] for value in lists]
    if dict in kinds:
        if len(kinds) > 1:
            number, odd = next(
                (n, v) for n, v in enumerate(values, 1) if v is not None and type(v) is not type(there[0])
            )
            raise ValueError(
                f"entry {number}: `{name}` is {type(odd).__name__} {shown(odd)}, and in others {type(there[0]).__name__}."
            )
        keys = [*dict.fromkeys(str(key) for value in there for key in value)]
        fields = {key: _alike([value and value.get(key) for value in values], f"{name}.{key}") for key in keys}
        return [
            None if value is None else {key: fields[key][index] for key in keys} for index, value in enumerate(values)
        ]
    if len(kinds) > 1 and kinds != {int, float}:
        return [value if value is None or isinstance(value, str) else str(value) for value in values]
    if kinds == {int} and any(abs(value) >= 2**63 for value in there):
        return [value if value is None else str(value) for value in values]
    return values
