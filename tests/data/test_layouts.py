"""Files and folders of captions as people have them, found without options; and what is wrong in them, said."""

import base64
import json
import re
import tarfile

import datasets
import pytest
from support.caption_datasets import (
    IMAGES,
    captions,
    embedded,
    jsonl,
    number_of,
    parquet,
    picture,
    summarize,
    tar,
    write,
)

from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.data.text_files import find_format


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


NUMBERS = range(3)
LONG = [(n, text) for n in NUMBERS for text in captions(n)]
TOKENS = "".join(f"{n:04d}.jpg#{i}\t{text}\n" for n in NUMBERS for i, text in enumerate(captions(n)))
TABLE = "".join(["image,caption\n", *(f"{n:04d}.jpg,{text}\n" for n, text in LONG)])
RESULTS = "".join(["image_name| comment_number| comment\n", *(f"{n:04d}.jpg| 0| {text}\n" for n, text in LONG)])
COCO = {
    "images": [{"id": n, "file_name": f"{n:04d}.jpg"} for n in NUMBERS],
    "annotations": [{"image_id": n, "caption": text} for n, text in LONG],
}


def code(n: int) -> str:
    return base64.b64encode(picture(n)).decode()


def pictures(folder: str, name: str = "{:04d}.jpg") -> dict[str, bytes]:
    return {f"{folder}/{name.format(n)}": picture(n) for n in NUMBERS}


def beside(folder: str, ending: str) -> dict[str, bytes | str]:
    return {**pictures(folder), **{f"{folder}/{n:04d}{ending}": "\n".join(captions(n)) for n in NUMBERS}}


def records(**columns) -> list[dict]:
    return [{name: value(n) for name, value in columns.items()} for n in NUMBERS]


# files, the name to load, the id of picture n
LAYOUTS = {
    "flickr8k of kaggle": ({**pictures("Images"), "captions.txt": TABLE}, ".", "{:04d}.jpg"),
    "flickr8k token": (
        {**pictures("Flicker8k_Dataset"), "Flickr8k.token.txt": TOKENS},
        "Flickr8k.token.txt",
        "{:04d}.jpg",
    ),
    "flickr8k folder": (
        {**pictures("Images"), "text/Flickr8k.token.txt": TOKENS, "text/Flickr8k.lemma.token.txt": TOKENS},
        ".",
        "{:04d}.jpg",
    ),
    "flickr30k token": ({**pictures("a"), "results_20130124.token": TOKENS}, "results_20130124.token", "{:04d}.jpg"),
    "flickr30k csv": ({**pictures("a/a"), "a/results.csv": RESULTS}, "a/results.csv", "{:04d}.jpg"),
    "flickr30k folder": ({**pictures("a/a"), "a/results.csv": RESULTS}, ".", "{:04d}.jpg"),
    "text beside": (beside("train", ".txt"), ".", "{:04d}.jpg"),
    "caption beside": (beside("10_dog", ".caption"), "10_dog", "{:04d}.jpg"),
    "tsv of ofa": ({"a.tsv": "".join(f"{n}\tim{n}\t{t}\t\t{code(n)}\n" for n, t in LONG)}, "a.tsv", "im{}"),
    "base64 with a header": (
        {"a.tsv": "id\ttext\timage\n" + "".join(f"{n}\t{t}\t{code(n)}\n" for n, t in LONG)},
        "a.tsv",
        "{}",
    ),
    "base64 in csv": ({"a.csv": "id,text,image\n" + "".join(f"{n},{t},{code(n)}\n" for n, t in LONG)}, "a.csv", "{}"),
    "base64 in lines": ({"a.jsonl": jsonl(records(image=code, caption=captions, id=str))}, "a.jsonl", "{}"),
    "data uris": (
        {"a.json": json.dumps(records(image=lambda n: f"data:image/jpeg;base64,{code(n)}", caption=captions, id=int))},
        "a.json",
        "{}",
    ),
    "base64 in parquet": ({"a.parquet": parquet(records(img=code, caption=captions, id=str))}, "a.parquet", "{}"),
    "ai challenger": (
        {
            **pictures("images"),
            "a.json": json.dumps(records(url="http://1/{}.jpg".format, image_id="{:04d}.jpg".format, caption=captions)),
        },
        "a.json",
        "{:04d}.jpg",
    ),
    "captions by file name": (
        {**pictures("images"), "a.json": json.dumps({f"{n:04d}.jpg": captions(n) for n in NUMBERS})},
        "a.json",
        "{:04d}.jpg",
    ),
    "records under a key": (
        {**pictures("images"), "a.json": json.dumps({"data": records(image="{:04d}.jpg".format, caption=captions)})},
        "a.json",
        "{:04d}.jpg",
    ),
    "table without a header": (
        {**pictures("images"), "a.tsv": "".join(f"{n:04d}.jpg\t{t}\n" for n, t in LONG)},
        "a.tsv",
        "{:04d}.jpg",
    ),
    "semicolons": ({**pictures("images"), "a.csv": TABLE.replace(",", ";")}, "a.csv", "{:04d}.jpg"),
    "coco in a folder": (
        {**pictures("images"), "annotations/captions_train2017.json": json.dumps(COCO)},
        ".",
        "{}",
    ),
    "ids as numbers here": (
        {
            **pictures("images"),
            "a.json": json.dumps({**COCO, "annotations": [{"image_id": str(n), "caption": t} for n, t in LONG]}),
        },
        "a.json",
        "{}",
    ),
    "ids with zeros": (
        {
            **pictures("images"),
            "a.json": json.dumps({**COCO, "annotations": [{"image_id": f"{n:012d}", "caption": t} for n, t in LONG]}),
        },
        "a.json",
        "{}",
    ),
}


