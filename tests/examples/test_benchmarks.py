"""The benchmarks of training and of the alignment: what they compare computes the same, and no floor is a guess."""

import json
import re
import runpy
import sys
from argparse import Namespace

import pytest
import torch
from support.paths import EXAMPLES
from torch.utils.flop_counter import FlopCounterMode


SCRIPT = EXAMPLES / "benchmarks" / "benchmark_training.py"
SIZES = {"vocab_size": 30, "hidden_size": 8, "seed": 0}


@pytest.fixture(scope="module")
def benchmark() -> dict:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(params=["none", "additive"])
def captioner(request, benchmark):
    """The model of the benchmark, tiny."""
    return benchmark["make_model"](Namespace(**SIZES), request.param)


def test_the_plain_way_learns_the_same(captioner, benchmark):
    plain = benchmark["PerStepCaptioner"](captioner)
    labels = torch.tensor(
        [[[4, 5, 6, 7, 2], [8, 2, -100, -100, -100]], [[9, 4, 2, -100, -100], [5, 2, -100, -100, -100]]]
    )
    num_regions = 1 if captioner.config.attention_type == "none" else 49
    image_features = torch.rand(2, num_regions, 2048)
    losses = [benchmark["take_step"](way, labels, image_features=image_features) for way in (captioner, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    gradients = (captioner.model.encoder.projection.weight.grad, plain.image.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_floor_counts_each_product_of_a_step_once(benchmark):
    captioner = benchmark["make_model"](Namespace(**SIZES), "additive")
    plain = benchmark["PerStepCaptioner"](captioner)
    labels = torch.full((3, 1, 6), 4)  # without padding and copies of images, the plain way does no more than it must
    with FlopCounterMode(display=False) as counter:
        benchmark["take_step"](plain, labels, image_features=torch.rand(3, 49, 2048))
    products = benchmark["matrix_products"](captioner.config, labels)
    assert sum(2 * m * k * n * count for (m, k, n), count in products.items()) == counter.get_total_flops()


def test_the_benchmark_prints_its_ratios(monkeypatch, capsys):
    options = ["--batch_sizes", "2", "--captions_per_image", "2", "--num_rounds", "1", "--image_size", "32"]
    options += [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    sections = ["training_step", "shared_images", "bucketing", "optimizer"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--sections", *sections])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert len(re.findall(r"\d+\.\d\dx", capsys.readouterr().out)) == 2 * 3 + 2 + 4 + 1


def test_the_benchmark_of_the_alignment_prints_its_ratios(monkeypatch, capsys):
    sizes = {"num_images": 4, "num_aligned": 5, "num_aligned_regions": 3, "embedding_size": 8, "num_rounds": 1}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    script = SCRIPT.with_name("benchmark_alignment.py")
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    runpy.run_path(str(script), run_name="__main__")
    output = capsys.readouterr().out
    assert len(re.findall(r"\d+\.\dx", output)) == 2
    assert re.search(r"\d+ sentences a second over 3 regions", output)


def test_the_benchmark_of_generation_compares_the_same_sentences(monkeypatch, capsys):
    options = "--vocab_size 30 --hidden_size 8 --max_new_tokens 3 --num_regions 4 --batch_sizes 2 --num_beams 1 2 --num_rounds 1"
    monkeypatch.setattr(sys, "argv", ["benchmark_generation.py", *options.split()])
    runpy.run_path(str(EXAMPLES / "benchmarks" / "benchmark_generation.py"), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [
        [f"| {attention_type}", beams, "2"] for attention_type in ("none", "additive") for beams in "12"
    ]


@pytest.mark.slow
def test_an_ensemble_of_the_same_captioner_searches_as_it_alone(trained, pictures, tmp_path, monkeypatch, capsys):
    script, output = EXAMPLES / "benchmarks" / "benchmark_searches.py", tmp_path / "searches.json"
    words = ["--dataset_name", pictures, "--model_name_or_path", trained, "--output", output]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words), "--ensemble", ",".join([str(trained)] * 3)])
    runpy.run_path(str(script), run_name="__main__")
    results = json.loads(output.read_text())["results"]
    for way in ("greedy", "beam 3", "beam 5"):
        assert results[f"3 captioners, {way}"]["CIDEr"] == pytest.approx(results[way]["CIDEr"])
    assert "| 3 captioners, beam 3, log_probabilities | " in capsys.readouterr().out


def test_an_ensemble_of_other_words_is_refused_before_the_work(tiny_model, tiny_processor, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    script = EXAMPLES / "benchmarks" / "benchmark_searches.py"
    words = [
        "--dataset_name",
        "nowhere",
        "--model_name_or_path",
        str(tmp_path),
        "--ensemble",
        f"{tmp_path},flickr8k-mobilenet",
    ]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit, match="Captioner 1 has other words than the first"):
        runpy.run_path(str(script), run_name="__main__")
