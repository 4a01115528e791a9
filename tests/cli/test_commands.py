"""The command `cnnrnn`: what it prints and where, its exit statuses, and that it is ready before a second."""

import importlib
import json
import os
import resource
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image
from support.command import cnnrnn
from support.paths import ROOT

from modeling_cnnrnn import CnnRnnForConditionalGeneration, pipeline
from modeling_cnnrnn.cli import errors
from modeling_cnnrnn.cli.main import VERBS, app
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.evaluation.provenance import command_line
from modeling_cnnrnn.metrics import caption_metrics


DATASET = ("caption", "--dataset_name", "photographs")
COMMANDS = [*((verb,) for verb in VERBS), DATASET]


def option_classes(words, monkeypatch) -> list[type]:
    """The dataclasses from which a command takes its options."""
    module = importlib.import_module(f"modeling_cnnrnn.cli.{words[0]}")
    classes: list[type] = []

    def parse_arguments(dataclasses, *_):
        classes.extend(dataclasses)
        sys.exit(0)

    monkeypatch.setattr(module, "parse_arguments", parse_arguments)
    with pytest.raises(SystemExit):
        module.main(words[1:])
    return classes


@pytest.fixture
def captioner(tmp_path, model, tiny_processor) -> Path:
    model.save_pretrained(tmp_path / "captioner")
    tiny_processor.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Two photographs, and between them a file that is none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.radial_gradient("L").save(folder / "a.png")
    (folder / "b.jpg").write_text("no picture")
    Image.linear_gradient("L").save(folder / "c.png")
    return folder


@pytest.fixture
def sentence(captioner):
    """What the pipeline writes about an image."""
    pipe = pipeline("image-to-text", model=str(captioner))
    return lambda path: pipe(str(path), generate_kwargs={"num_beams": 3})[0]["generated_text"]


def test_one_picture_prints_its_sentence_and_nothing_else(captioner, photographs, sentence, capfd):
    assert cnnrnn("caption", photographs / "a.png", "--model_name_or_path", captioner) == 0
    printed = capfd.readouterr()
    assert printed.out == sentence(photographs / "a.png") + "\n"
    assert "it/s" not in printed.err  # no bar for one picture
    assert "image/s" not in printed.err


def test_several_pictures_print_a_line_each_and_the_broken_one_is_named(captioner, photographs, sentence, capfd):
    assert cnnrnn("caption", photographs, "--model_name_or_path", captioner) == 1
    printed = capfd.readouterr()
    assert printed.out.splitlines() == [f"{photographs / n}: {sentence(photographs / n)}" for n in ("a.png", "c.png")]
    assert f"{photographs / 'b.jpg'} could not be read: " in printed.err
    assert "2 of 3 images are captioned." in printed.err


def test_a_picture_that_cannot_be_read_prints_nothing(captioner, photographs, capfd):
    assert cnnrnn("caption", photographs / "b.jpg", "--model_name_or_path", captioner) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "b.jpg could not be read" in printed.err


def test_sentences_are_written_as_a_table(captioner, photographs, sentence, tmp_path, capfd):
    table = tmp_path / "new" / "captions.jsonl"
    words = [photographs / "a.png", photographs / "c.png", "--model_name_or_path", captioner, "--output", table]
    assert cnnrnn("caption", *words) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert [(row["file_name"], row["caption"]) for row in rows] == [(str(path), sentence(path)) for path in words[:2]]
    assert str(table) not in capfd.readouterr().out


def test_names_of_files_neither_command_a_terminal_nor_lose_the_table(captioner, photographs, tmp_path, capfd):
    (photographs / "a.png").rename(photographs / "a\x1b[31m.png")
    (photographs / "c.png").rename(os.fsdecode(os.fsencode(photographs) + b"/caf\xe9.png"))
    table = tmp_path / "captions.csv"
    assert cnnrnn("caption", photographs, "--model_name_or_path", captioner, "--output", table) == 1
    printed = capfd.readouterr()
    assert "\x1b[31m" not in printed.out + printed.err
    assert "a\\x1b[31m.png: " in printed.out
    assert "caf\\xe9.png: " in printed.out
    assert len(table.read_text(encoding="utf-8").splitlines()) == 3