def expected(image_id: str) -> dict:
    return {"train": [[image_id.format(n), captions(n), n] for n in NUMBERS]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_found_without_options(tmp_path, layout):
    files, name, image_id = LAYOUTS[layout]
    folder = write(tmp_path / "data", files)
    assert summarize(load_caption_dataset(folder / name)) == expected(image_id)


@pytest.mark.parametrize(
    "layout", ["flickr8k of kaggle", "text beside", "tsv of ofa", "flickr30k csv", "coco in a folder"]
)
@pytest.mark.parametrize("folder", ["photos [2024]", "what*", "a?b"])
def test_folder_may_have_any_name(tmp_path, layout, folder):
    files, name, image_id = LAYOUTS[layout]
    assert summarize(load_caption_dataset(write(tmp_path / folder, files) / name)) == expected(image_id)


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv", "train.parquet", "train.tar"])
def test_folder_that_datasets_reads_may_have_any_name(tmp_path, kind):
    lines = [{"file_name": f"{n:04d}.jpg", "text": captions(n)[0]} for n in NUMBERS]
    files = {
        "metadata.jsonl": {**pictures("train"), "train/metadata.jsonl": jsonl(lines)},
        "metadata.csv": {
            **pictures("train"),
            "train/metadata.csv": "file_name,text\n" + "\n".join(",".join(line.values()) for line in lines),
        },
        "train.parquet": {"train.parquet": parquet([embedded(n, text=captions(n)[0]) for n in NUMBERS])},
        "train.tar": {
            "train.tar": tar(
                {f"{n}.{end}": c for n in NUMBERS for end, c in (("jpg", picture(n)), ("txt", captions(n)[0].encode()))}
            )
        },
    }[kind]
    folder = write(tmp_path / "photos [2024]", files)
    rows = summarize(load_caption_dataset(folder))["train"]
    assert [row[1:] for row in rows] == [[captions(n, 1), n] for n in NUMBERS]
    if kind in ("train.parquet", "train.tar"):
        assert summarize(load_caption_dataset(folder / kind))["train"] == rows


def test_lists_of_images_beside_tokens_are_the_splits(tmp_path, caplog):
    lists = {"train": [0], "dev": [1], "test": []}
    files = {f"Flickr_8k.{name}Images.txt": "".join(f"{n:04d}.jpg\n" for n in some) for name, some in lists.items()}
    folder = write(tmp_path / "data", {**pictures("Images"), "Flickr8k.token.txt": TOKENS, **files})
    splits = summarize(load_caption_dataset(folder))
    assert {split: [number for *_, number in rows] for split, rows in splits.items()} == {
        "train": [0],
        "validation": [1],
    }
    assert any("images in none of" in message and "(1): `0002.jpg`" in message for message in caplog.messages)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(COCO)),
        ("a.jsonl", jsonl(records(image="{:04d}.jpg".format, caption=captions)).decode()),
        ("a.csv", TABLE),
        ("captions.txt", TABLE),
        ("Flickr8k.token.txt", TOKENS),
        ("results.csv", RESULTS),
    ],
)
def test_byte_order_marks_are_no_part_of_the_text(tmp_path, name, text, encoding):
    folder = write(tmp_path / "data", {**pictures("images"), name: text.encode(encoding)})
    rows = summarize(load_caption_dataset(folder / name))["train"]
    assert [row[1:] for row in rows] == [[captions(n), n] for n in NUMBERS]


