"""The captioner that comes with the package is trained by one command: seeds, the best of them, half the bytes."""

import json
import runpy
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from support.paths import EXAMPLES
from transformers import MobileNetV2Config

from modeling_cnnrnn import pipeline
from modeling_cnnrnn.data.shapes.drawing import build_shapes


CIDER = {"42": 0.3, "43": 0.5, "44": 0.4}


@pytest.fixture
def captioner(tmp_path, make_model, tiny_processor) -> Path:
    """What a training leaves: a MobileNet of many classes, and a decoder."""
    cnn = MobileNetV2Config(depth_multiplier=0.1, num_labels=1001).to_dict()
    model = make_model(encoder=cnn, attention_type="additive", initializer_range=2.0)
    model.save_pretrained(tmp_path / "captioner")
    tiny_processor.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


@pytest.fixture
def script(captioner) -> SimpleNamespace:
    """The page with commands that are noted and leave `captioner`; the captioner of a seed scores as `CIDER` says."""
    commands, cards = [], []

    def cnnrnn(verb, *words):
        words = [*map(str, words)]
        options = dict(pairwise(words))
        commands.append((verb, options))
        folder = Path(options["--output_dir"])
        if verb == "train":
            shutil.copytree(captioner, folder)
            (folder / "training_results.json").write_text(json.dumps({"seed": options["--seed"]}))
        else:
            seed = next((key for key in CIDER if f"seed-{key}" in str(folder)), None)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "eval_results.json").write_text(json.dumps({"results": {"beam 3": {"CIDEr": CIDER[seed]}}}))
            (folder / "per_image.jsonl").write_text('{"image_id": 7, "caption": "a red square"}\n')

    names = runpy.run_path(str(EXAMPLES / "train_pretrained.py"))
    stand_ins = {
        "cnnrnn": cnnrnn,
        "write_model_card": lambda folder, **facts: cards.append({"folder": folder, **facts}),
    }
    names["main"].__globals__.update(stand_ins)
    return SimpleNamespace(commands=commands, cards=cards, **{name: names[name] for name in ("main", "pack", "SHOWN")})


def run(script, tmp_path, monkeypatch) -> list[tuple[str, dict]]:
    """The commands of one run."""
    script.commands.clear()
    words = ["train_pretrained.py", "--dataset_name", "photographs", "--encoder_name_or_path", "mobilenet"]
    folders = ["--output_dir", str(tmp_path / "work"), "--captioner_dir", str(tmp_path / "packed")]
    monkeypatch.setattr("sys.argv", [*words, *folders])
    script.main()
    return list(script.commands)


def test_the_best_of_three_seeds_is_packed_with_its_card(script, tmp_path, monkeypatch):
    script.SHOWN["7"] = "a blue circle"
    commands = run(script, tmp_path, monkeypatch)
    assert [verb for verb, _ in commands] == ["train", "train", "train", "evaluate"] * 3 + ["evaluate"]
    assert {options["--seed"] for verb, options in commands if verb == "train"} == set(CIDER)
    stores = [options.get("--features_cache_dir") for verb, options in commands if verb == "train"]
    assert stores == [str(tmp_path / "work" / "image_features"), None, str(tmp_path / "work" / "image_features")] * 3
    assert commands[-1][1]["--model_name_or_path"] == str(tmp_path / "packed")
    assert "seed-43" in commands[-1][1]["--output_dir"]
    (card,) = script.cards
    assert card["repository"] == card["output_dir"] == tmp_path / "packed"
    assert card["limits"] == ['About a blue circle it writes "a red square".']
    assert (card["license_link"], card["show_pictures"]) == ("LICENSE", False)


def test_what_is_done_is_not_done_again(script, tmp_path, monkeypatch):
    run(script, tmp_path, monkeypatch)
    stage = tmp_path / "work" / "seed-44" / "self_critical"
    shutil.rmtree(stage)
    commands = run(script, tmp_path, monkeypatch)
    assert [verb for verb, _ in commands] == ["train", "evaluate", "evaluate"]
    assert commands[0][1]["--output_dir"] == str(stage)
    assert commands[0][1]["--resume_from_checkpoint"] == "latest"


def test_packed_weights_are_halved_and_load_as_float32_with_the_same_sentences(script, captioner, tmp_path):
    script.pack(captioner, tmp_path / "packed")
    with safe_open(tmp_path / "packed" / "model.safetensors", "pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert stored == {"F16", "I64"}  # batches are counted in integers
    packed, trained = (pipeline("image-to-text", model=str(path)) for path in (tmp_path / "packed", captioner))
    assert packed.model.dtype == torch.float32
    pictures = build_shapes(num_train=8, num_validation=1, num_test=1, image_size=32)["train"]["image"][:]
    assert packed(pictures) == trained(pictures)


def test_a_packed_captioner_is_without_code_and_classes(script, captioner, tmp_path):
    script.pack(captioner, tmp_path / "packed")
    files = {path.name for path in (tmp_path / "packed").iterdir()}
    assert not any(name.endswith(".py") for name in files)
    text = "".join((tmp_path / "packed" / name).read_text() for name in files if name.endswith(".json"))
    assert not any(word in text for word in ("LABEL_1000", "auto_map", "custom_pipelines"))


def test_a_stop_of_a_command_is_the_stop_of_all(monkeypatch):
    names = runpy.run_path(str(EXAMPLES / "train_pretrained.py"))
    with pytest.raises(SystemExit) as end:
        names["cnnrnn"]("score", "--results", "nowhere.json", "--references", "nowhere.json")
    assert end.value.code == 1
