"""
Captioning datasets in the layouts that are really out there, each a few pictures large.

Those of the Hub are loaded by the real client from a local Hub, all in one process since the client reads the address
when it is imported. A picture's redness is its number, which shows that captions stay with their picture.
"""

import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.local_hub import LocalHub
from support.paths import ROOT

from modeling_cnnrnn.data.columns import CaptionColumns
from modeling_cnnrnn.data.loading import (
    FEATURES,
    check_images,
    decode_image,
    group_by_image,
    load_caption_dataset,
    references_by_image,
    split_dataset,
)
from modeling_cnnrnn.data.shapes import drawing
from modeling_cnnrnn.data.shapes.drawing import build_shapes


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


# ---- the layouts of the Hub ----


@cache
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
        "me/imagefolder": {
            "files": {
                f"{split}/{name}": content
                for split in ("train", "test")
                for name, content in (
                    *((f"{n:04d}.jpg", picture(n)) for n in numbers(split)),
                    (
                        "metadata.jsonl",
                        jsonl({"file_name": f"{n:04d}.jpg", "text": captions(n)} for n in numbers(split)),
                    ),
                )
            },
            "expected": expected(["train", "test"], "{name}.jpg"),
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
    "script": ({"dataset_name": "HuggingFaceM4/COCO"}, "refs/convert/parquet"),
    "no image_dir": ({"dataset_name": "phiyodr/coco2017"}, "pass their folder as `image_dir`"),
    "no captions": ({"dataset_name": "me/labels"}, "no column of captions among `image`, `label`"),
    "wrong column": ({"dataset_name": "jxie/flickr8k", "image_column": "img"}, "`image_column` is `img`, but"),
}


