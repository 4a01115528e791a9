"""What the tests of the scripts share: a few drawn pictures on disk, and a captioner trained on them."""

from pathlib import Path

import pytest
from support.example_scripts import run
from support.tiny_training import TINY

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.data.shapes.drawing import build_shapes


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    build_shapes(num_train=24, num_validation=6, num_test=6, image_size=32).save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def trained(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "captioner"
    run("train_captioner", dataset_name=pictures, output_dir=folder, num_train_epochs=2, **TINY)
    return folder


@pytest.fixture(scope="session")
def cnn(trained, tmp_path_factory) -> Path:
    """A trained CNN by itself."""
    folder = tmp_path_factory.mktemp("cnn")
    CnnRnnForConditionalGeneration.from_pretrained(trained).get_encoder().cnn.save_pretrained(folder)
    CnnRnnProcessor.from_pretrained(trained).image_processor.save_pretrained(folder)
    return folder