def test_byte_order_mark_of_a_text_beside_a_picture(tmp_path):
    folder = write(tmp_path / "data", {"0.jpg": picture(0), "0.txt": "\ufeffA dog."})
    assert load_caption_dataset(folder)["train"]["captions"][:] == [["A dog."]]


# ---- values ----


def one_caption_or_several(n: int):
    return captions(n) if n % 2 else captions(n)[0]


@pytest.mark.parametrize(
    "content",
    [
        records(image="{:04d}.jpg".format, caption=one_caption_or_several),
        {**COCO, "annotations": [{"image_id": n, "caption": one_caption_or_several(n)} for n in NUMBERS]},
        {f"{n:04d}.jpg": one_caption_or_several(n) for n in NUMBERS},
    ],
)
def test_caption_may_be_a_text_here_and_a_list_there(tmp_path, content):
    folder = write(tmp_path / "data", {**pictures("images"), "a.json": json.dumps(content)})
    rows = load_caption_dataset(folder / "a.json")["train"]
    assert rows["captions"][:] == [captions(0, 1), captions(1), captions(2, 1)]


def test_caption_of_metadata_may_be_a_text_here_and_a_list_there(tmp_path):
    lines = [{"file_name": f"{n:04d}.jpg", "text": one_caption_or_several(n)} for n in NUMBERS]
    folder = write(tmp_path / "data", {**pictures("train"), "train/metadata.jsonl": jsonl(lines)})
    rows = load_caption_dataset(folder)["train"]
    assert rows["captions"][:] == [captions(0, 1), captions(1), captions(2, 1)]


def test_id_may_be_a_number_here_and_a_text_there(tmp_path):
    rows = [{"image": f"{n:04d}.jpg", "id": n if n else "0", "caption": captions(n)} for n in NUMBERS]
    folder = write(tmp_path / "data", {**pictures("images"), "a.json": json.dumps(rows)})
    assert summarize(load_caption_dataset(folder / "a.json")) == expected("{}")


@pytest.mark.parametrize("caption", ["None", "NA", "12", "null", 'A sign says "stop".', "One, two, three."])
def test_field_of_a_table_is_text(tmp_path, caption):
    quoted = '"' + caption.replace('"', '""') + '"'
    folder = write(tmp_path / "data", {**pictures("images"), "a.csv": f"image,caption\n0000.jpg,{quoted}\n"})
    assert load_caption_dataset(folder / "a.csv")["train"]["captions"][:] == [[caption]]


@pytest.mark.parametrize("caption", ['"Stop" says a sign.', 'A 5" ruler.', '"Stop', "it's"])
def test_quotes_in_a_table_with_tabs_belong_to_the_caption(tmp_path, caption):
    folder = write(tmp_path / "data", {**pictures("images"), "a.tsv": f"image\tcaption\n0000.jpg\t{caption}\n"})
    assert load_caption_dataset(folder / "a.tsv")["train"]["captions"][:] == [[caption]]


def test_commas_of_a_last_caption_without_quotes_belong_to_it(tmp_path):
    folder = write(tmp_path / "data", {**pictures("images"), "a.csv": "image,caption\n0000.jpg,A dog, a cat, a cow.\n"})
    assert load_caption_dataset(folder / "a.csv")["train"]["captions"][:] == [["A dog, a cat, a cow."]]


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("IMG_1.JPG", "img_1.jpg"),
        ("1.jpeg", "1.jpg"),
        ('"1.jpg"', "1.jpg"),
        (" 1.jpg ", "1.jpg"),
        ("1", "1.jpg"),
        ("Caf\u00e9.jpg", "Cafe\u0301.jpg"),
        ("C:\\photos\\1.jpg", "1.jpg"),
        ("file:///home/me/a%20b.jpg", "a b.jpg"),
    ],
)
def test_names_are_found_in_other_spellings(tmp_path, written, on_disk):
    rows = json.dumps([{"file_name": written, "caption": "A dog."}])
    folder = write(tmp_path / "data", {f"images/{on_disk}": picture(2), "a.json": rows})
    assert [number_of(image) for image in load_caption_dataset(folder / "a.json")["train"]["image"]] == [2]