def load_all(jobs: Path) -> None:
    """In a process of its own: run the jobs and write what came out beside them."""
    datasets.disable_progress_bars()
    results = {}
    for job, options in json.loads(jobs.read_text()).items():
        try:
            splits = load_caption_dataset(**options)
        except ValueError as error:
            results[job] = {"error": str(error)}
            continue
        results[job] = {"rows": summarize(splits)}
        if job == "jxie/flickr8k streamed":
            results[job]["contents"] = [row["image"]["bytes"].hex() for row in splits["train"]]
    load_caption_dataset("jxie/coco_captions").push_to_hub("me/pushed")
    results["pushed"] = {"rows": summarize(load_caption_dataset("me/pushed"))}
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
        hub.create_repository("dataset", "HuggingFaceM4/COCO", {"COCO.py": b"import datasets"})
        hub.create_repository("dataset", "me/labels", shards(lambda n: embedded(n, label=n), ["train"]))
        jobs |= {f"error: {name}": options for name, (options, _) in HUB_ERRORS.items()}
        path = folder / "jobs.json"
        path.write_text(json.dumps(jobs))
        environment = {**hub.environment(folder / "home"), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
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


def test_loaded_dataset_can_be_pushed(from_hub):
    assert from_hub["pushed"] == from_hub["jxie/coco_captions"]


def test_images_are_not_encoded_anew_while_streaming(from_hub):
    contents = from_hub["jxie/flickr8k streamed"]["contents"]
    assert contents == [picture(number).hex() for number in numbers("train")]


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
            files[f"{split}/metadata.{kind}"] = jsonl(rows) if kind == "jsonl" else parquet(rows)
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
    "lines of json": (
        {**IMAGES, "train.jsonl": jsonl({"img": f"/elsewhere/{n:04d}.jpg", "captions": captions(n)} for n in range(3))},
        "train.jsonl",
        expected(["train"], "/elsewhere/{name}.jpg"),
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


@pytest.fixture
def few_shapes(monkeypatch):
    """`shapes` with two pictures to learn from; returns how often they were drawn."""
    drawn = []

    def draw(num_proc):
        drawn.append(num_proc)
        return build_shapes(num_train=2, num_validation=1, num_test=1)

    monkeypatch.setattr(drawing, "build_shapes", draw)
    return drawn


def test_shapes_keep_what_they_show(few_shapes, tmp_path):
    splits = load_caption_dataset("shapes", cache_dir=str(tmp_path))
    assert splits["train"].column_names == ["image", "captions", "image_id", "scene"]
    streamed = load_caption_dataset("shapes", streaming=True, cache_dir=str(tmp_path))
    assert [row["scene"] for row in streamed["train"]] == splits["train"]["scene"][:]


def test_shapes_are_drawn_once(few_shapes, tmp_path):
    for _ in range(2):
        load_caption_dataset("shapes", cache_dir=str(tmp_path))
    assert len(few_shapes) == 1
    assert [path.name.startswith("shapes-") for path in tmp_path.iterdir() if path.is_dir()] == [True]


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_are_as_good_as_strings(tmp_path, streaming):
    folder = write(tmp_path / "data", {**IMAGES, "dataset_coco.json": karpathy_json()})
    paths = {
        "dataset_name": folder / "dataset_coco.json",
        "image_dir": folder,
        "cache_dir": tmp_path / "cache",
    }
    strings = {name: str(path) for name, path in paths.items()}
    from_paths, from_strings = (load_caption_dataset(**names, streaming=streaming) for names in (paths, strings))
    assert summarize(from_paths) == summarize(from_strings)


def test_saved_dataset_is_loaded_again(tmp_path):
    splits = load_caption_dataset(str(write(tmp_path / "data", imagefolder("jsonl"))))
    splits.save_to_disk(tmp_path / "saved")
    assert summarize(load_caption_dataset(str(tmp_path / "saved"))) == summarize(splits)


def test_images_are_not_decoded_while_loading(tmp_path, monkeypatch):
    long = shards(lambda n: [embedded(n, image_id=n, caption=text) for text in captions(n)])
    folder = write(tmp_path / "data", long)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kwargs: pytest.fail("decoded"))
    rows = load_caption_dataset(str(folder))["train"]
    assert references_by_image(rows) == {str(n): captions(n) for n in numbers("train")}


def test_columns_are_exactly_image_captions_and_image_id(tmp_path):
    rows = load_caption_dataset(str(write(tmp_path / "data", imagefolder("csv"))))["train"]
    features = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    assert rows.features == {**features, "image_id": datasets.Value("string")}


def test_stream_can_be_sent_to_workers(tmp_path):
    folder = write(tmp_path / "data", {**IMAGES, "dataset_coco.json": karpathy_json()})
    stream = load_caption_dataset(str(folder / "dataset_coco.json"), streaming=True)
    assert summarize(pickle.loads(pickle.dumps(stream))) == summarize(stream)


def test_split_column_is_guessed_if_one_split_holds_several(tmp_path):
    names = {0: "train", 1: "restval", 2: "val", 3: "test"}
    files = {"train.parquet": parquet([embedded(n, caption=captions(n), split=names[n]) for n in names])}
    splits = load_caption_dataset(str(write(tmp_path / "data", files)))
    found = {split: [number for *_, number in rows] for split, rows in summarize(splits).items()}
    assert found == {"train": [0, 1], "validation": [2], "test": [3]}


# ---- what is left out, and what is refused ----


def records(folder: Path, rows: list[dict]) -> str:
    """A dataset that names its images."""
    return str(write(folder, {**IMAGES, "train.json": json.dumps(rows)}) / "train.json")


def test_captions_are_cleaned_and_empty_ones_left_out(tmp_path, caplog):
    rows = [
        {"file_name": "0000.jpg", "captions": ["A dog\nruns. ", "  ", "\r\n"]},
        {"file_name": "0001.jpg", "captions": [" "]},
        {"file_name": "0002.jpg", "captions": []},
    ]
    splits = load_caption_dataset(records(tmp_path, rows))
    assert splits["train"]["captions"][:] == [["A dog runs."]]
    assert "Left out of train: empty captions (3)." in caplog.messages
    assert "Left out of train: images without a caption (2): `0001.jpg`, `0002.jpg`." in caplog.messages


def test_images_not_found_are_named(tmp_path, caplog):
    rows = [{"file_name": name, "caption": "A dog."} for name in ("0000.jpg", "9999.jpg", "9998.jpg")]
    assert len(load_caption_dataset(records(tmp_path, rows))["train"]) == 1
    assert any("not found" in message and "(2): `9999.jpg`, `9998.jpg`" in message for message in caplog.messages)


def test_columns_are_logged_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO", "modeling_cnnrnn")
    load_caption_dataset(records(tmp_path, [{"file_name": "0000.jpg", "caption": "A dog."}]))
    (message,) = caplog.messages
    assert "image from the file in `file_name`, captions from `caption`, image_id from `file_name`" in message
    assert "train (1 images)" in message


@pytest.mark.parametrize(
    ("files", "name", "options", "reason"),
    [
        ({}, "./nowhere", {}, "there is no such file or folder"),
        ({}, "nowhere.json", {}, "there is no such file"),
        ({}, ".", {}, "the folder is empty"),
        ({"notes.md": "nothing"}, ".", {}, "cannot be used"),
        ({"a.json": "{"}, "a.json", {}, "the file is not JSON"),
        ({"a.json": '{"info": 1}'}, "a.json", {}, "has info: it must be"),
        ({"a.json": '{"images": [{"id": 1}], "annotations": []}'}, "a.json", {}, "lacks 'file_name'"),
        ({"train.parquet": parquet([embedded(0, label=1)])}, ".", {}, "no column of captions among `image`, `label`"),
        ({"a.csv": "label,caption\n1,b"}, "a.csv", {}, "no column of images among `label`, `caption`"),
        ({"a.csv": "image,caption\na,b"}, "a.csv", {"image_column": "img"}, "`image_column` is `img`, but the"),
        ({"a.csv": "image,caption\na,b"}, "a.csv", {"caption_column": "text"}, "columns are `image`, `caption`"),
        ({"a.csv": "image,caption\na,b"}, "a.csv", {"image_id_column": "key"}, "`image_id_column` is `key`, but"),
        ({"a.csv": "image,caption\na,b"}, "a.csv", {"split_column": "part"}, "`split_column` is `part`, but"),
        ({"a.csv": "image,caption\na,1"}, "a.csv", {}, "`caption` holds int 1, no text"),
        ({"a.csv": "image,caption\na,b"}, "a.csv", {}, "no row has both a caption and an image in `"),
        ({"a.csv": "image,caption\na,b"}, "a.csv", {"image_dir": "nowhere"}, "`image_dir` is `nowhere`, and"),
        ({"x/1.jpg": "", "y/1.jpg": "", "a.csv": "image,caption\n1.jpg,b"}, "a.csv", {}, "`1.jpg` may be `"),
        ({"train.json": "[]"}, "train.json", {}, "the file is []"),
        ({"train.json": '[{"image": "a", "json": {"alt": "b"}}]'}, "train.json", {}, "`json` has the fields `alt`"),
        (
            {"train-a.json": '[{"image": "0000.jpg", "text": "a"}]', **IMAGES},
            "train-a.json,train-a.json",
            {},
            "Several of `",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refusal_is_one_sentence(tmp_path, monkeypatch, files, name, options, reason):
    monkeypatch.chdir(write(tmp_path, files) if files else tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path.parent / f"{tmp_path.name}-cache")
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        load_caption_dataset(name, **options)
    assert "\n" not in str(error.value)


# ---- one row per image ----


@pytest.fixture
def long_rows() -> datasets.Dataset:
    """Three pictures, the rows of which are mixed."""
    order = [0, 1, 0, 2, 1, 0]
    columns = {
        "image": [{"bytes": picture(n), "path": None} for n in order],
        "captions": [[f"Sentence {row}."] for row in range(6)],
        "image_id": [f"id{n}" for n in order],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def test_references_are_grouped_by_image(long_rows):
    grouped_captions = {"id0": [0, 2, 5], "id1": [1, 4], "id2": [3]}
    references = references_by_image(long_rows)
    assert references == {key: [f"Sentence {row}." for row in rows] for key, rows in grouped_captions.items()}
    assert references_by_image(long_rows.to_iterable_dataset()) == references


def test_group_by_image_keeps_the_picture_of_the_captions(long_rows):
    rows = group_by_image(long_rows)
    assert [number_of(image) for image in rows["image"]] == [0, 1, 2]
    assert dict(zip(rows["image_id"], rows["captions"], strict=True)) == references_by_image(long_rows)
    assert group_by_image(rows) is rows


def test_captions_that_every_row_repeats_count_once():
    columns = {"image_id": ["a", "a"], "captions": [["One.", "Two."], ["One.", "Two."]], "image": [None, None]}
    rows = datasets.Dataset.from_dict(columns, features=FEATURES.copy())
    assert group_by_image(rows)["captions"][:] == [["One.", "Two."]]


def test_split_keeps_the_captions_of_an_image_together(long_rows):
    splits = split_dataset(long_rows, validation_share=0.3, seed=1)
    train, validation = (set(splits[split]["image_id"]) for split in ("train", "validation"))
    assert len(train) == 2
    assert len(validation) == 1
    assert not train & validation
    assert len(splits["train"]) + len(splits["validation"]) == 6
    again = split_dataset(long_rows, validation_share=0.3, seed=1)
    assert again["validation"]["image_id"][:] == splits["validation"]["image_id"][:]


def test_split_of_one_image_is_refused(long_rows):
    with pytest.raises(ValueError, match="two or more"):
        split_dataset(long_rows.select([0]))
    with pytest.raises(ValueError, match="validation_share"):
        split_dataset(long_rows, 1.0)


# ---- broken images ----


@pytest.mark.parametrize("num_proc", [None, 2])
def test_broken_images_are_counted_and_named(tmp_path, num_proc):
    good = picture(1)
    here = write(tmp_path, {"here.jpg": good}) / "here.jpg"
    contents = {"good": good, "cut": good[: len(good) // 2], "text": b"no picture", "gone": None, "here": None}
    columns = {
        "image": [{"bytes": content, "path": str(here.with_stem(name))} for name, content in contents.items()],
        "captions": [["A dog."]] * len(contents),
        "image_id": list(contents),
    }
    rows = datasets.Dataset.from_dict(columns, features=FEATURES.copy())
    usable, broken = check_images(rows, num_proc)
    assert usable["image_id"][:] == ["good", "here"]
    assert [image_id for image_id, _ in broken] == ["cut", "text", "gone"]
    assert all(f"{image_id}.jpg" in reason for image_id, reason in broken)


def test_decode_image_names_what_it_skips(caplog):
    assert decode_image({"image": {"bytes": b"no picture", "path": None}, "image_id": "17"}) is None
    assert decode_image({"image": None, "image_id": "18"}) is None
    assert ["`17`" in caplog.messages[0], "`18`" in caplog.messages[1]] == [True, True]
    assert decode_image({"image": Image.new("L", (2, 3)), "image_id": "19"}).mode == "RGB"


# ---- columns ----


TEXT = datasets.Value("string")


def test_numbered_captions_are_in_order():
    features = {"image": datasets.Image(), **{f"caption_{index}": TEXT for index in (10, 9, 0)}}
    wanted = ("caption_0", "caption_9", "caption_10")
    assert CaptionColumns.infer(features).captions == wanted
    assert CaptionColumns.infer(features, caption_column="caption_*").captions == wanted
    assert CaptionColumns.infer(features, caption_column="caption_9, caption_0").captions == wanted[1::-1]


def test_captions_in_a_field_of_a_struct():
    features = {"jpg": datasets.Image(), "json": {"title": TEXT, "key": TEXT}}
    columns = CaptionColumns.infer(features, caption_column="json.title", image_id_column="json.key")
    row = {"json": {"title": "A dog.", "key": "k"}}
    assert columns.read_captions(row) == ["A dog."]
    assert columns.read_image_id(row, "0") == "k"


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("A dog.", ["A dog."]),
        (["A dog.", "A cat."], ["A dog.", "A cat."]),
        ({"raw": "A dog.", "tokens": ["a", "dog"]}, ["A dog."]),
        ({"raw": ["A dog.", "A cat."]}, ["A dog.", "A cat."]),
        ([{"raw": "A dog."}, {"raw": "A cat."}], ["A dog.", "A cat."]),
        ('["A dog.", "A cat."]', ["A dog.", "A cat."]),
        ("['A dog.', \"It's a cat.\"]", ["A dog.", "It's a cat."]),
        ("[laughs] A dog. [barks]", ["[laughs] A dog. [barks]"]),
        (b"Ein H\xc3\xbcndchen", ["Ein Hündchen"]),
        ("a\u2028b\tc", ["a b c"]),
        (None, []),
    ],
)
def test_captions_are_read_from_what_holds_them(value, texts):
    assert CaptionColumns("image", ("caption",)).read_captions({"caption": value}) == texts


if __name__ == "__main__":
    load_all(Path(sys.argv[1]))
