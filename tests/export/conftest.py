"""A tiny captioner, and its export, which takes seconds: one for all tests."""

from pathlib import Path

import pytest
from transformers import ResNetConfig, set_seed

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.cli.main import app
from modeling_cnnrnn.data.shapes.drawing import build_shapes


def save_captioner(folder: Path, **options) -> Path:
    """Save a tiny captioner whose sentences differ from picture to picture and come to an end."""
    set_seed(0)
    captions = build_shapes(num_train=10, num_validation=1, num_test=1, image_size=32)["train"]["captions"]
    tokenizer = build_tokenizer(captions, min_frequency=1)
    encoder = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    sizes = {"hidden_size": 14, "embedding_size": 12, "attention_size": 10, "dropout": 0.0, "initializer_range": 2.0}
    config = CnnRnnConfig.from_tokenizer(tokenizer, encoder=encoder.to_dict(), **(sizes | options))
    model = CnnRnnForConditionalGeneration(config).eval()
    model.lm_head.bias.data[config.eos_token_id] = 1.0
    model.generation_config.update(max_length=12)
    model.save_pretrained(folder)
    CnnRnnProcessor.from_image_size(32, tokenizer, center_crop=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def captioner_folder(tmp_path_factory) -> Path:
    """A captioner whose image enters at the first word only, with attention."""
    folder = tmp_path_factory.mktemp("captioner")
    return save_captioner(
        folder, attention_type="additive", image_injection="bias_first_step", rnn_type="gru", num_hidden_layers=2
    )


@pytest.fixture(scope="session")
def exported_folder(captioner_folder, tmp_path_factory) -> Path:
    """What the command makes of it, in place of an earlier export."""
    folder = tmp_path_factory.mktemp("export") / "exported"
    folder.mkdir()
    (folder / "captioner.json").write_text("{}")
    (folder / "old").touch()
    with pytest.raises(SystemExit) as stop:
        app(["export", str(captioner_folder), str(folder)], prog_name="cnnrnn")
    assert not stop.value.code
    return folder
