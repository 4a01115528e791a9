"""Regions of drawn pictures: a dataset of them, a captioner that learns from it, and what it says of regions it has not seen."""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from PIL import Image
from support.example_scripts import run
from support.tiny_training import TINY_CNN

from modeling_cnnrnn import (
    CnnRnnAlignmentConfig,
    CnnRnnAlignmentProcessor,
    CnnRnnForConditionalGeneration,
    CnnRnnForImageTextRetrieval,
    CnnRnnProcessor,
    build_tokenizer,
)
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.data.shapes.language import checker
from modeling_cnnrnn.evaluation.region_captions import caption_regions
from modeling_cnnrnn.evaluation.region_dataset import write_region_dataset


QUARTERS = [(0.0, 0.0, 32.0, 32.0), (32.0, 0.0, 64.0, 32.0), (0.0, 32.0, 32.0, 64.0), (32.0, 32.0, 64.0, 64.0)]
# boxes that cut through quarters
BETWEEN = [(16.0, 0.0, 48.0, 32.0), (0.0, 16.0, 32.0, 48.0), (32.0, 16.0, 64.0, 48.0), (16.0, 32.0, 48.0, 64.0)]


@pytest.fixture
def aligner(pictures, tmp_path) -> Path:
    """A tiny alignment model that knows the words of the pictures."""
    tokenizer = build_tokenizer(datasets.load_from_disk(str(pictures))["train"]["captions"], min_frequency=1)
    sizes = {"hidden_size": 8, "embedding_size": 8, "word_embedding_size": 8}
    config = CnnRnnAlignmentConfig.from_tokenizer(tokenizer, encoder=TINY_CNN, initializer_range=0.5, **sizes)
    CnnRnnForImageTextRetrieval(config).save_pretrained(tmp_path / "aligner")
    CnnRnnAlignmentProcessor.from_image_size(32, tokenizer).save_pretrained(tmp_path / "aligner")
    return tmp_path / "aligner"


def test_regions_are_made_and_described(aligner, pictures, trained, tmp_path, capsys):
    regions = tmp_path / "regions"
    run(
        "make_region_dataset",
        model_name_or_path=aligner,
        dataset_name=pictures,
        output_dir=regions,
        max_samples=4,
        min_words=1,
        min_score=-1.0,
        smoothness=0.1,
    )
    said = capsys.readouterr().out
    for split in ("train", "validation"):
        lines = [json.loads(line) for line in (regions / split / "metadata.jsonl").read_text().splitlines()]
        assert f"{split}: {len(lines)} regions" in said
        assert len({line["source"] for line in lines}) == 4
    picture = tmp_path / "picture.png"
    datasets.load_from_disk(str(pictures))["test"][0]["image"].save(picture)
    figure = tmp_path / "regions.png"
    capsys.readouterr()
    run("caption_regions", str(picture), model_name_or_path=trained, max_regions=3, output=figure)
    assert 1 <= len(capsys.readouterr().out.splitlines()) <= 3
    assert Image.open(figure).format == "PNG"


def mosaics(rows: datasets.Dataset) -> Iterator[tuple[list[int], Image.Image]]:
    """Pictures of four drawn pictures each, with their numbers."""
    for start in range(0, len(rows) - 3, 4):
        numbers = list(range(start, start + 4))
        mosaic = Image.new("RGB", (64, 64))
        for box, number in zip(QUARTERS, numbers, strict=True):
            mosaic.paste(rows[number]["image"], (int(box[0]), int(box[1])))
        yield numbers, mosaic


@pytest.mark.slow
def test_regions_that_were_not_seen_are_described_rightly(tmp_path, monkeypatch):
    """A captioner of quarters that learned from their snippets describes new ones, and finds them among other boxes."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    drawn = build_shapes(num_train=2000, num_validation=80, num_test=80, image_size=32)
    for split in ("train", "validation"):
        rows = drawn[split]
        pictures = (
            (str(numbers), mosaic, [(b, c, 1.0) for b, n in zip(QUARTERS, numbers, strict=True) for c in rows[n]["captions"]])
            for numbers, mosaic in mosaics(rows)
        )  # fmt: skip
        write_region_dataset(tmp_path / "regions" / split, pictures)
    options = json.loads((Path(__file__).parents[2] / "examples" / "recipes" / "shapes.json").read_text())
    options["encoder_config"] |= {"embedding_size": 16, "hidden_sizes": [16, 32, 64]}
    options |= {"dataset_name": str(tmp_path / "regions"), "image_size": 32, "min_frequency": 1, "eval_epochs": 8}
    options |= {"hidden_size": 128, "embedding_size": 64, "attention_size": 64, "num_train_epochs": 8}
    (tmp_path / "recipe.json").write_text(json.dumps(options))
    run("train_captioner", str(tmp_path / "recipe.json"), output_dir=tmp_path / "captioner")

    model = CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "captioner").eval()
    processor = CnnRnnProcessor.from_pretrained(tmp_path / "captioner")
    rows = drawn["validation"]
    is_right = checker(rows["scene"][:])
    own, others, found = [], [], []
    for numbers, mosaic in mosaics(rows):
        texts = {region["box"]: region["text"] for region in caption_regions(model, processor, mosaic, QUARTERS)}
        for place, box in enumerate(QUARTERS):
            own.append(is_right(texts[box], numbers[place]))
            others.append(is_right(texts[box], numbers[(place + 1) % 4]))
        best = caption_regions(model, processor, mosaic, [*QUARTERS, *BETWEEN], iou_threshold=0.2)
        found += [region["box"] in QUARTERS for region in best[:4]]
    # the sentences are right to the last word, after 500 steps: 20 of 80 of their own quarter, 0 of the next; 71 of 80 found
    assert sum(own) > 12
    assert sum(others) < 3
    assert sum(found) > 60