def test_exact_name_goes_before_another_spelling(tmp_path):
    rows = json.dumps([{"file_name": "a.JPG", "caption": "A dog."}])
    folder = write(tmp_path / "data", {"images/a.jpg": picture(1), "images/a.JPG": picture(2), "a.json": rows})
    assert [number_of(image) for image in load_caption_dataset(folder / "a.json")["train"]["image"]] == [2]


def test_picture_with_two_texts_has_two_columns(tmp_path):
    files = {"0.jpg": picture(0), "0.txt": "tags, of a dog", "0.caption": "A dog."}
    folder = write(tmp_path / "data", files)
    assert load_caption_dataset(folder)["train"]["captions"][:] == [["A dog."]]
    assert load_caption_dataset(folder, caption_column="txt")["train"]["captions"][:] == [["tags, of a dog"]]


def test_large_table_is_read_through_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_cnnrnn.data.text_files.MAX_IN_MEMORY", 10)
    folder = write(tmp_path / "data", {**pictures("images"), "a.csv": TABLE})
    assert summarize(load_caption_dataset(folder / "a.csv")) == expected("{:04d}.jpg")
    write(folder, {"a.csv": TABLE.replace("Sentence 0", "Another")})
    assert load_caption_dataset(folder / "a.csv")["train"]["captions"][0][0] == "Another of picture 0."


# ---- what is left out ----


def shard(without: str, count: int = 8, hole: int = 3) -> bytes:
    return tar(
        {
            f"{n:05d}.{end}": content
            for n in range(count)
            for end, content in (("jpg", picture(n)), ("txt", captions(n)[0].encode()))
            if (n, end) != (hole, without)
        }
    )


@pytest.mark.parametrize("without", ["jpg", "txt"])
@pytest.mark.parametrize("hole", [0, 3, 7])
@pytest.mark.parametrize("name", ["shard.tar", "*.tar", "."])
def test_sample_with_a_hole_is_left_out_of_a_shard(tmp_path, caplog, without, hole, name):
    folder = write(tmp_path / "data", {"shard.tar": shard(without, hole=hole)})
    (rows,) = load_caption_dataset(folder / name).values()
    assert [number_of(image) for image in rows["image"]] == [n for n in range(8) if n != hole]
    what = "image" if without == "jpg" else "text"
    assert any(f"samples without an {what}" in m or f"samples without a {what}" in m for m in caplog.messages)
    assert any(f"(1): `{hole:05d}`" in message for message in caplog.messages)


def test_pictures_of_two_formats_in_a_shard_are_all_read(tmp_path):
    samples = {
        "0.jpg": picture(0),
        "0.json": b'{"caption": "A dog."}',
        "1.png": picture(1, "PNG"),
        "1.json": b'{"caption": ""}',
    }
    samples |= {"2.png": picture(2, "PNG"), "2.json": b'{"caption": "A cow."}'}
    folder = write(tmp_path / "data", {"a.tar": tar(samples)})
    rows = load_caption_dataset(folder / "a.tar")["train"]
    assert [(number_of(row["image"]), row["captions"]) for row in rows] == [(0, ["A dog."]), (2, ["A cow."])]


def test_formats_that_are_not_read_are_counted_and_named(tmp_path, caplog):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 500
    lines = jsonl({"file_name": f"{n}.jpg", "text": "A dog."} for n in range(2))
    files = {**{f"{n}.jpg": picture(n) for n in range(2)}, "a.heic": heic, "IMG_0001.HEIC": heic, "b.CR2": heic}
    assert len(load_caption_dataset(write(tmp_path / "data", {**files, "metadata.jsonl": lines}))["train"]) == 2
    assert any("(3): `IMG_0001.HEIC`, `a.heic`, `b.CR2`" in message for message in caplog.messages)


