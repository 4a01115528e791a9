"""The table of the captioners of the papers: each trained once, whenever it is asked for."""

import json
import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.paths import EXAMPLES

from modeling_cnnrnn.models.architectures_cnnrnn import ARCHITECTURES


@pytest.mark.slow
def test_each_captioner_is_trained_once_for_each_seed_and_stands_in_the_table(
    make_model, tiny_processor, pictures, tmp_path, monkeypatch, capsys
):
    trained = []

    def run(words: list[str]) -> SimpleNamespace:
        options = dict(pairwise(words))
        trained.append((options["--architecture"], options["--seed"]))
        folder = Path(options["--output_dir"])
        for part in (make_model(**ARCHITECTURES[options["--architecture"]]), tiny_processor):
            part.save_pretrained(folder)
        evaluations = [{"CIDEr": 0.0, "BLEU-4": 0.0}, {"CIDEr": int(options["--seed"]) / 10, "BLEU-4": 0.2}]
        (folder / "training_results.json").write_text(json.dumps({"evaluations": evaluations}))
        return SimpleNamespace(returncode=0)

    names = runpy.run_path(str(EXAMPLES / "benchmarks" / "compare_architectures.py"))
    names["main"].__globals__["subprocess"] = SimpleNamespace(run=run)
    words = [
        "--dataset_name",
        pictures,
        "--encoder_name_or_path",
        "cnn",
        "--output_dir",
        tmp_path / "table",
    ]
    words += ["--architectures", "nic", "att2in", "--seeds", 3, 5, "--num_timed_images", 2]
    monkeypatch.setattr("sys.argv", ["compare_architectures.py", *map(str, words)])
    for times in (1, 2):
        names["main"]()
        assert trained == [("nic", "3"), ("att2in", "3"), ("nic", "5"), ("att2in", "5")], times
    table = (tmp_path / "table" / "architectures.md").read_text()
    assert table in capsys.readouterr().out
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| `nic`", "| `att2in`"]
    assert [row[2:4] for row in rows] == [["0.400 ± 0.100", "0.200 ± 0.000"]] * 2
    assert all(float(row[4]) > 0 for row in rows)