def test_what_is_captioned_before_an_interruption_is_written(captioner, photographs, tmp_path, monkeypatch, capfd):
    generate = CnnRnnForConditionalGeneration.generate
    calls: list[int] = []

    def stop_at_the_second_batch(self, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, **kwargs)

    monkeypatch.setattr(CnnRnnForConditionalGeneration, "generate", stop_at_the_second_batch)
    table = tmp_path / "captions.jsonl"
    words = ["--model_name_or_path", captioner, "--output", table, "--batch_size", 1]
    assert cnnrnn("caption", photographs, *words) == 1
    (row,) = [json.loads(line) for line in table.read_text().splitlines()]
    assert row["file_name"] == str(photographs / "a.png")
    assert capfd.readouterr().err.endswith("Stopped.\n")


@pytest.mark.parametrize("verb", ["caption", "dataset", "evaluate", "train", "score", "card"])
def test_an_output_that_cannot_be_written_is_found_before_anything_is_read(verb, captioner, tmp_path, capfd):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "new"
    words: list[object] = {
        "caption": ["caption", "nowhere.jpg", "--output", output / "captions.csv"],
        "dataset": ["caption", "--dataset_name", "nowhere/at/all", "--output_dir", output],
        "evaluate": ["evaluate", "--dataset_name", "nowhere/at/all", "--output_dir", output],
        "train": ["train", "--dataset_name", "nowhere/at/all", "--output_dir", output],
        "score": ["score", "--results", "nowhere.json", "--references", "nowhere.json", "--output", output / "s.json"],
        "card": ["card", "--output_dir", output],
    }[verb]
    if verb not in ("train", "score"):
        words += ["--model_name_or_path", captioner if verb == "card" else "nowhere"]
    assert cnnrnn(*words) == 1
    assert f"Error: Nothing can be written to '{output}'" in capfd.readouterr().err


