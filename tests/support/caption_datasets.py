"""
Captioning datasets a few pictures large, as files, and what must come out of them.

A picture's redness is its number, which shows that captions stay with their picture.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from PIL import Image


Summary = dict[str, list[list]]  # split -> [image id, captions, number of the picture] of each row
NUM_IMAGES = {"train": 3, "validation": 2, "test": 1}


def picture(number: int, format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (20 * number, 0, 0)).save(file, format, quality=95)
    return file.getvalue()


def number_of(image: Image.Image) -> int:
    return round(image.getpixel((8, 6))[0] / 20)


def captions(number: int, count: int = 2) -> list[str]:
    return [f"Sentence {index} of picture {number}." for index in range(count)]


def numbers(split: str) -> range:
    """The pictures of a split."""
    start = {"train": 0, "validation": 3, "test": 5, "restval": 6}[split]
    return range(start, start + NUM_IMAGES.get(split, 1))


def expected(splits=("train", "validation", "test"), image_id="{number}", count=2) -> Summary:
    return {
        split: [
            [image_id.format(number=number, row=row, name=f"{number:04d}"), captions(number, count), number]
            for row, number in enumerate(numbers(split))
        ]
        for split in splits
    }


def summarize(splits: Mapping) -> Summary:
    return {
        split: [[row["image_id"], row["captions"], number_of(row["image"])] for row in rows]
        for split, rows in splits.items()
    }


def parquet(rows: list[dict]) -> bytes:
    """As `push_to_hub` writes it: `image` is a feature of its own."""
    file = io.BytesIO()
    features = datasets.Dataset.from_list(rows).features
    if "image" in features:
        features["image"] = datasets.Image()
    if "answer" in features:  # without a single answer its type can't be seen
        features["answer"] = datasets.List(datasets.Value("string"))
    pq.write_table(datasets.Dataset.from_list(rows, features=features).data.table, file)
    return file.getvalue()


def embedded(number: int, **columns) -> dict:
    return {"image": {"bytes": picture(number), "path": f"{number:04d}.jpg"}, **columns}


def shards(row, splits=("train", "validation", "test"), names: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Parquet files of a repository; `row(number)` gives the row, or the rows, of a picture."""
    files = {}
    for split in splits:
        rows = []
        for number in numbers(split):
            made = row(number)
            rows += made if isinstance(made, list) else [made]
        files[f"data/{(names or {}).get(split, split)}-00000-of-00001.parquet"] = parquet(rows)
    return files


def jsonl(rows: Iterable[dict]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def tar(samples: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def imagefolder(kind: str) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    for split in NUM_IMAGES:
        files |= {f"{split}/{n:04d}.jpg": picture(n) for n in numbers(split)}
        names = [f"{n:04d}.jpg" for n in numbers(split)]
        if kind == "csv":
            lines = [f"{n:04d}.jpg,{captions(n)[0]},{captions(n)[1]}" for n in numbers(split)]
            files[f"{split}/metadata.csv"] = "\n".join(["file_name,caption_0,caption_1", *lines])
        else:
            rows = [{"file_name": name, "captions": captions(n)} for name, n in zip(names, numbers(split), strict=True)]
            files[f"{split}/metadata.{kind}"] = jsonl(rows) if kind == "jsonl" else parquet(rows)
    return files


def karpathy_json() -> str:
    names = {"train": "train", "restval": "restval", "val": "validation", "test": "test"}
    images = [
        {
            "filepath": "images",
            "filename": f"{n:04d}.jpg",
            "cocoid": n,
            "imgid": 100 + n,
            "split": name,
            "sentences": [{"raw": text, "tokens": text.split(), "sentid": 1} for text in captions(n)],
        }
        for name, split in names.items()
        for n in numbers(split)
    ]
    return json.dumps({"images": images, "dataset": "coco"})


IMAGES = {f"images/{number:04d}.jpg": picture(number) for number in range(7)}
