"""The captioner that comes with the package: found by its name, taken where none is named, whole and small."""

import inspect
import re
import sys
import tomllib

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from support.paths import ROOT
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, pipeline
from modeling_cnnrnn.cli import caption
from modeling_cnnrnn.evaluation.arguments import CaptionDatasetArguments
from modeling_cnnrnn.models.loading_cnnrnn import PRETRAINED_FOLDERS, find_pretrained
from modeling_cnnrnn.pretrained import DEFAULT_CAPTIONER, FOLDERS


PICTURE = Image.linear_gradient("L")
CLASSES = (CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor)


@pytest.fixture
def captioner(tmp_path, make_model, tiny_processor):
    """A tiny captioner."""
    make_model(attention_type="additive", initializer_range=2.0).save_pretrained(tmp_path / "captioner")
    tiny_processor.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


@pytest.fixture
def installed(captioner, monkeypatch):
    """The tiny captioner as the one that comes with the package."""
    monkeypatch.setitem(PRETRAINED_FOLDERS, DEFAULT_CAPTIONER, captioner)
    task = PIPELINE_REGISTRY.supported_tasks["image-captioning"]
    monkeypatch.setitem(task, "default", {"model": (str(captioner), task["default"]["model"][1])})
    return captioner


def test_the_package_enters_its_captioners_the_default_first():
    assert PRETRAINED_FOLDERS == FOLDERS
    assert next(iter(PRETRAINED_FOLDERS)) == DEFAULT_CAPTIONER
    assert PIPELINE_REGISTRY.check_task("image-captioning")[1]["default"]["model"][0] == str(FOLDERS[DEFAULT_CAPTIONER])


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_short_name_is_a_captioner(installed, kind):
    by_name, by_folder = kind.from_pretrained(DEFAULT_CAPTIONER), kind.from_pretrained(installed)
    same = "to_dict" if kind is not CnnRnnForConditionalGeneration else "state_dict"
    assert str(getattr(by_name, same)()) == str(getattr(by_folder, same)())


def test_a_captioner_in_a_folder_of_the_name_wins(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_CAPTIONER).mkdir()
    assert find_pretrained(DEFAULT_CAPTIONER) == installed  # the folder holds no captioner
    (tmp_path / DEFAULT_CAPTIONER / "config.json").touch()
    assert find_pretrained(DEFAULT_CAPTIONER) == DEFAULT_CAPTIONER


@pytest.mark.parametrize("place", [None, "user/name", "outputs/mine"])
def test_any_other_place_stays_as_it_is(place):
    assert find_pretrained(place) is place


@pytest.mark.parametrize("task", ["image-to-text", "image-captioning"])
def test_a_pipeline_takes_it_where_no_model_is_named(installed, task):
    expected = pipeline(task, model=str(installed))(PICTURE)
    assert pipeline(task)(PICTURE) == pipeline(task, model=DEFAULT_CAPTIONER)(PICTURE) == expected


def test_transformers_own_pipeline_takes_it_too(installed):
    expected = pipeline("image-captioning", model=str(installed))(PICTURE)
    assert transformers.pipeline("image-captioning")(PICTURE) == expected


def test_a_tokenizer_alone_is_not_given_to_a_captioner_that_nobody_named(installed, tiny_processor):
    with pytest.raises(RuntimeError, match="tokenizer specified but not the model"):
        pipeline("image-to-text", tokenizer=tiny_processor.tokenizer)


def test_the_command_captions_a_photograph_with_it(installed, tmp_path, capfd):
    PICTURE.save(tmp_path / "photo.png")
    with pytest.raises(SystemExit) as end:
        caption.main([str(tmp_path / "photo.png")])
    assert end.value.code == 0
    expected = pipeline("image-to-text", model=str(installed))(PICTURE, generate_kwargs={"num_beams": 3})
    assert capfd.readouterr().out == expected[0]["generated_text"] + "\n"


def test_a_dataset_is_captioned_with_it():
    assert CaptionDatasetArguments(dataset_name="photographs").model_name_or_path == DEFAULT_CAPTIONER


def test_code_that_has_travelled_to_the_hub_knows_no_captioner_of_the_package():
    """It is the same file, under another name."""
    source = inspect.getsource(sys.modules[find_pretrained.__module__])
    code: dict = {"__name__": "loading_cnnrnn"}
    exec(source.replace("from .error_messages_cnnrnn import shown", "shown = repr"), code)
    assert code["find_pretrained"](DEFAULT_CAPTIONER) == DEFAULT_CAPTIONER


# --- its files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographer():
    """The pipeline of the captioner in the package."""
    return pipeline("image-to-text")


def drawn() -> list[Image.Image]:
    """Pictures of a beach and of a lawn, as a child draws them."""
    beach = Image.new("RGB", (320, 240), "lightskyblue")
    beach.paste("royalblue", (0, 110, 320, 170))
    beach.paste("wheat", (0, 170, 320, 240))
    lawn = Image.new("RGB", (320, 240), "forestgreen")
    lawn.paste("saddlebrown", (120, 120, 220, 170))
    return [beach, lawn]


def test_the_folder_is_whole_and_small():
    folder = FOLDERS[DEFAULT_CAPTIONER]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    needed = {
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert needed | {"model.safetensors", "README.md", "LICENSE", "card/training_curves.png"} == files
    assert sum((folder / name).stat().st_size for name in files) <= 12e6
    assert "LABEL_" not in (folder / "config.json").read_text()
    assert "id2label" not in (folder / "config.json").read_text()


def test_installation_brings_every_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["modeling_cnnrnn"]
    for path in FOLDERS[DEFAULT_CAPTIONER].rglob("*"):
        assert path.is_dir() or any(path.match(f"modeling_cnnrnn/{pattern}") for pattern in patterns), path


def test_weights_of_16_bits_load_as_float32(photographer):
    with safe_open(FOLDERS[DEFAULT_CAPTIONER] / "model.safetensors", "pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert stored <= {"F16", "I64"}
    assert {parameter.dtype for parameter in photographer.model.parameters()} == {torch.float32}


def test_drawn_pictures_have_sentences_of_their_own(photographer):
    pictures = drawn()
    beach, lawn = ([record["generated_text"] for record in records] for records in photographer(pictures))
    assert beach != lawn
    assert min(len(text.split()) for text in (*beach, *lawn)) > 3
    assert photographer(pictures, batch_size=2) == [[{"generated_text": text}] for text in (*beach, *lawn)]


def test_its_licence_is_named_wherever_somebody_looks():
    folder = FOLDERS[DEFAULT_CAPTIONER]
    path = (folder / "LICENSE").relative_to(ROOT).as_posix()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any((ROOT / path).match(pattern) for pattern in project["license-files"])
    assert f"]({path})" in (ROOT / "README.md").read_text(encoding="utf-8")
    card = ModelCard.load(folder / "README.md")
    assert (card.data["license"], card.data["license_link"]) == ("other", "LICENSE")
    assert "](LICENSE)" in card.text


def test_its_card_shows_no_photograph():
    text = (FOLDERS[DEFAULT_CAPTIONER] / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"!\[[^]]*\]\(([^)]+)\)", text) == ["card/training_curves.png"]
    assert "Flickr8k" in text
    assert 'it writes "' in text.partition("## Limits")[2]