def test_a_dataset_becomes_one_with_sentences(captioner, photographs, sentence, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (photographs / "b.jpg").unlink()
    words = ["--dataset_name", photographs, "--model_name_or_path", captioner, "--output_dir", tmp_path / "captioned"]
    assert cnnrnn("caption", *words) == 0
    datasets.enable_progress_bars()
    captioned = datasets.load_dataset(str(tmp_path / "captioned"))["train"]
    assert captioned["generated_text"][:] == [sentence(photographs / name) for name in ("a.png", "c.png")]
    assert capfd.readouterr().out == ""


def test_a_captioner_is_evaluated(captioner, tmp_path):
    build_shapes(num_train=2, num_validation=2, num_test=3, image_size=32).save_to_disk(tmp_path / "shapes")
    folder = tmp_path / "evaluation"
    words = ["--model_name_or_path", captioner, "--dataset_name", tmp_path / "shapes", "--num_beams", 1, 2]
    assert cnnrnn("evaluate", *words, "--output_dir", folder) == 0
    content = json.loads((folder / "eval_results.json").read_text())
    assert {"beam 1", "beam 2", "loss", "perplexity"} == content["results"].keys()
    assert content["protocol"]["num_images"] == 3
    names = {path.name for path in folder.iterdir()}
    assert {"captions_results.json", "captions_references.json", "per_image.jsonl", "gallery.html", "pictures"} <= names


def test_captions_are_scored(tmp_path, capsys):
    predictions = {1: "a dog runs", 2: "two men on a bench"}
    references = {1: ["a dog is running", "the dog runs"], 2: ["men on a bench", "two men sit"]}
    results, annotations = tmp_path / "results.json", tmp_path / "references.json"
    results.write_text(json.dumps([{"image_id": image, "caption": text} for image, text in predictions.items()]))
    rows = [{"image_id": image, "caption": text} for image, texts in references.items() for text in texts]
    annotations.write_text(json.dumps({"images": [{"id": 1}, {"id": 2}], "annotations": rows}))
    words = ["--results", results, "--references", annotations, "--metrics", "bleu", "cider"]
    assert cnnrnn("score", *words) == 0
    written = json.loads((tmp_path / "results_scores.json").read_text())["scores"]
    assert written == dict(caption_metrics(predictions, references, ["bleu", "cider"]))
    assert "CIDEr" in capsys.readouterr().out


def test_a_card_is_written_with_its_command(tmp_path, monkeypatch, capsys):
    written = {}

    def write_model_card(folder, **options):
        written.update(options, folder=folder)
        return Path(folder, "README.md")

    monkeypatch.setattr("modeling_cnnrnn.hub.model_card.write_model_card", write_model_card)
    assert cnnrnn("card", "--model_name_or_path", tmp_path, "--license", "mit", "--tags", "a", "b") == 0
    assert capsys.readouterr().out == f"{tmp_path}/README.md\n"
    assert (written["folder"], written["license"], written["tags"]) == (str(tmp_path), "mit", ["a", "b"])
    assert written["command"] == f"cnnrnn card --model_name_or_path {tmp_path} --license mit --tags a b"


def test_a_captioner_is_pushed_with_the_facts_of_its_card(monkeypatch, capsys):
    pushed = {}

    def push_captioner(folder, repo_id, **options):
        pushed.update(options, folder=folder, repo_id=repo_id)
        return SimpleNamespace(repo_url="there", commit_url="there/1")

    monkeypatch.setattr("modeling_cnnrnn.hub.push.push_captioner", push_captioner)
    words = ["--model_name_or_path", "mine", "--repo_id", "me/mine", "--hub_private_repo", "--license", "mit"]
    assert cnnrnn("push", *words) == 0
    assert (pushed["folder"], pushed["repo_id"], pushed["private"]) == ("mine", "me/mine", True)
    assert pushed["card"]["license"] == "mit"
    assert capsys.readouterr().out == "there\n"


def test_a_training_takes_a_recipe_and_options(monkeypatch):
    given = []
    monkeypatch.setattr("modeling_cnnrnn.training.captioning.train_captioner", lambda *options: given.extend(options))
    assert cnnrnn("train", ROOT / "examples/recipes/shapes.json", "--seed", 7, "--attention_type", "none") == 0
    data_args, model_args, args, _ = given
    assert (data_args.preload_images, model_args.rnn_type, model_args.attention_type) == (True, "gru", "none")
    assert (args.num_train_epochs, args.seed) == (12, 7)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_help_shows_every_option_with_its_sentence(words, monkeypatch, capsys):
    assert cnnrnn(*words, "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for kind in option_classes(words, monkeypatch):
        for option in fields(kind):
            sentence = option.metadata.get("help", "")
            assert sentence, f"{option.name} has no help"
            assert sentence[0].isupper() or sentence[0] in "'`<"
            assert sentence.endswith((".", ":", ")"))
            assert " ".join(sentence.split()) in shown
            name = option.name.rstrip("_")  # `from_` is `--from`
            assert f"--{name} " in shown or f"{name.upper()} " in shown


def test_help_names_the_verbs(capsys):
    assert cnnrnn("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"{verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("words", [["--help"], *([*words, "--help"] for words in COMMANDS)], ids=" ".join)
def test_help_imports_no_heavy_library(words):
    """What a verb needs, it imports when it runs."""
    code = (
        "import sys; from modeling_cnnrnn.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*{n.partition('.')[0] for n in sys.modules} & {'torch', 'transformers', 'datasets', 'numpy'}, file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert "Usage: cnnrnn" in finished.stdout
    assert finished.stderr == "\n"


def cpu_seconds(*words: str) -> float:
    """The least CPU time of three runs of Python."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(times)


def test_help_takes_less_than_half_a_second_of_cpu():
    busy = max(1.0, cpu_seconds("-c", "import typer") / 0.2)  # 0.15 s on a machine that does nothing else
    assert cpu_seconds("-m", "modeling_cnnrnn", "--help") < 0.5 * busy


def test_the_module_is_the_command(capsys):
    finished = subprocess.run(
        [sys.executable, "-m", "modeling_cnnrnn", "--help"], capture_output=True, text=True, timeout=60
    )
    cnnrnn("--help")
    assert finished.stdout == capsys.readouterr().out


def test_installation_brings_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["cnnrnn"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert any(requirement.startswith("typer") for requirement in project["dependencies"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["caption", "nowhere.jpg", "--model_name_or_path", "mine"],
            "`images` names 'nowhere.jpg', which does not exist",
        ),
        (["train", "--dataset_name", "no/such/folder", "--output_dir", "{}"], "no such file or folder"),
        (["score", "--results", "nowhere.json", "--references", "nowhere.json"], "there is no file nowhere.json"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_status_1(words, sentence, tmp_path, capfd):
    assert cnnrnn(*(word.format(tmp_path) for word in words)) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("Error: ")
    assert sentence in printed.err
    assert "Traceback" not in printed.err


def test_a_mistake_shows_where_it_came_from_if_asked_to(monkeypatch):
    monkeypatch.setenv("CNNRNN_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        app(["caption", "nowhere.jpg", "--model_name_or_path", "mine"])


def test_a_missing_library_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "modeling_cnnrnn.training.captioning", raising=False)
    monkeypatch.delitem(sys.modules, "modeling_cnnrnn.training.trainer", raising=False)
    assert cnnrnn("train", "--output_dir", tmp_path) == 1
    assert "pip install 'modeling-cnnrnn[train]'" in capfd.readouterr().err


def test_an_error_of_the_program_is_not_called_a_mistake():
    with pytest.raises(KeyError), errors.user_errors():
        {}["missing"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("caption",), "Stopped."),
        (("evaluate",), "Stopped."),
        (("push",), "Stopped."),
        (("card",), "Stopped."),
        (("score",), "Stopped."),
        (("search",), "Stopped."),
        (("index",), "Stopped. Run the same command again to resume."),
        (("train",), "Stopped. Run the same command with --resume_from_checkpoint latest to resume."),
        (DATASET, "Stopped. Run the same command again to resume."),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_ctrl_c_says_how_this_command_is_resumed(words, sentence, monkeypatch, capfd):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"modeling_cnnrnn.cli.{words[0]}.parse_arguments", interrupted)
    assert cnnrnn(*words) == 1
    assert capfd.readouterr().err == sentence + "\n"


@pytest.mark.parametrize(
    ("program", "num_processes", "device", "command"),
    [
        ("/usr/bin/cnnrnn", 1, "cpu", "cnnrnn train --seed 1"),
        ("/lib/modeling_cnnrnn/__main__.py", 1, "cpu", "cnnrnn train --seed 1"),
        ("/lib/modeling_cnnrnn/__main__.py", 2, "cpu", "torchrun --nproc_per_node 2 -m modeling_cnnrnn train --seed 1"),
        ("/lib/modeling_cnnrnn/__main__.py", 2, "cuda", "accelerate launch --num_processes 2 -m modeling_cnnrnn train --seed 1"),
        ("examples/train.py", 1, "cpu", "python examples/train.py train --seed 1"),
        ("examples/train.py", 2, "cpu", "torchrun --nproc_per_node 2 examples/train.py train --seed 1"),
    ],
)  # fmt: skip
def test_results_name_the_command_as_a_user_writes_it(program, num_processes, device, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "train", "--seed", "1"])
    assert command_line(num_processes, device) == command
