"""The page that captions a folder of images: what it prints and writes, and what it refuses."""

from pathlib import Path

import pytest
from PIL import Image
from support.example_scripts import run


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "below").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    Image.new("L", (30, 40)).save(folder / "below" / "b.jpg")
    (folder / "c.jpg").write_text("no picture")
    (folder / "readme.txt").write_text("no picture, and not called one")
    return folder


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_folder_is_captioned_with_its_file_names(ending, trained, photographs, tmp_path, capsys):
    import pandas

    output = tmp_path / f"captions.{ending}"
    run("caption_images", model_name_or_path=trained, images=photographs, output=output, num_return_sequences=2)
    read = {"csv": pandas.read_csv, "jsonl": lambda p: pandas.read_json(p, lines=True), "parquet": pandas.read_parquet}
    table = read[ending](output)
    assert [Path(name).name for name in table["file_name"]] == ["a.png", "a.png", "b.jpg", "b.jpg"]
    printed = capsys.readouterr()
    assert "a.png: " in printed.out
    assert "1 of 3 images could not be read" in printed.err
    assert "c.jpg" in printed.err


def test_captions_begin_with_the_prompt(trained, photographs, capsys):
    run("caption_images", model_name_or_path=trained, images=photographs / "a.png", prompt="a red")
    assert "a.png: a red" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": "nowhere"}, "does not exist"),
        ({"output": "captions.txt"}, "ends in"),
        ({"model_name_or_path": "no/such/model"}, "no/such/model"),
    ],
)
def test_a_mistake_ends_captioning_with_one_sentence(options, sentence, trained, photographs):
    with pytest.raises(SystemExit) as stop:
        run("caption_images", **({"model_name_or_path": trained, "images": photographs} | options))
    assert sentence in stop.value.code
