"""The captioner that comes with the package: found by its name, taken where none is named."""

import inspect
import sys

import pytest
import transformers
from PIL import Image
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
