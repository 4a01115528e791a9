"""The configuration: what it accepts, what it refuses, and that it comes back as it was saved."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, ConvNextConfig, ResNetConfig

from modeling_cnnrnn import CnnRnnConfig


def test_default_configuration_is_show_and_tell_on_a_resnet():
    config = CnnRnnConfig()
    assert isinstance(config.encoder, ResNetConfig)
    assert (config.rnn_type, config.image_injection, config.attention_type) == ("lstm", "first_token", "none")
    assert config.is_encoder_decoder
    assert config.decoder_start_token_id == config.bos_token_id


@pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "object"])
def test_encoder_is_any_configuration_or_its_dict(as_dict):
    encoder = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    config = CnnRnnConfig(encoder=encoder.to_dict() if as_dict else encoder)
    assert isinstance(config.encoder, ConvNextConfig)
    assert config.encoder.hidden_sizes == [8, 16, 24, 32]


def test_saved_configuration_loads_equal(make_config, tmp_path):
    config = make_config(
        rnn_type="gru",
        attention_type="additive",
        image_injection="bias_first_step",
        num_hidden_layers=2,
        vision_feature_layer=-2,
        label_smoothing=0.1,
        unk_token_id=None,
        eos_token_id=[2, 5],
    )
    config.save_pretrained(tmp_path)
    for loaded in (CnnRnnConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert loaded.to_json_string() == config.to_json_string()
        assert type(loaded.encoder) is ResNetConfig


def test_saved_configuration_is_plain_json(tiny_config, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "cnnrnn"
    assert saved["encoder"]["model_type"] == "resnet"


def test_decoder_start_token_may_differ_from_bos(make_config):
    assert make_config(decoder_start_token_id=7).decoder_start_token_id == 7


def test_two_configurations_share_no_encoder():
    first, second = CnnRnnConfig(), CnnRnnConfig()
    first.encoder.hidden_act = "gelu"
    assert second.encoder.hidden_act == "relu"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rnn_type", "transformer"),
        ("attention_type", "dot"),
        ("image_injection", "last_token"),
        ("hidden_size", 8.5),
        ("vocab_size", "many"),
        ("tie_word_embeddings", "yes"),
        ("dropout", "0.5"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        CnnRnnConfig(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "`hidden_size` is 0"),
        ({"vocab_size": -1}, "`vocab_size` is -1"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0"),
        ({"attention_size": 0}, "`attention_size` is 0"),
        ({"dropout": 1.0}, "`dropout` is 1.0"),
        ({"feature_dropout": -0.1}, "`feature_dropout` is -0.1"),
        ({"label_smoothing": 2}, "`label_smoothing` is 2"),
        ({"attention_regularization": -1.0}, "`attention_regularization` is -1.0"),
        ({"attention_regularization": 1.0}, "`attention_type` is 'none'"),
        ({"tie_word_embeddings": True, "embedding_size": 8, "hidden_size": 9}, r"`embedding_size` \(8\)"),
        ({"pad_token_id": 2, "eos_token_id": 2}, "must be different"),
        ({"eos_token_id": [2, 3], "unk_token_id": 3}, "must be different"),
        ({"unk_token_id": 1}, "must be different"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(options, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        CnnRnnConfig(**options)


def test_an_unknown_encoder_is_refused():
    with pytest.raises((ValueError, KeyError), match="no_such_cnn"):
        CnnRnnConfig(encoder={"model_type": "no_such_cnn"})
