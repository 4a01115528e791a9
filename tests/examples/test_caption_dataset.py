"""Captions of whole datasets: every row once, in order, whatever was killed and however many processes there were."""

import json
import os
import signal
from pathlib import Path
from subprocess import CompletedProcess

import datasets
import numpy as np
import pyarrow.parquet
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.example_scripts import command, run
from support.local_hub import LocalHub
from support.nursery import run_python
from transformers import set_seed

from modeling_cnnrnn import pipeline


# one of 11 and one of 5 rows: uneven parts and batches
SPLITS = {"train": 11, "test": 5}
BROKEN = ("train", 6)
SMALL = {"rows_per_part": 3, "per_device_eval_batch_size": 2, "max_new_tokens": 6}
DRAWN = SMALL | {"do_sample": True, "num_return_sequences": 2}

# runs the script; the process is killed when it puts a file whose name has this text in it in its place
KILLED = """
import os, runpy, signal, sys

text = sys.argv[1]
sys.argv = sys.argv[2:]

def watch(event, arguments):
    if event == "os.rename" and text in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_two(*before: str, **options) -> CompletedProcess:
    """On two processes, by way of code that is given before."""
    environment = os.environ | {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    return run_python(*before, *command("caption_dataset", **options), number=2, env=environment)


def parts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("data/*/*"))}


def rows(folder: Path, split: str) -> list[dict]:
    """The rows of a split in the order of the files' names."""
    tables = [pyarrow.parquet.read_table(path) for path in sorted((folder / "data" / split).glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def captioner(tmp_path, make_model, tiny_processor) -> Path:
    make_model(attention_type="additive").save_pretrained(tmp_path / "captioner")
    tiny_processor.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder of images that nobody has written a word about, of which one is cut off."""
    set_seed(1)
    for split, number in SPLITS.items():
        (tmp_path / "photographs" / split).mkdir(parents=True)
        for row in range(number):
            pixels = torch.randint(256, (32, 32, 3)) // torch.randint(1, 9, (3,))
            path = tmp_path / "photographs" / split / f"{row:02d}.png"
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
            if (split, row) == BROKEN:
                path.write_bytes(path.read_bytes()[:100])
    return tmp_path / "photographs"


@pytest.fixture
def whole(captioner, photographs, tmp_path) -> Path:
    """What one process writes that nothing disturbs."""
    run(
        "caption_dataset",
        model_name_or_path=captioner,
        dataset_name=photographs,
        output_dir=tmp_path / "whole",
        **DRAWN,
    )
    return tmp_path / "whole"


def test_the_folder_is_a_dataset_of_the_same_rows_with_the_sentences_of_the_pipeline(captioner, photographs, tmp_path):
    folder = tmp_path / "captioned"
    run(
        "caption_dataset",
        model_name_or_path=captioner,
        dataset_name=photographs,
        output_dir=folder,
        num_return_sequences=2,
        **SMALL,
    )
    captioned = datasets.load_dataset(str(folder))
    assert {split: len(rows) for split, rows in captioned.items()} == SPLITS
    pipe = pipeline("image-to-text", model=str(captioner))
    decoding = {"max_new_tokens": 6, "num_return_sequences": 2, "generate_kwargs": {"num_beams": 3}}
    scores = set()
    for split, found in captioned.cast_column("image", datasets.Image(decode=False)).items():
        ours = ["generated_text", "score", "generated_texts", "scores", "image_error"]
        assert found.column_names == ["image", "label", *ours]  # `datasets` takes a label from the folder's name
        for index, row in enumerate(found):
            path = photographs / split / f"{index:02d}.png"
            assert row["image"]["bytes"] == path.read_bytes()
            if (split, index) == BROKEN:
                continue
            best, second = pipe(str(path), return_scores=True, **decoding)
            assert row["generated_texts"] == [best["generated_text"], second["generated_text"]]
            assert row["generated_text"] == best["generated_text"]
            assert row["scores"] == pytest.approx([best["score"], second["score"]], abs=1e-4)
            assert row["score"] == row["scores"][0]
            assert row["image_error"] is None
            scores.add(row["score"])
    assert len(scores) == sum(SPLITS.values()) - 1  # the pictures make a difference


def test_a_broken_image_is_counted_and_named_and_its_row_stays(captioner, photographs, tmp_path, caplog):
    folder = tmp_path / "captioned"
    run("caption_dataset", model_name_or_path=captioner, dataset_name=photographs, output_dir=folder, **SMALL)
    row = rows(folder, BROKEN[0])[BROKEN[1]]
    assert row["generated_text"] is None
    assert row["score"] is None
    assert row["image"]["bytes"] == (photographs / "train" / "06.png").read_bytes()
    results = json.loads((folder / "caption_results.json").read_text())
    assert results["broken_images"] == [{"split": "train", "row": 6, "reason": row["image_error"]}]
    assert "1 images could not be read" in caplog.text
    assert f"train, row 6: {row['image_error']}" in caplog.text


def test_two_processes_write_what_one_writes(whole, captioner, photographs, tmp_path):
    folder = tmp_path / "two"
    finished = run_two(model_name_or_path=captioner, dataset_name=photographs, output_dir=folder, **DRAWN)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "process 1 of 2: 100%" in finished.stderr
    assert "/9 [" in finished.stderr  # of 16 rows, three of six parts
    assert parts(folder) == parts(whole)


def test_what_was_killed_goes_on_without_a_lost_or_doubled_row(whole, captioner, photographs, tmp_path):
    """Killed on two processes, in the middle of putting a part in its place; one process does the rest."""
    folder = tmp_path / "killed"
    options = DRAWN | {"model_name_or_path": captioner, "dataset_name": photographs, "output_dir": folder}
    finished = run_two("-c", KILLED, "part-000000009", **options)
    assert finished.returncode == -signal.SIGKILL
    there = {path: path.stat().st_mtime_ns for path in folder.glob("data/*/*.parquet")}
    assert 0 < len(there) < len(parts(whole))
    assert list(folder.rglob("*.partial"))
    run("caption_dataset", **options)
    assert parts(folder) == parts(whole)
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert len(rows(folder, "train")) == 11


def test_sentences_of_different_runs_are_not_mixed(whole, captioner, photographs, make_model):
    options = DRAWN | {"model_name_or_path": captioner, "dataset_name": photographs, "output_dir": whole}
    before = parts(whole)
    with pytest.raises(SystemExit, match="differs in `top_p`"):
        run("caption_dataset", **options | {"top_p": 0.5})
    with pytest.raises(SystemExit, match="differs in `dataset`"):
        run("caption_dataset", **options | {"split": "test"})
    make_model(attention_type="additive", initializer_range=0.4).save_pretrained(captioner)
    with pytest.raises(SystemExit, match="differs in `model`"):
        run("caption_dataset", **options)
    assert parts(whole) == before
    run("caption_dataset", **options, overwrite_output_dir=True, split="test")
    assert {Path(name).parts[1] for name in parts(whole)} == {"test"}


def test_a_folder_of_something_else_is_left_alone(captioner, photographs, tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    options = {"model_name_or_path": captioner, "dataset_name": photographs, "output_dir": tmp_path / "mine"}
    with pytest.raises(SystemExit, match="holds other data"):
        run("caption_dataset", **options, overwrite_output_dir=True)


def test_rows_that_name_their_images_keep_the_columns_that_are_asked_for(captioner, photographs, tmp_path):
    lines = ["file_name,place,secret", "03.png,sea,a", "99.png,hill,b", "04.png,sky,c"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    options = {"model_name_or_path": captioner, "dataset_name": tmp_path / "table.csv"} | SMALL
    options |= {"image_dir": photographs / "train", "output_dir": tmp_path / "captioned"}
    run("caption_dataset", **options, keep_columns=["place", "file_name"])
    found = rows(tmp_path / "captioned", "train")
    assert [(row["place"], row["file_name"]) for row in found] == [
        ("sea", "03.png"),
        ("hill", "99.png"),
        ("sky", "04.png"),
    ]
    assert list(found[0]) == ["place", "file_name", "generated_text", "score", "image_error"]
    assert [row["generated_text"] is None for row in found] == [False, True, False]
    assert "`99.png` is not found" in found[1]["image_error"]


def test_a_row_whose_image_is_gone_stays(captioner, photographs, tmp_path):
    """Arrow files name their images, which somebody has moved away since."""
    paths = [str(photographs / "test" / f"{row:02d}.png") for row in range(3)] + [None]
    table = datasets.Dataset.from_dict({"image": paths}, features=datasets.Features(image=datasets.Image()))
    table.to_parquet(tmp_path / "table.parquet")
    Path(paths[1]).unlink()
    run(
        "caption_dataset",
        model_name_or_path=captioner,
        dataset_name=tmp_path / "table.parquet",
        image_dir=photographs,
        output_dir=tmp_path / "captioned",
        **SMALL,
    )
    found = rows(tmp_path / "captioned", "train")
    assert [row["image"] is None for row in found] == [False, True, False, True]
    assert [row["generated_text"] is None for row in found] == [False, True, False, True]
    assert "01.png" in found[1]["image_error"]
    assert found[3]["image_error"] == "the row has no image."


def test_no_file_outside_the_dataset_is_written(captioner, photographs, tmp_path):
    """A row of somebody else's table names a picture, and a file that is none, of the user."""
    (tmp_path / "home").mkdir()
    key, picture = tmp_path / "home" / "id_rsa", photographs / "train" / "03.png"
    key.write_bytes(b"PRIVATE KEY")
    paths = [str(picture), str(key), "../home/id_rsa"]
    columns = {"image": paths, "more": [[path] for path in paths]}
    images = datasets.Image()
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(image=images, more=datasets.List(images)))
    (tmp_path / "data").mkdir()
    pq.write_table(table.data.table, tmp_path / "data" / "table.parquet")
    options = {"model_name_or_path": captioner, "dataset_name": tmp_path / "data", "output_dir": tmp_path / "captioned"}
    run("caption_dataset", **options, **SMALL)
    found = rows(tmp_path / "captioned", "train")
    assert [(row["image"], row["more"], row["generated_text"]) for row in found] == [(None, [None], None)] * 3
    assert all("outside" in row["image_error"] for row in found)
    written = b"".join(path.read_bytes() for path in (tmp_path / "captioned").rglob("*") if path.is_file())
    assert key.read_bytes() not in written


def test_regions_of_a_detector_take_the_place_of_the_images(make_model, tiny_processor, photographs, tmp_path):
    model = make_model(feature_size=5, attention_type="up_down", num_hidden_layers=2, image_injection="none")
    model.save_pretrained(tmp_path / "captioner")
    tiny_processor.save_pretrained(tmp_path / "captioner")
    (tmp_path / "features").mkdir()
    features = [torch.randn(2 + row % 3, 5, generator=torch.Generator().manual_seed(row)) for row in range(10)]
    for row, values in enumerate(features):
        np.save(tmp_path / f"features/{row:02d}.npy", values.numpy())
    options = {"model_name_or_path": tmp_path / "captioner", "dataset_name": photographs, "split": "train"}
    options |= {"output_dir": tmp_path / "captioned", "region_features": tmp_path / "features", "prompt": "a red"}
    run("caption_dataset", **options, **SMALL)
    prompt = tiny_processor(text=["a red"], return_tensors="pt")
    found = rows(tmp_path / "captioned", "train")
    for row, values in zip(found, features, strict=False):
        written = model.generate(image_features=values[None], **prompt, num_beams=3, max_new_tokens=6)
        assert [row["generated_text"]] == tiny_processor.batch_decode(written, skip_special_tokens=True)
    assert "there are no features of it in" in found[10]["image_error"]
    with pytest.raises(SystemExit, match="this captioner reads regions of a detector: pass `region_features`"):
        run("caption_dataset", **{name: value for name, value in options.items() if name != "region_features"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_columns": ["captions"]}, "`keep_columns` names `captions`, but the columns are `image`"),
        ({"split": "dev"}, "`split` is 'dev', but the dataset has the splits"),
        ({"rows_per_part": 0}, "`rows_per_part` is 0: pass 1 or more"),
        ({"region_features": "features"}, "`region_features` is `features`, and this captioner reads images"),
        ({"image_column": "picture"}, "`image_column` is `picture`, but the columns are `image`"),
    ],
)
def test_a_mistake_ends_in_one_sentence(captioner, photographs, tmp_path, options, message):
    folder = tmp_path / "captioned"
    with pytest.raises(SystemExit, match=message):
        run(
            "caption_dataset",
            **{"model_name_or_path": captioner, "dataset_name": photographs, "output_dir": folder} | options,
        )
    assert not folder.exists()


def test_captions_of_an_earlier_captioner_are_not_written_over(whole, captioner, tmp_path):
    options = {"model_name_or_path": captioner, "dataset_name": whole, "output_dir": tmp_path / "again"}
    with pytest.raises(SystemExit, match=r"has `generated_text`, .* already: leave it out with --keep_columns image"):
        run("caption_dataset", **options)
    run("caption_dataset", **options, keep_columns=["image"], max_predict_samples=2, **SMALL)
    assert {split: len(rows(tmp_path / "again", split)) for split in SPLITS} == {"train": 2, "test": 2}


def test_what_was_written_is_pushed(captioner, photographs, tmp_path):
    folder = tmp_path / "captioned"
    options = {"model_name_or_path": captioner, "dataset_name": photographs, "output_dir": folder, **SMALL}
    options |= {"push_to_hub": True, "hub_dataset_id": "me/captioned", "hub_private_repo": True}
    with LocalHub(tmp_path / "repositories") as hub:
        finished = run_python(*command("caption_dataset", **options), env=hub.environment(tmp_path / "home"))
        assert finished.returncode == 0, finished.stderr[-2000:]
        repository = hub.store.load("dataset", "me/captioned")
        _, files = hub.store.files("dataset", "me/captioned", "main")
        contents = {name: hub.store.blob(file["sha256"]) for name, file in files.items()}
    assert repository["private"]
    for split in SPLITS:
        pushed = pyarrow.parquet.read_table(contents[f"data/{split}-00000-of-00001.parquet"]).to_pylist()
        assert pushed == rows(folder, split)
    card = contents["README.md"].read_text()
    assert "dataset_info" in card
    assert "sentences that a model wrote" in card
    assert "`photographs`" in card
    assert str(tmp_path) not in card
