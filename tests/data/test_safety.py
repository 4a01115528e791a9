"""A dataset of somebody else opens no file but its own."""

import io
import json
import tarfile
import zipfile

import datasets
import pytest
from support.caption_datasets import captions, number_of, parquet, picture, tar, write
from support.hub_client import in_a_client
from support.local_hub import LocalHub

from modeling_cnnrnn.data.image_files import ImageFiles, OutsideFilesError, embed_files, files_of_dataset
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.data.sources import read_splits


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def secret(tmp_path):
    """A picture of the user, outside all datasets."""
    return write(tmp_path / "home", {"secret.jpg": picture(9)}) / "secret.jpg"


def link(path, target) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def path_only(name) -> dict:
    return {"image": {"bytes": None, "path": str(name)}, "image_id": "stolen", "captions": captions(9)}


OWN = {"image": {"bytes": picture(1), "path": "1.jpg"}, "image_id": "own", "captions": captions(1)}


def make_parquet(folder, secret) -> str:
    rows = [OWN, path_only(secret), path_only("../home/secret.jpg"), path_only(f"file://{secret}")]
    return str(write(folder, {"train.parquet": parquet(rows)}) / "train.parquet")


def make_link(folder, secret) -> str:
    lines = [{"file_name": f"{n}.jpg", "captions": captions(n)} for n in (1, 9)]
    write(folder, {"train/1.jpg": picture(1), "train/metadata.jsonl": "\n".join(map(json.dumps, lines))})
    link(folder / "train" / "9.jpg", secret)
    return str(folder)


def make_link_to_folder(folder, secret) -> str:
    rows = [
        {"file_name": name, "captions": captions(1)} for name in ("1.jpg", "home/secret.jpg", "home/../home/secret.jpg")
    ]
    write(folder, {"1.jpg": picture(1), "a.json": json.dumps(rows)})
    link(folder / "home", secret.parent)
    return str(folder / "a.json")


def make_link_beside(folder, secret) -> str:
    write(folder, {"1.jpg": picture(1), "1.txt": captions(1)[0], "9.txt": captions(9)[0]})
    link(folder / "9.jpg", secret)
    return str(folder)


def make_coco(folder, secret) -> str:
    names = ["1.jpg", str(secret), "../home/secret.jpg", "x/../../home/secret.jpg"]
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"image_id": n, "caption": captions(1)[0]} for n in range(len(names))],
    }
    return str(write(folder, {"1.jpg": picture(1), "a.json": json.dumps(content)}) / "a.json")


def make_karpathy(folder, secret) -> str:
    places = [("", "1.jpg"), (str(secret.parent), "secret.jpg"), ("../home", "secret.jpg")]
    images = [
        {"filepath": path, "filename": name, "split": "train", "imgid": n, "sentences": [{"raw": captions(1)[0]}]}
        for n, (path, name) in enumerate(places)
    ]
    return str(write(folder, {"1.jpg": picture(1), "a.json": json.dumps({"images": images})}) / "a.json")


def make_csv(folder, secret) -> str:
    lines = ["image,caption", "1.jpg,A dog.", f"{secret},A cat.", "../home/secret.jpg,A cat."]
    return str(write(folder, {"1.jpg": picture(1), "a.csv": "\n".join(lines)}) / "a.csv")


def make_metadata(folder, secret) -> str:
    lines = ["file_name,text", "1.jpg,A dog.", f"{secret},A cat.", "../home/secret.jpg,A cat."]
    return str(write(folder, {"1.jpg": picture(1), "metadata.csv": "\n".join(lines)}))


def make_zip(folder, secret) -> str:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("secret.jpg", picture(9))
    write(secret.parent, {"private.zip": file.getvalue()})
    rows = [OWN, path_only(f"zip://secret.jpg::{secret.parent}/private.zip")]
    return str(write(folder, {"train.parquet": parquet(rows)}) / "train.parquet")