def test_folder_of_formats_that_are_not_read_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"all its pictures \(1\) are in formats that are not read, `a.heic`: save as JPEG"
    ):
        load_caption_dataset(write(tmp_path / "data", {"a.heic": b"ftypheic"}))


def test_json_that_is_no_table_of_captions_is_passed_over(tmp_path):
    lines = jsonl({"file_name": f"{n:04d}.jpg", "text": "A dog."} for n in NUMBERS)
    for name, files in {"a": {"captions.txt": TABLE}, "b": {"metadata.jsonl": lines}}.items():
        folder = write(tmp_path / name, {**pictures("."), **files, "settings.json": '{"a": 1}', "x.json": "[]"})
        assert len(load_caption_dataset(folder)["train"]) == len(NUMBERS)


def test_first_damaged_base64_does_not_hide_the_others(tmp_path):
    rows = records(image=code, caption=captions, id=str)
    rows[0]["image"] = "not base64"
    folder = write(tmp_path / "data", {"a.jsonl": jsonl(rows)})
    assert load_caption_dataset(folder / "a.jsonl")["train"]["image_id"][:] == ["1", "2"]


def test_rows_without_an_image_are_counted_and_named(tmp_path, caplog):
    rows = [{**embedded(n, id=f"id{n}", caption=captions(n))} for n in NUMBERS]
    rows[1]["image"] = None
    folder = write(tmp_path / "data", {"train.parquet": parquet(rows)})
    assert load_caption_dataset(folder)["train"]["image_id"][:] == ["id0", "id2"]
    assert "Left out of train: rows without an image (1): `id1`." in caplog.messages


def test_damaged_base64_is_left_out_and_not_shown(tmp_path, caplog):
    rows = records(image=code, caption=captions, id=str)
    rows[1]["image"] = "/9j/" + "%" * 5000
    folder = write(tmp_path / "data", {"a.jsonl": jsonl(rows)})
    assert load_caption_dataset(folder / "a.jsonl")["train"]["image_id"][:] == ["0", "2"]
    assert "Left out of train: rows without an image (1): `1`." in caplog.messages


def test_captions_of_images_that_are_not_listed_are_named(tmp_path, caplog):
    content = {**COCO, "annotations": [*COCO["annotations"], {"image_id": 77, "caption": "A dog."}]}
    folder = write(tmp_path / "data", {**pictures("images"), "a.json": json.dumps(content)})
    load_caption_dataset(folder / "a.json")
    assert any("captions of images that it does not list (1): `77`" in message for message in caplog.messages)


def test_missing_picture_of_metadata_is_named(tmp_path, caplog):
    lines = jsonl({"file_name": f"{n}.jpg", "text": "A dog."} for n in range(2))
    folder = write(tmp_path / "data", {"0.jpg": picture(0), "metadata.jsonl": lines})
    assert len(load_caption_dataset(folder)["train"]) == 1
    assert any("not found" in message and "1.jpg" in message for message in caplog.messages)


def test_names_in_warnings_are_short_and_cannot_command_a_terminal(tmp_path, caplog):
    rows = [{"file_name": name, "caption": "A."} for name in ("0000.jpg", "\x1b[31mred.jpg", "x" * 5000 + ".jpg")]
    folder = write(tmp_path / "data", {**pictures("images"), "a.json": json.dumps(rows)})
    load_caption_dataset(folder / "a.json")
    text = "".join(caplog.messages)
    assert "\x1b" not in text
    assert len(text) < 1000


# ---- what is refused ----


