"""The page that evaluates a captioner: what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
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
