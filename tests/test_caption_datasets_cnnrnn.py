"""
Captioning datasets in the layouts that are really out there, each a few pictures large.

Those of the Hub are loaded by the real client from a local Hub, all in one process since the client reads the address
when it is imported. A picture's redness is its number, which shows that captions stay with their picture.
"""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_hub import LocalHub
from PIL import Image

from modeling_cnnrnn.data.columns import CaptionColumns
from modeling_cnnrnn.data.loading import (
    check_images,
    decode_image,
    group_by_image,
    load_caption_dataset,
    references_by_image,
    split_dataset,
)


Summary = dict[str, list[list]]  # split -> [image id, captions, number of the picture] of each row
NUM_IMAGES = {"train": 3, "validation": 2, "test": 1}


# ---- pictures and rows ----


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
        split: [[row["image_id"], row["captions"], number_of(decode_image(row))] for row in rows]
        for split, rows in splits.items()
    }


def grouped(summary: Summary) -> Summary:
    """A stream gives rows of one caption one by one."""
    splits: Summary = {}
    for split, rows in summary.items():
        images: dict[str, list] = {}
        for image_id, texts, number in rows:
            images.setdefault(image_id, [image_id, [], number])[1].extend(texts)
        splits[split] = list(images.values())
    return splits


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


# ---- the layouts of the Hub ----


def hub_layouts() -> dict[str, dict]:
    """Repository -> its files, options of `load_caption_dataset` and what must come out."""
    return {
        "yerevann/coco-karpathy": {
            "files": shards(
                lambda n: {
                    "filepath": "val2014",
                    "filename": f"COCO_val2014_{n:04d}.jpg",
                    "sentids": [n, n + 1],
                    "imgid": 100 + n,
                    "sentences": captions(n),
                    "cocoid": n,
                    "url": f"http://images.cocodataset.org/val2014/COCO_val2014_{n:04d}.jpg",
                },
                ("train", "validation", "test", "restval"),
            ),
            "options": {"image_dir": "coco"},
            "expected": {
                **expected(),
                "train": expected(["train"])["train"] + expected(["restval"])["restval"],
            },
        },
        "Multimodal-Fatima/COCO_captions_train": {
            "files": shards(lambda n: embedded(n, sentences_raw=captions(n), cocoid=n, id=50 + n), ["train"]),
            "expected": expected(["train"]),
        },
        "Multimodal-Fatima/COCO_captions_validation": {
            "files": shards(lambda n: embedded(n, sentences_raw=captions(n), cocoid=n, id=50 + n), ["validation"]),
            "name": "Multimodal-Fatima/COCO_captions_train,Multimodal-Fatima/COCO_captions_validation",
            "expected": expected(["train", "validation"]),
        },
        "jxie/coco_captions": {
            "files": shards(lambda n: [embedded(n, filename="x.jpg", cocoid=n, caption=c) for c in captions(n)]),
            "expected": expected(),
        },
        "AKCIT/coco2017-captioning": {
            "files": shards(
                lambda n: embedded(n, image_id=n, captions=captions(n), text=" ".join(captions(n))),
                ["train", "validation"],
            ),
            "expected": expected(["train", "validation"]),
        },
        "jp1924/KoreanImageCaptioningDataset": {
            "files": shards(lambda n: embedded(n, ko_sentences_raw=["그림"], en_sentences_raw=captions(n), cocoid=n)),
            "expected": expected(),
        },
        "bitmind/MS-COCO": {
            "files": shards(
                lambda n: [
                    embedded(n, filepath="val2014", split="train", cocoid=n, sentences={"raw": c, "tokens": c.split()})
                    for c in captions(n)
                ]
            ),
            "expected": expected(),
        },
        "bitmind/MS-COCO-unique": {
            "files": shards(lambda n: embedded(n, sentences={"raw": captions(n)[0], "tokens": ["a"]}, cocoid=n)),
            "expected": expected(count=1),
        },
        "lmms-lab/COCO-Caption2017": {
            "files": shards(
                lambda n: embedded(
                    n, question="Describe it.", answer=captions(n) if n < 5 else None, id=n, file_name=f"{n}.jpg"
                ),
                ["validation", "test"],
                {"validation": "val"},
            ),
            "expected": expected(["validation"]),
            "streamed": {**expected(["validation"]), "test": []},
        },
        "phiyodr/coco2017": {
            "files": shards(
                lambda n: {
                    "file_name": f"COCO_val2014_{n:04d}.jpg",
                    "coco_url": f"http://images.cocodataset.org/val2014/COCO_val2014_{n:04d}.jpg",
                    "image_id": n,
                    "captions": captions(n),
                },
                ["train", "validation"],
            ),
            "options": {"image_dir": "coco", "image_column": "coco_url"},
            "expected": expected(["train", "validation"]),
        },
        "gokuls/coco_dataset": {
            "files": shards(
                lambda n: [
                    {"image_id": n, "caption_id": 9, "caption": c, "image_path": f"/home/a/COCO_val2014_{n:04d}.jpg"}
                    for c in captions(n)
                ]
            ),
            "options": {"image_dir": "coco"},
            "expected": expected(),
        },
        "jxie/flickr8k": {
            "files": shards(
                lambda n: embedded(n, **{f"caption_{index}": text for index, text in enumerate(captions(n, 5))})
            ),
            "expected": expected(image_id="{row}", count=5),
        },
        "tsystems/flickr8k": {
            "files": shards(lambda n: embedded(n, image_filename=f"{n:04d}.jpg", captions=captions(n)), ["train"]),
            "expected": expected(["train"], "{name}.jpg"),
        },
        "Naveengo/flickr8k": {
            "files": shards(lambda n: embedded(n, text=captions(n)[0]), ["train"]),
            "expected": expected(["train"], "{row}", count=1),
        },
        "clip-benchmark/wds_flickr8k": {
            "files": {
                f"{split}/0.tar": tar(
                    {
                        f"s{n:04d}.{kind}": content
                        for n in numbers(split)
                        for kind, content in (("jpg", picture(n)), ("txt", "\n".join(captions(n)).encode()))
                    }
                )
                for split in ("train", "test")
            },
            "expected": expected(["train", "test"], "s{name}"),
        },
        "nlphuji/flickr30k": {
            "files": {"flickr30k.py": b"import datasets", "README.md": b"---\nlicense: other\n---"},
            "converted": {
                "TEST/test/0000.parquet": parquet(
                    [
                        embedded(n, caption=captions(n), sentids=["1"], split=split, img_id=str(n))
                        for split, name in (("train", "train"), ("val", "validation"), ("test", "test"))
                        for n in numbers(name)
                    ]
                )
            },
            "options": {"dataset_revision": "refs/convert/parquet", "split_column": "split"},
            "expected": expected(),
        },
        "umaru97/flickr30k_train_val_test": {
            "files": shards(
                lambda n: embedded(n, caption=captions(n), sentids=["1"], img_id=str(n)), names={"validation": "val"}
            ),
            "expected": expected(),
        },
        "AnyModal/flickr30k": {
            "files": shards(
                lambda n: embedded(n, original_alt_text=captions(n), alt_text=captions(n), sentids=["1"], img_id=str(n))
            ),
            "expected": expected(),
        },
        "lmms-lab/flickr30k": {
            "files": shards(lambda n: embedded(n, caption=captions(n), sentids=["1"], img_id=str(n)), ["test"]),
            "expected": expected(["test"]),
        },
    }


