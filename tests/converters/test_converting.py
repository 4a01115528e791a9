"""From the files of an old checkpoint to a folder that every part of this package loads."""

import json
from typing import get_args

import pytest
import torch
from PIL import Image
from support.command import cnnrnn
from support.old_checkpoints import WRITERS, write_checkpoint

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.converters.arguments import ConvertArguments
from modeling_cnnrnn.converters.converting import FORMATS, convert_checkpoint


@pytest.fixture
def tutorial(tmp_path) -> list[str]:
    """The files of a checkpoint of the PyTorch tutorial."""
    return write_checkpoint("pytorch_tutorial", tmp_path)


def test_every_format_has_a_name_on_the_command_line_and_a_checkpoint_in_the_tests():
    choices = get_args(get_args(ConvertArguments.__annotations__["from_"])[0])
    assert sorted(choices) == sorted(FORMATS) == sorted({name.partition("-")[0] for name in WRITERS})


def test_the_command_writes_a_captioner_that_captions(tutorial, tmp_path, capfd):
    Image.radial_gradient("L").save(tmp_path / "picture.png")
    folder = tmp_path / "captioner"
    assert cnnrnn("convert", *tutorial, "--from", "pytorch_tutorial", "--output_dir", folder) == 0
    assert capfd.readouterr().out == f"{folder}\n"
    assert cnnrnn("caption", tmp_path / "picture.png", "--model_name_or_path", folder, "--num_beams", "1") == 0
    model, processor = (kind.from_pretrained(folder) for kind in (CnnRnnForConditionalGeneration, CnnRnnProcessor))
    inputs = processor(images=str(tmp_path / "picture.png"), return_tensors="pt")
    assert capfd.readouterr().out.strip() == processor.batch_decode(model.generate(**inputs, num_beams=1))[0]


def test_a_format_is_guessed_from_the_files_in_any_order(tutorial, tmp_path):
    named = convert_checkpoint(tutorial, tmp_path / "named", "pytorch_tutorial")
    guessed = convert_checkpoint(tutorial[::-1], tmp_path / "guessed")
    assert (named / "model.safetensors").read_bytes() == (guessed / "model.safetensors").read_bytes()


def test_a_missing_file_is_named(tutorial, tmp_path, capfd):
    assert cnnrnn("convert", *tutorial[:2], "--output_dir", tmp_path / "captioner") == 1
    error = capfd.readouterr().err
    assert "pytorch_tutorial, which has encoder and decoder and vocabulary" in error
    assert "Traceback" not in error
    assert not (tmp_path / "captioner").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"weight": torch.ones(2)}], ids=["json", "list", "torch"])
def test_files_of_no_known_program_are_refused(tmp_path, content):
    path = tmp_path / "model.json"
    if isinstance(content, dict) and "weight" in content:
        torch.save(content, path)
    else:
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model\.json"):
        convert_checkpoint([str(path)], tmp_path / "captioner")
    assert not (tmp_path / "captioner").exists()


def test_weights_of_another_shape_are_refused(tutorial, tmp_path):
    weights = torch.load(tutorial[1])
    weights["lstm.weight_hh_l0"] = weights["lstm.weight_hh_l0"][:, :-1]
    torch.save(weights, tutorial[1])
    with pytest.raises(ValueError, match=r"size mismatch for model\.decoder\.layers\.0"):
        convert_checkpoint(tutorial, tmp_path / "captioner")
    del weights["linear.bias"]
    torch.save(weights, tutorial[1])
    with pytest.raises(ValueError, match=r"pytorch_tutorial.*'linear\.bias'"):
        convert_checkpoint(tutorial, tmp_path / "captioner")
    assert not (tmp_path / "captioner").exists()


def test_a_folder_with_something_in_it_is_left_alone(tutorial, tmp_path):
    (tmp_path / "captioner").mkdir()
    (tmp_path / "captioner" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something"):
        convert_checkpoint(tutorial, tmp_path / "captioner")
    with pytest.raises(IsADirectoryError, match="folder"):
        convert_checkpoint([str(tmp_path)], tmp_path / "new")
    assert (tmp_path / "captioner" / "notes.txt").read_text() == "mine"
