"""The scripts, run as they stand on a few drawn pictures: what they write, refuse and survive."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.example_scripts import run

from modeling_cnnrnn.metrics import caption_metrics


@pytest.fixture(scope="module")
def evaluated(trained, pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    run(
        "evaluate_captioner",
        model_name_or_path=trained,
        dataset_name=pictures,
        split="test",
        num_beams=[1, 3],
        output_dir=folder,
    )
    return folder


def test_evaluation_writes_scores_beside_their_protocol(evaluated):
    content = json.loads((evaluated / "eval_results.json").read_text())
    assert set(content["results"]["beam 3"]) > {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr", "accuracy"}
    assert content["results"]["perplexity"] > 1
    protocol = content["protocol"]
    assert (protocol["split"], protocol["num_images"], protocol["num_references"]) == ("test", 6, 30)
    assert protocol["num_beams"] == [1, 3]
    assert "torch" in protocol["versions"]


def test_the_results_file_scores_the_same_again(evaluated):
    results = json.loads((evaluated / "captions_results.json").read_text())
    references: dict = {}
    for annotation in json.loads((evaluated / "captions_references.json").read_text())["annotations"]:
        references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    scores = caption_metrics({row["image_id"]: row["caption"] for row in results}, references)
    written = json.loads((evaluated / "eval_results.json").read_text())["results"]["beam 3"]
    assert scores["CIDEr"] == pytest.approx(written["CIDEr"], abs=1e-12)


def test_evaluation_writes_each_image_and_a_page(evaluated):
    rows = [json.loads(line) for line in (evaluated / "per_image.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {"caption", "references", "log_probability", "CIDEr", "is_correct"} <= rows[0].keys()
    assert (evaluated / "gallery.html").read_text().count(rows[0]["references"][0]) >= 1


def test_evaluation_refuses_a_split_that_is_not_there(trained, pictures, tmp_path):
    with pytest.raises(SystemExit, match="has the splits"):
        run("evaluate_captioner", model_name_or_path=trained, dataset_name=pictures, split="dev", output_dir=tmp_path)


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
