"""The scripts, run as they stand on a few drawn pictures: what they write, resume, refuse and survive."""

import errno
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.data.shapes import build_shapes
from modeling_cnnrnn.metrics import caption_metrics


EXAMPLES = Path(__file__).parent.parent / "examples"
TINY_CNN = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8, 8],
    "depths": [1, 1],
}
TINY = {
    "encoder_config": json.dumps(TINY_CNN),
    "image_size": 32,
    "hidden_size": 16,
    "embedding_size": 16,
    "attention_size": 16,
    "attention_type": "additive",
    "min_frequency": 1,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "eval_epochs": 0.5,
    "save_total_limit": 9,
}


def run(script: str, *arguments: str, **options) -> None:
    """`python examples/{script}.py arguments --option value ...`, in this process."""
    words = [str(EXAMPLES / f"{script}.py"), *arguments]
    for name, value in options.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    before, sys.argv = sys.argv, words
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.argv = before


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    """Loss at each step up to the last checkpoint, and those on the validation split."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    return [row["loss"] for row in state["steps"]] + [row["loss"] for row in state["evaluations"]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    build_shapes(num_train=24, num_validation=6, num_test=6, image_size=32).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "captioner"
    run("train_captioner", dataset_name=pictures, output_dir=folder, num_train_epochs=2, **TINY)
    return folder


def test_training_ends_with_a_folder_that_from_pretrained_loads(trained):
    model = CnnRnnForConditionalGeneration.from_pretrained(trained)
    processor = CnnRnnProcessor.from_pretrained(trained)
    inputs = processor(images=Image.new("RGB", (50, 40)), return_tensors="pt")
    (caption,) = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    assert isinstance(caption, str)
    assert model.config.vocab_size == len(processor.tokenizer)


def test_training_leaves_curves_and_pictures_to_look_at(trained):
    assert Image.open(trained / "training_curves.png").width > 300
    assert len(list((trained / "samples").glob("step-*.png"))) == 4


def test_the_folder_holds_the_checkpoint_with_the_best_cider(trained):
    results = json.loads((trained / "training_results.json").read_text())
    best = max(results["evaluations"], key=lambda row: row["CIDEr"])
    assert results["best"] == best
    saved = weights(trained / f"checkpoint-{best['step']}")
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights(trained).items())


def test_the_same_seed_gives_the_same_run(trained, pictures, tmp_path):
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path, num_train_epochs=2, **TINY)
    assert losses(tmp_path) == losses(trained)
    assert all(torch.equal(weights(tmp_path)[name], tensor) for name, tensor in weights(trained).items())


def test_a_training_that_was_killed_goes_on_bit_by_bit(trained, pictures, tmp_path):
    """Stopped in the middle of an epoch, two steps after its last checkpoint, and of augmentation and dropout."""
    options = TINY | {"random_crop": True, "gradient_accumulation_steps": 1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run("train_captioner", dataset_name=pictures, output_dir=whole, max_train_steps=8, **options)
    step = torch.optim.AdamW.step
    calls = []

    def killed(*args, **kwargs):
        calls.append(0)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    torch.optim.AdamW.step = killed
    try:
        with pytest.raises(SystemExit, match="resume_from_checkpoint latest"):
            run("train_captioner", dataset_name=pictures, output_dir=stopped, max_train_steps=8, **options)
    finally:
        torch.optim.AdamW.step = step
    run(
        "train_captioner",
        dataset_name=pictures,
        output_dir=stopped,
        max_train_steps=8,
        resume_from_checkpoint="latest",
        **options,
    )
    assert losses(stopped) == losses(whole)
    assert all(
        torch.equal(weights(stopped / "checkpoint-8")[name], tensor)
        for name, tensor in weights(whole / "checkpoint-8").items()
    )


def test_accumulated_steps_learn_what_one_large_batch_learns(pictures, tmp_path):
    options = TINY | {"dropout": 0.0, "max_train_steps": 3, "lr_scheduler_type": "constant", "eval_epochs": 1}
    # BatchNorm sees each small batch alone, so the CNN is one without
    options["encoder_config"] = json.dumps(
        {"model_type": "convnext", "hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    )
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path / "one", **options)
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run("train_captioner", dataset_name=pictures, output_dir=tmp_path / "two", **options)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_frozen_cnn_is_learned_from_through_stored_features(trained, pictures, tmp_path):
    CnnRnnForConditionalGeneration.from_pretrained(trained).get_encoder().cnn.save_pretrained(tmp_path / "cnn")
    CnnRnnProcessor.from_pretrained(trained).image_processor.save_pretrained(tmp_path / "cnn")
    options = {name: value for name, value in TINY.items() if name not in ("encoder_config", "image_size")}
    for store in (True, False):
        run(
            "train_captioner",
            dataset_name=pictures,
            output_dir=tmp_path / str(store),
            encoder_name_or_path=tmp_path / "cnn",
            cache_image_features=store,
            max_train_steps=4,
            **options,
        )
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-2)
    before = load_file(tmp_path / "cnn" / "model.safetensors")
    after = weights(tmp_path / "False")
    assert all(torch.equal(after[f"model.encoder.cnn.{name}"], tensor) for name, tensor in before.items())


def test_a_captioner_is_trained_on(trained, pictures, tmp_path):
    options = {"dataset_name": pictures, "output_dir": tmp_path, "max_train_steps": 1, "preload_images": True}
    run("train_captioner", model_name_or_path=trained, freeze_encoder=False, **options)
    assert CnnRnnForConditionalGeneration.from_pretrained(tmp_path).config.hidden_size == 16


def test_a_recipe_gives_options_that_the_command_line_changes(pictures, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(TINY | {"rnn_type": "gru", "max_train_steps": 50, "encoder_config": TINY_CNN}))
    run("train_captioner", str(recipe), dataset_name=pictures, output_dir=tmp_path / "out", max_train_steps=1)
    assert CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "out").config.rnn_type == "gru"


def test_a_full_disk_loses_only_the_checkpoint_being_written(pictures, tmp_path, monkeypatch):
    from accelerate import Accelerator

    save_state, saves = Accelerator.save_state, []

    def full_at_the_second(self, folder, **kwargs):
        saves.append(folder)
        if len(saves) == 2:
            Path(folder, "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_state(self, folder, **kwargs)

    monkeypatch.setattr(Accelerator, "save_state", full_at_the_second)
    with pytest.raises(SystemExit, match="No space left"):
        run("train_captioner", dataset_name=pictures, output_dir=tmp_path, max_train_steps=6, **TINY)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert weights(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset_name": "no/such/folder"}, "no such file or folder"),
        ({"train_split": "training"}, "has the splits"),
        ({"caption_column": "sentences"}, "sentences"),
        ({"cache_image_features": True}, "needs a frozen CNN"),
        ({"rnn_type": "transformer"}, "rnn_type"),
        ({"resume_from_checkpoint": "nowhere"}, "trainer_state.json"),
        ({"min_frequency": 10000}, "min_frequency"),
        ({"tie_word_embeddings": True, "embedding_size": 8}, "tie_word_embeddings"),
    ],
)
def test_a_mistake_ends_training_with_one_sentence(options, sentence, pictures, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run("train_captioner", **(TINY | {"dataset_name": pictures, "output_dir": tmp_path} | options))
    assert sentence in stop.value.code
    assert stop.value.code.startswith("Error: ")


def test_a_dataset_without_captions_is_refused_with_its_columns(pictures, tmp_path):
    from datasets import load_from_disk

    load_from_disk(pictures).remove_columns(["captions", "scene"]).save_to_disk(tmp_path / "bare")
    with pytest.raises(SystemExit, match="image_id"):
        run("train_captioner", dataset_name=tmp_path / "bare", output_dir=tmp_path / "out", **TINY)


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