def make_tar(folder, secret) -> str:
    samples = {"own.jpg": picture(1), "own.txt": b"A dog.", "stolen.txt": b"A cat."}
    content = io.BytesIO(tar(samples))
    with tarfile.open(fileobj=content, mode="a") as archive:
        info = tarfile.TarInfo("stolen.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(info)
    return str(write(folder, {"a.tar": content.getvalue()}) / "a.tar")


MAKERS = [
    *(make_parquet, make_link, make_link_to_folder, make_link_beside, make_coco, make_karpathy, make_csv),
    *(make_metadata, make_zip, make_tar),
]


@pytest.mark.parametrize("make", MAKERS)
def test_rows_that_name_files_outside_are_left_out(tmp_path, secret, caplog, make):
    rows = load_caption_dataset(make(tmp_path / "data", secret))["train"]
    assert [number_of(image) for image in rows["image"]] == [1]
    left_out = [message for message in caplog.messages if message.startswith("Left out of")]
    assert any(name in message for message in left_out for name in ("secret.jpg", "9.jpg", "`stolen`"))


@pytest.mark.parametrize("make", MAKERS)
def test_rows_that_are_written_elsewhere_hold_no_file_from_outside(tmp_path, secret, make):
    name = make(tmp_path / "data", secret)
    files = files_of_dataset(name)
    for rows in read_splits(name).values():
        written = embed_files(rows, files)
        assert len(written) == len(rows)
        assert picture(9) not in [
            (cell or {}).get("bytes")
            for column, feature in rows.features.items()
            if isinstance(feature, datasets.Image)
            for cell in written.cast_column(column, datasets.Image(decode=False))[column]
        ]


def test_files_inside_lists_and_structs_are_refused_too(secret):
    feature = datasets.Image()
    cells = {"bytes": None, "path": str(secret)}
    rows = datasets.Dataset.from_dict(
        {"many": [[cells, {"bytes": b"own", "path": "x.jpg"}]], "deep": [{"inner": cells}], "text": ["a"]},
        features=datasets.Features(many=datasets.List(feature), deep={"inner": feature}, text=datasets.Value("string")),
    )
    sounds = datasets.Dataset.from_dict({"sound": [cells]}).cast_column("sound", datasets.Audio())
    rows = datasets.concatenate_datasets([rows, sounds], axis=1)
    table = embed_files(rows, ImageFiles(None)).data.to_pylist()
    own = {"bytes": b"own", "path": "x.jpg"}
    assert table == [{"many": [None, own], "deep": {"inner": None}, "text": "a", "sound": None}]


@pytest.mark.parametrize("address", ["hf://datasets/me/private/a.jpg", "https://127.0.0.1/a.jpg", "zip://a::b::c"])
def test_addresses_in_cells_are_not_opened(tmp_path, address):
    with pytest.raises(OutsideFilesError, match="not a file of the dataset"):
        ImageFiles(str(tmp_path)).resolve({"bytes": None, "path": address})


def test_hidden_files_beside_a_table_are_outside(tmp_path):
    """A table that was saved in the home folder."""
    home = write(tmp_path, {".ssh/a.jpg": picture(9), ".a.jpg": picture(9), "b.jpg": picture(1)})
    rows = [path_only(home / name) for name in (".ssh/a.jpg", ".a.jpg", "b.jpg")]
    name = write(home, {"train.parquet": parquet(rows)}) / "train.parquet"
    assert [number_of(image) for image in load_caption_dataset(name)["train"]["image"]] == [1]


def test_hidden_folder_may_be_the_dataset(tmp_path):
    folder = write(tmp_path / ".data", {"b.jpg": picture(1), "train.parquet": parquet([path_only("b.jpg")])})
    assert len(load_caption_dataset(folder / "train.parquet")["train"]) == 1


def test_file_that_is_no_picture_is_not_written(tmp_path):
    folder = write(tmp_path / "data", {"letter.txt": "Dear friend", "1.jpg": picture(1)})
    cells = [{"bytes": None, "path": str(folder / name)} for name in ("letter.txt", "1.jpg")]
    rows = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features(image=datasets.Image()))
    written = embed_files(rows, ImageFiles(str(folder))).data.to_pylist()
    assert [row["image"] and row["image"]["bytes"] for row in written] == [None, picture(1)]


def test_image_dir_allows_what_is_in_it(tmp_path, secret):
    name = make_parquet(tmp_path / "data", secret)
    rows = load_caption_dataset(name, image_dir=secret.parent)["train"]
    assert {number_of(image) for image in rows["image"]} == {1, 9}


def test_folder_behind_a_link_is_the_dataset(tmp_path):
    lines = json.dumps({"file_name": "1.jpg", "captions": captions(1)})
    folder = write(tmp_path / "disk", {"1.jpg": picture(1), "metadata.jsonl": lines})
    (tmp_path / "photographs").symlink_to(folder)
    rows = load_caption_dataset(tmp_path / "photographs")["train"]
    assert [number_of(image) for image in rows["image"]] == [1]


def test_folder_whose_name_begins_alike_is_outside(tmp_path):
    write(tmp_path, {"data/1.jpg": picture(1), "data2/1.jpg": picture(2)})
    files = ImageFiles(str(tmp_path / "data"))
    assert files.contains(str(tmp_path / "data" / "1.jpg"))
    assert not files.contains(str(tmp_path / "data2" / "1.jpg"))


def test_images_of_an_archive_in_the_folder_are_read(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("1.jpg", picture(1))
        archive.writestr("metadata.jsonl", json.dumps({"file_name": "1.jpg", "text": "A dog."}))
    folder = write(tmp_path / "data", {"train.zip": file.getvalue()})
    rows = load_caption_dataset(folder)["train"]
    assert [number_of(image) for image in rows["image"]] == [1]


def test_relative_paths_are_relative_to_the_table(tmp_path, monkeypatch):
    write(tmp_path / "elsewhere", {"images/1.jpg": picture(2)})
    rows = [path_only("images/1.jpg")]
    folder = write(tmp_path / "data", {"train.parquet": parquet(rows), "images/1.jpg": picture(1)})
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_caption_dataset(folder / "train.parquet")["train"]
    assert [number_of(image) for image in loaded["image"]] == [1]


def load_from_hub(names: list[str]) -> dict[str, list]:
    found = {}
    for name in names:
        rows = load_caption_dataset(name)["train"]
        found[name] = [number_of(image) for image in rows["image"]]
    return found


def test_rows_of_the_hub_open_no_local_file(tmp_path, secret):
    lines = json.dumps({"file_name": "1.jpg", "text": "A dog."}).encode()
    with LocalHub(tmp_path / "repositories") as hub:
        hub.create_repository("dataset", "me/stolen", {"train.parquet": parquet([OWN, path_only(secret)])})
        hub.create_repository("dataset", "me/folder", {"train/1.jpg": picture(1), "train/metadata.jsonl": lines})
        found = in_a_client(hub, tmp_path / "client", load_from_hub, ["me/stolen", "me/folder"])
    assert found == {"me/stolen": [1], "me/folder": [1]}
