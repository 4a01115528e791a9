"""
Captioning datasets in the layouts that are really out there, each a few pictures large.

Those of the Hub are loaded by the real client from a local Hub.
"""

import json
import re
from functools import cache

import datasets
import pytest
from support.caption_datasets import (
    IMAGES,
    NUM_IMAGES,
    captions,
    embedded,
    expected,
    imagefolder,
    jsonl,
    karpathy_json,
    numbers,
    parquet,
    picture,
    shards,
    summarize,
    tar,
    write,
)
from support.hub_client import in_a_client
from support.local_hub import LocalHub

from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.data.shapes import drawing
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.data.shapes.language import is_correct


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


def load_all(jobs: dict[str, dict]) -> dict[str, dict]:
    """What came out of each job, its rows or its error."""
    datasets.disable_progress_bars()
    results = {}
    for job, options in jobs.items():
        try:
            results[job] = {"rows": summarize(load_caption_dataset(**options))}
        except ValueError as error:
            results[job] = {"error": str(error)}
    load_caption_dataset("jxie/coco_captions").push_to_hub("me/pushed")
    results["pushed"] = {"rows": summarize(load_caption_dataset("me/pushed"))}
    return results


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
        hub.create_repository("dataset", "HuggingFaceM4/COCO", {"COCO.py": b"import datasets"})
        hub.create_repository("dataset", "me/labels", shards(lambda n: embedded(n, label=n), ["train"]))
        jobs |= {f"error: {name}": options for name, (options, _) in HUB_ERRORS.items()}
        return in_a_client(hub, folder / "home", load_all, jobs)


@pytest.mark.parametrize("repository", list(hub_layouts()))
def test_layout_of_the_hub_is_understood(from_hub, repository):
    assert from_hub[repository] == {"rows": hub_layouts()[repository]["expected"]}


def test_loaded_dataset_can_be_pushed(from_hub):
    assert from_hub["pushed"] == from_hub["jxie/coco_captions"]


@pytest.mark.parametrize("name", HUB_ERRORS)
def test_error_with_the_hub_is_one_sentence(from_hub, name):
    error = from_hub[f"error: {name}"]["error"]
    assert HUB_ERRORS[name][1] in error
    assert "\n" not in error


# ---- folders and files of one's own ----


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


@pytest.mark.parametrize("layout", LOCAL_LAYOUTS)
def test_local_layout_is_understood(tmp_path, layout):
    files, name, rows = LOCAL_LAYOUTS[layout]
    folder = write(tmp_path / "data", files)
    name = ",".join(str(folder / part) for part in name.split(","))
    assert summarize(load_caption_dataset(name)) == rows


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
    assert splits["train"].column_names == ["image", "captions", "image_id", "scene", "scene_boxes"]
    assert all(map(is_correct, (captions[0] for captions in splits["train"]["captions"]), splits["train"]["scene"]))


def test_shapes_are_drawn_once(few_shapes, tmp_path):
    for _ in range(2):
        load_caption_dataset("shapes", cache_dir=str(tmp_path))
    assert len(few_shapes) == 1
    assert [path.name.startswith("shapes-") for path in tmp_path.iterdir() if path.is_dir()] == [True]


def test_paths_are_as_good_as_strings(tmp_path):
    folder = write(tmp_path / "data", {**IMAGES, "dataset_coco.json": karpathy_json()})
    paths = {
        "dataset_name": folder / "dataset_coco.json",
        "image_dir": folder,
        "cache_dir": tmp_path / "cache",
    }
    strings = {name: str(path) for name, path in paths.items()}
    from_paths, from_strings = (load_caption_dataset(**names) for names in (paths, strings))
    assert summarize(from_paths) == summarize(from_strings)


def test_saved_dataset_is_loaded_again(tmp_path):
    splits = load_caption_dataset(str(write(tmp_path / "data", imagefolder("jsonl"))))
    splits.save_to_disk(tmp_path / "saved")
    assert summarize(load_caption_dataset(str(tmp_path / "saved"))) == summarize(splits)


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
        ({"a.json": '[{"image": "a", "caption": 1}]'}, "a.json", {}, "row 1: `caption` holds int 1, no text"),
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
