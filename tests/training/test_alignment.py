"""The training of alignments: from options to a model that finds its images, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from support.example_scripts import run
from support.paths import EXAMPLES
from support.tiny_training import TINY_CNN, weights
from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetModel

from modeling_cnnrnn import CnnRnnAlignmentProcessor, CnnRnnForImageTextRetrieval
from modeling_cnnrnn.data.batching import CaptionDataset, collate_captions
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.data.shapes import boxes_of
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.evaluation.alignment_scores import score_dataset
from modeling_cnnrnn.evaluation.shapes_pointing import point_words, pointing_scores
from modeling_cnnrnn.training.alignment import build_alignment, build_alignment_datasets
from modeling_cnnrnn.training.alignment_arguments import (
    AlignmentDataArguments,
    AlignmentModelArguments,
    AlignmentTrainingArguments,
    check_alignment_options,
)
from modeling_cnnrnn.training.alignment_trainer import AlignmentTrainer
from modeling_cnnrnn.training.captioning import load_splits
from modeling_cnnrnn.training.tracking import create_accelerator


pytestmark = pytest.mark.usefixtures("blank_pictures")


TINY = {
    "encoder_config": json.dumps(TINY_CNN),
    "image_size": 32,
    "min_frequency": 1,
    "hidden_size": 8,
    "embedding_size": 16,
    "word_embedding_size": 8,
    "rnn_type": "window",
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "eval_epochs": 0.5,
    "save_total_limit": 9,
}


def options_of(**values):
    kinds = (AlignmentDataArguments, AlignmentModelArguments, AlignmentTrainingArguments)
    fields = [kind.__dataclass_fields__ for kind in kinds]
    assert values.keys() <= {name for names in fields for name in names}
    return [
        kind(**{name: value for name, value in values.items() if name in names})
        for kind, names in zip(kinds, fields, strict=True)
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    build_shapes(num_train=13, num_validation=6, num_test=2, image_size=32).save_to_disk(folder)
    return folder


@pytest.fixture
def make_trainer(pictures, tmp_path):
    def make(**options) -> AlignmentTrainer:
        values = {**TINY, "dataset_name": str(pictures), "output_dir": str(tmp_path / "output"), **options}
        data_args, model_args, args = options_of(**values)
        accelerator = create_accelerator(args)
        train_rows, eval_rows = load_splits(data_args, args.seed, accelerator)
        torch.manual_seed(0)
        model, processor = build_alignment(data_args, model_args, train_rows["captions"][:])
        if model_args.freezes_encoder:
            model.freeze_encoder()
        datasets = build_alignment_datasets(
            model, processor, train_rows, eval_rows, data_args, model_args, args, accelerator
        )
        return AlignmentTrainer(model, processor, *datasets, accelerator, args)

    return make


def test_a_training_that_was_killed_goes_on_bit_by_bit(pictures, tmp_path, monkeypatch):
    """In the middle of an epoch, whose last batch is one image alone, with dropout and an average."""
    options = TINY | {"dataset_name": pictures, "captions_per_image": 2, "max_train_steps": 8}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run("train_alignment", output_dir=whole, **options)
    step, calls = torch.optim.AdamW.step, []

    def killed(*args, **kwargs):
        calls.append(0)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", killed)
        with pytest.raises(SystemExit, match="resume_from_checkpoint latest"):
            run("train_alignment", output_dir=stopped, **options)
    run("train_alignment", output_dir=stopped, resume_from_checkpoint="latest", **options)
    states = [json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text()) for folder in (whole, stopped)]
    assert [row["loss"] for row in states[0]["steps"]] == [row["loss"] for row in states[1]["steps"]]
    assert states[0]["evaluations"] == states[1]["evaluations"]
    for name, tensor in weights(whole / "checkpoint-8").items():
        assert torch.equal(weights(stopped / "checkpoint-8")[name], tensor)
    assert CnnRnnForImageTextRetrieval.from_pretrained(stopped).config.rnn_type == "window"

    # what the page that evaluates makes of it: an ensemble of twice the same model has its ranks
    run(
        "evaluate_alignment",
        dataset_name=pictures,
        split="validation",
        output_dir=tmp_path / "one",
        model_name_or_path=[stopped],
    )
    models = {"model_name_or_path": [stopped, stopped], "hub_split": "train"}
    run("evaluate_alignment", dataset_name=pictures, split="validation", output_dir=tmp_path / "two", **models)
    one, two = (json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("one", "two"))
    assert one["alignment"] == two["alignment"]
    assert one["alignment"]["rsum"] == pytest.approx(states[0]["evaluations"][-1]["rsum"])
    assert two["less hubs"]["text_to_image_R@1"] == one["alignment"]["text_to_image_R@1"]
    assert "comes first for each image" in (tmp_path / "one" / "gallery.html").read_text()


def batch_of(trainer, *rows: int) -> dict:
    trainer.stage = trainer.stage_at(0)
    return trainer.prepare_inputs(collate_captions([trainer.train_dataset[row] for row in rows]))


def test_captions_are_ranked_above_those_of_other_images_alone(make_trainer):
    trainer = make_trainer(captions_per_image=2)
    trainer.train_dataset.labels[1] = trainer.train_dataset.labels[1][:1]
    trainer.train_dataset.labels[2] = []
    trainer.model.eval()
    batch = batch_of(trainer, 0, 1, 2, 3)
    assert batch["labels"].tolist() == [0, 0, 1, 2, 2]
    assert {name: int(count) for name, count in trainer.count_items(batch).items()} == {"captions": 5, "images": 3}
    logits = trainer.model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"]).logits_per_image
    total = 0.0
    for caption, own in enumerate(batch["labels"].tolist()):
        others = [other for other, image in enumerate(batch["labels"].tolist()) if image != own]
        total -= logits[own, [caption, *others]].log_softmax(0)[0] / 2
        total -= logits[:, caption].log_softmax(0)[own] / 2
    loss = trainer.compute_loss(trainer.model, batch, torch.tensor(10))
    torch.testing.assert_close(loss, total / 10)


def test_an_image_alone_in_a_batch_teaches_nothing(make_trainer):
    trainer = make_trainer()
    trainer.train_dataset.labels[2] = []
    for rows in ((1,), (1, 2), (2,)):
        batch = batch_of(trainer, *rows)
        loss = trainer.compute_loss(trainer.model, batch, torch.tensor(1))
        assert loss.item() == 0
        assert int(trainer.count_items(batch)["captions"]) == 0
        loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_an_evaluation_scores_each_pair(make_trainer):
    trainer = make_trainer()
    data = trainer.eval_dataset
    data.labels[1], data.broken[2] = [], "torn"
    data.labels[3] = data.labels[3][:2]
    found = score_dataset(trainer.model, data, batch_size=4)
    assert found.rows == [0, 3, 4, 5]
    assert found.captions_per_image == [5, 2, 5, 5]
    assert found.broken == {2: "torn"}
    model = trainer.model.eval()
    with torch.no_grad():
        for place, row in enumerate(found.rows):
            image = model.get_image_features(data[row]["pixel_values"][None])
            captions = [caption for other in found.rows for caption in data.labels[other]]
            for column, caption in enumerate(captions):
                pair = model.similarity(image, model.get_text_features(torch.tensor([caption])))
                assert found.scores[place, column] == pytest.approx(pair.item(), abs=1e-5)
    assert set(trainer.evaluate()) >= {"rsum", "image_to_text_R@1", "text_to_image_median_rank"}


def test_reduced_and_averaged_features_are_what_the_model_sees(make_trainer, tmp_path):
    """Features that are averaged when they are stored, and reduced in memory, score as the images do."""
    cnn = ResNetModel(ResNetConfig(**{**TINY_CNN, "hidden_sizes": [8, 8]}))
    cnn.save_pretrained(tmp_path / "cnn")
    ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path / "cnn")
    trainer = make_trainer(
        encoder_config=None,
        encoder_name_or_path=str(tmp_path / "cnn"),
        cache_image_features=True,
        region_grid_size=2,
        reduced_feature_size=5,
    )
    assert trainer.train_dataset.image_features[0].shape == (13, 4, 5)
    stored = score_dataset(trainer.model, trainer.eval_dataset).scores
    trainer.eval_dataset.image_features = None
    torch.testing.assert_close(stored, score_dataset(trainer.model, trainer.eval_dataset).scores, atol=1e-2, rtol=0)


def test_an_alignment_needs_two_images(make_trainer):
    with pytest.raises(ValueError, match=r"1 images of the training split .* two or more"):
        make_trainer(max_train_samples=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 1}, "`per_device_train_batch_size` is 1: pass 2 or more"),
        ({"reduced_feature_size": 8}, "`reduced_feature_size` needs stored features"),
        ({"cache_image_features": True}, "`cache_image_features` needs a frozen CNN"),
        ({"model_name_or_path": "mine", "rnn_type": "lstm"}, "`rnn_type` is 'lstm', which has no effect"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_alignment_options(*options_of(dataset_name="shapes", **options))


@pytest.mark.parametrize("name", ["shapes", "flickr8k", "flickr8k_paper"])
def test_every_option_of_a_recipe_has_an_effect(name):
    recipe = json.loads((EXAMPLES / "recipes" / f"{name}_alignment.json").read_text())
    recipe["encoder_config"] = json.dumps(recipe["encoder_config"]) if "encoder_config" in recipe else None
    start = {} if name == "shapes" else {"encoder_name_or_path": "path", "dataset_name": "path"}
    check_alignment_options(*options_of(**recipe, **start))


@pytest.mark.slow
def test_words_point_at_the_drawn_object_that_they_name(tmp_path):
    """Of combinations of objects that the training has not shown, and never told where anything is."""
    recipe = str(EXAMPLES / "recipes" / "shapes_alignment.json")
    run("train_alignment", recipe, output_dir=tmp_path / "model", seed=1)
    model = CnnRnnForImageTextRetrieval.from_pretrained(tmp_path / "model")
    processor = CnnRnnAlignmentProcessor.from_pretrained(tmp_path / "model")
    rows = load_caption_dataset("shapes")["test"]
    pointed = point_words(model, CaptionDataset(rows, processor), rows["captions"][:], boxes_of(rows))
    scores = pointing_scores(pointed)
    assert scores["pointing"] > 0.85
    assert scores["pointing_color"] > 0.95
    assert scores["pointing_kind"] > 0.90
    assert scores["pointing_chance"] < 0.25