@pytest.mark.parametrize(
    ("files", "name", "reason"),
    [
        ({**IMAGES, "a.csv": TABLE, "b.csv": TABLE}, ".", "several files of captions, `a.csv`, `b.csv`: pass one"),
        (
            {"a.csv": "image,id,caption,source\n1.jpg,1,a,b,c\n"},
            "a.csv",
            "line 2 of `a.csv` has 5 fields and the header 4",
        ),
        ({"a.csv": 'image,caption\n1.jpg,"A dog'}, "a.csv", "line 2 of `a.csv`"),
        ({"a.csv": ""}, "a.csv", "the file is empty"),
        (
            {"a.csv": "image,caption\n1.jpg,Caf\u00e9\n".encode("latin-1")},
            "a.csv",
            "is not UTF-8 text: save it as UTF-8",
        ),
        ({"a.json": b'[{"image": "Caf\xe9.jpg"}]'}, "a.json", "is not UTF-8 text"),
        ({"a.jsonl": '{"image": "1.jpg"}\n{"image": 2.jpg}\n'}, "a.jsonl", "line 2 of `a.jsonl` is not JSON"),
        ({"a.json": '[{"image": "1.jpg"}, 3]'}, "a.json", "entry 2 of the file is int `3`"),
        (
            {
                "a.json": json.dumps(
                    [{"image": "1.jpg", "caption": {"raw": "a"}}, {"image": "2.jpg", "caption": "x" * 999}]
                )
            },
            "a.json",
            "entry 2: `caption` is str `xxx",
        ),
        (
            {"a.json": json.dumps({"images": [{"id": 5}], "annotations": []})},
            "a.json",
            "entry 1 of images (id `5`) lacks",
        ),
        (
            {"a.json": json.dumps({**COCO, "annotations": [{"image_id": 1, "bbox": []}]})},
            "a.json",
            "another of COCO's files",
        ),
        (
            {"a.json": json.dumps({**COCO, "annotations": [{"image_id": 1, "caption": 7}]})},
            "a.json",
            "the caption of entry 1 is int `7`, no text",
        ),
        (
            {
                "a.json": json.dumps(
                    {"images": [{"imgid": 4, "filename": "a.jpg", "sentences": [{}], "split": "train"}]}
                )
            },
            "a.json",
            "entry 1 of images (imgid `4`) has sentences without 'raw'",
        ),
        ({"a.tar": b"nothing like an archive"}, "a.tar", "the archive `a.tar` is damaged"),
        ({"a.tar": shard("txt", count=8)[:5000]}, "a.tar", "the archive `a.tar` is damaged"),
        ({"a.tar": tar({"0.txt": b"A dog.", "1.cls": b"3"})}, "a.tar", "no sample of the archive has an image"),
        ({"a.parquet": b"PAR1 no more"}, "a.parquet", "a file of it is damaged, or not what its ending says"),
        ({"0.jpg": picture(0), "metadata.csv": "file_name,text\n"}, ".", "there are no rows in it"),
        (
            {"0.jpg": picture(0), "metadata.csv": b"file_name,text\n0.jpg,Caf\xe9"},
            ".",
            "`metadata.csv` is not UTF-8 text",
        ),
        ({"a.json": '[{"image": ["0.jpg"], "caption": "A dog."}]'}, "a.json", "row 1: list `['0.jpg']` is no image"),
        ({"a.doc": "nothing"}, "a.doc", "files with the ending `.doc` are not read"),
    ],
)
def test_refusal_names_the_entry_in_one_short_sentence(tmp_path, files, name, reason):
    folder = write(tmp_path / "data", files)
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        load_caption_dataset(folder / name)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600 + len(str(tmp_path))


def test_archive_is_not_unpacked(tmp_path):
    samples = {f"../../{n}.{end}": c for n in NUMBERS for end, c in (("jpg", picture(n)), ("txt", b"A dog."))}
    folder = write(tmp_path / "data", {"a.tar": tar({**samples, "../../9.txt": b"hole"})})
    assert len(load_caption_dataset(folder / "a.tar")["train"]) == len(NUMBERS)
    assert not list(tmp_path.glob("[0-9].jpg"))
    assert tarfile.is_tarfile(folder / "a.tar")


@pytest.mark.parametrize(
    ("text", "separator", "names"),
    [
        ("image,caption\n", ",", ("image", "caption")),
        ("image_name| comment_number| comment\n", "|", ("image_name", "comment_number", "comment")),
        ("0.jpg\tA dog, a cat.\n", "\t", ("file_name", "caption")),
        ("7\t0.jpg\tA dog.\n", "\t", ("column_1", "file_name", "caption")),
        ("a,a,caption\n", ",", ("a_1", "a_2", "caption")),
    ],
)
def test_format_of_a_table_is_told_by_its_first_line(tmp_path, text, separator, names):
    format = find_format(write(tmp_path, {"a.txt": text}) / "a.txt")
    assert (format.separator, format.names) == (separator, names)