# what must be refused, and a part of the sentence that says why
HUB_ERRORS = {
    "missing": ({"dataset_name": "me/missing"}, "doesn't exist on the Hub"),
    "no revision": ({"dataset_name": "jxie/flickr8k@nowhere"}, "nowhere"),
    "script": ({"dataset_name": "nlphuji/flickr30k"}, "refs/convert/parquet"),
    "no image_dir": ({"dataset_name": "phiyodr/coco2017"}, "pass their folder as `image_dir`"),
    "no captions": ({"dataset_name": "me/labels"}, "no column of captions among `image`, `label`"),
    "wrong column": ({"dataset_name": "jxie/flickr8k", "image_column": "img"}, "`image_column` is `img`, but"),
}


def load_all(jobs: Path) -> None:
    """In a process of its own: run the jobs and write what came out beside them."""
    results = {}
    for job, options in json.loads(jobs.read_text()).items():
        try:
            results[job] = {"rows": summarize(load_caption_dataset(**options))}
        except ValueError as error:
            results[job] = {"error": str(error)}
    jobs.with_suffix(".out").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory) -> dict[str, dict]:
    """What every job gave that was loaded from the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    names = [f"val2014/COCO_val2014_{number:04d}.jpg" for number in range(7)]
    image_dir = write(folder / "coco", {name: picture(number) for number, name in enumerate(names)})
    jobs = {}
    with LocalHub(folder / "repositories") as hub:
        for repository, layout in hub_layouts().items():
            hub.create_repository("dataset", repository, layout["files"])
            if "converted" in layout:
                hub.create_repository("dataset", repository, layout["converted"], branch="refs/convert/parquet")
            options = {"dataset_name": layout.get("name", repository), **layout.get("options", {})}
            if "image_dir" in options:
                options["image_dir"] = str(image_dir)
            jobs[repository] = options
            jobs[f"{repository} streamed"] = {**options, "streaming": True}
        hub.create_repository("dataset", "me/labels", shards(lambda n: embedded(n, label=n), ["train"]))
        jobs |= {f"error: {name}": options for name, (options, _) in HUB_ERRORS.items()}
        path = folder / "jobs.json"
        path.write_text(json.dumps(jobs))
        root = Path(__file__).parents[1]
        environment = {**hub.environment(folder / "home"), "PYTHONPATH": str(root)}
        run = subprocess.run([sys.executable, __file__, path], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    return json.loads(path.with_suffix(".out").read_text())


@pytest.mark.parametrize("repository", list(hub_layouts()))
def test_layout_of_the_hub_is_understood(from_hub, repository):
    assert from_hub[repository] == {"rows": hub_layouts()[repository]["expected"]}


@pytest.mark.parametrize("repository", list(hub_layouts()))
def test_layout_of_the_hub_is_understood_while_streaming(from_hub, repository):
    layout = hub_layouts()[repository]
    result = from_hub[f"{repository} streamed"]
    assert "error" not in result, result
    assert grouped(result["rows"]) == layout.get("streamed", layout["expected"])


@pytest.mark.parametrize("name", HUB_ERRORS)
def test_error_with_the_hub_is_one_sentence(from_hub, name):
    error = from_hub[f"error: {name}"]["error"]
    assert HUB_ERRORS[name][1] in error
    assert "\n" not in error


# ---- folders and files of one's own ----


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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
            is_json = kind == "jsonl"
            files[f"{split}/metadata.{kind}"] = "\n".join(map(json.dumps, rows)) if is_json else parquet(rows)
    return files


def webdataset(kind: str) -> dict[str, bytes]:
    def text(n: int) -> bytes:
        return "\n".join(captions(n)).encode() if kind == "txt" else json.dumps({"captions": captions(n)}).encode()

    return {
        f"{split}-000000.tar": tar(
            {f"s{n:04d}.{k}": c for n in numbers(split) for k, c in (("jpg", picture(n)), (kind, text(n)))}
        )
        for split in NUM_IMAGES
    }


def coco_json(split: str) -> str:
    return json.dumps(
        {
            "info": {},
            "images": [{"id": n, "file_name": f"{n:04d}.jpg"} for n in numbers(split)],
            "annotations": [
                {"id": 10 * n + i, "image_id": n, "caption": text}
                for n in numbers(split)
                for i, text in enumerate(captions(n))
            ],
        }
    )


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
LONG = [(n, text) for n in numbers("train") for text in captions(n)]
LOCAL_LAYOUTS = {
    "imagefolder jsonl": (imagefolder("jsonl"), ".", expected(image_id="{name}.jpg")),
    "imagefolder csv": (imagefolder("csv"), ".", expected(image_id="{name}.jpg")),
    "imagefolder parquet": (imagefolder("parquet"), ".", expected(image_id="{name}.jpg")),
    "webdataset txt": (webdataset("txt"), ".", expected(image_id="s{name}")),
    "webdataset json": (webdataset("json"), ".", expected(image_id="s{name}")),
    "webdataset by pattern": (webdataset("json"), "train-*.tar", expected(["train"], "s{name}")),
    "parquet folder": (shards(lambda n: embedded(n, image_id=str(n), captions=captions(n))), "data", expected()),
    "coco json": (
        {**IMAGES, "captions_train2017.json": coco_json("train"), "captions_val2017.json": coco_json("validation")},
        "captions_train2017.json,captions_val2017.json",
        expected(["train", "validation"]),
    ),
    "karpathy json": (
        {**IMAGES, "dataset_coco.json": karpathy_json()},
        "dataset_coco.json",
        {**expected(), "train": expected(["train"])["train"] + expected(["restval"])["restval"]},
    ),
    "records": (
        {**IMAGES, "train.json": json.dumps([{"image": f"images/{n:04d}.jpg", "caption": text} for n, text in LONG])},
        "train.json",
        expected(["train"], "images/{name}.jpg"),
    ),
    "captions.txt": (
        {**IMAGES, "captions.txt": "\n".join(["image,caption", *(f"{n:04d}.jpg,{text}" for n, text in LONG)])},
        "captions.txt",
        expected(["train"], "{name}.jpg"),
    ),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("layout", LOCAL_LAYOUTS)
def test_local_layout_is_understood(tmp_path, layout, streaming):
    files, name, rows = LOCAL_LAYOUTS[layout]
    folder = write(tmp_path / "data", files)
    name = ",".join(str(folder / part) for part in name.split(","))
    found = summarize(load_caption_dataset(name, streaming=streaming))
    assert (grouped(found) if streaming else found) == rows


if __name__ == "__main__":
    load_all(Path(sys.argv[1]))
