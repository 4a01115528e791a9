"""Loading a folder: weights that are not those of the model are refused, and each fault is said in one sentence."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

import modeling_cnnrnn
from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnModel, CnnRnnProcessor
from modeling_cnnrnn.models.loading_cnnrnn import CnnRnnLoadingError, explain_errors
from modeling_cnnrnn.models.processor_checks_cnnrnn import PROCESSOR_PARTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole") / "captioner"


@pytest.fixture
def folder(whole, make_model, tiny_processor, tmp_path) -> Path:
    """A captioner with additive attention, to damage."""
    if not whole.exists():
        make_model(attention_type="additive", initializer_range=0.1).save_pretrained(whole)
        tiny_processor.save_pretrained(whole)
    return Path(shutil.copytree(whole, tmp_path / "captioner"))


def edit(path: Path, **fields) -> None:
    """Set fields of a JSON file; those of inner objects are written `encoder__depths`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, value in fields.items():
        *outer, last = name.split("__")
        inner = content
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def sentence_of(load, *arguments, **options) -> str:
    """The one sentence that a load ends with."""
    with pytest.raises(CnnRnnLoadingError) as stop:
        load(*arguments, **options)
    text = str(stop.value)
    assert isinstance(stop.value, ValueError)
    assert isinstance(stop.value, OSError)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 1000
    return text


load_model = CnnRnnForConditionalGeneration.from_pretrained
load_processor = CnnRnnProcessor.from_pretrained


def test_missing_weights_are_refused_unless_told_otherwise(folder):
    edit_weights(
        folder, lambda weights: (weights.pop("lm_head.bias"), weights.pop("model.decoder.attention.gate.bias"))
    )
    text = sentence_of(load_model, folder)
    assert "'lm_head.bias'" in text
    assert "check_weights=False" in text
    assert load_model(folder, check_weights=False).lm_head.bias.isfinite().all()
    assert AutoModelForImageTextToText.from_pretrained(folder, check_weights=False).lm_head.bias.isfinite().all()


def test_weights_of_other_names_in_their_place_are_named(folder):
    edit_weights(folder, lambda weights: weights.update({"lm_head.old": weights.pop("lm_head.bias")}))
    edit_weights(
        folder, lambda weights: weights.update({"model.decoder.old": weights.pop("model.decoder.attention.gate.bias")})
    )
    text = sentence_of(load_model, folder)
    assert "lack 2 that the model needs" in text
    assert "hold 1 that the model does not use ('model.decoder.old')" in text


def test_weights_of_another_decoder_are_refused(folder, make_model):
    make_model(num_hidden_layers=2, attention_type="additive").save_pretrained(folder)
    edit(folder / "config.json", num_hidden_layers=1)
    assert "that the model does not use ('model.decoder" in sentence_of(load_model, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("name", ["lm_head.weight", "model.encoder.cnn.embedder.embedder.normalization.running_var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_unless_told_otherwise(folder, name, value, dtype):
    edit_weights(folder, lambda weights: weights[name].flatten()[-1:].fill_(value))
    text = sentence_of(load_model, folder, dtype=dtype)
    assert name in text
    assert "NaN, infinite or huge" in text
    load_model(folder, dtype=dtype, check_weights=False)


def test_negative_variances_are_refused_unless_told_otherwise(folder):
    name = "model.encoder.cnn.embedder.embedder.normalization.running_var"
    edit_weights(folder, lambda weights: weights[name][-1:].fill_(-1e-4))
    assert f"negative variances (in {name})" in sentence_of(load_model, folder)
    load_model(folder, check_weights=False)


def test_weights_saved_as_integers_are_refused(folder):
    edit_weights(folder, lambda weights: weights.update({"lm_head.bias": weights["lm_head.bias"].view(torch.int32)}))
    assert "lm_head.bias as numbers of type I32" in sentence_of(load_model, folder)


def test_weights_of_other_sizes_are_refused_and_ignored_as_transformers_does(folder):
    edit(folder / "config.json", vocab_size=23)
    text = sentence_of(load_model, folder)
    assert "(20,) in the weights and (23,) by config.json" in text
    assert load_model(folder, ignore_mismatched_sizes=True).lm_head.out_features == 23


def test_a_captioner_without_its_head_is_refused_and_a_model_without_one_loads(folder, make_model):
    base = AutoModel.from_pretrained(folder)
    assert type(base) is CnnRnnModel  # the head is in the weights, and not in the model
    base.save_pretrained(folder)
    assert "lm_head.weight" in sentence_of(load_model, folder)
    assert CnnRnnModel.from_pretrained(folder).device.type == "cpu"


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.decoder.embed_tokens.weight"])
def test_tied_weights_are_there_if_either_is(make_model, tmp_path, missing):
    model = make_model(tie_word_embeddings=True, hidden_size=12)
    model.save_pretrained(tmp_path)
    edit_weights(
        tmp_path,
        lambda weights: weights.update({"lm_head.weight": weights["model.decoder.embed_tokens.weight"].clone()}),
    )
    edit_weights(tmp_path, lambda weights: weights.pop(missing))
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.lm_head.weight)


def test_tied_weights_that_are_both_missing_are_refused(make_model, tmp_path):
    make_model(tie_word_embeddings=True, hidden_size=12).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop("model.decoder.embed_tokens.weight"))
    assert "model.decoder.embed_tokens.weight" in sentence_of(load_model, tmp_path)


def test_shards_load_and_a_missing_one_is_named(folder):
    load_model(folder).save_pretrained(folder, max_shard_size="4KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert load_model(folder).lm_head.out_features == 20
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"model.safetensors.index.json' lists {shard.name}" in sentence_of(load_model, folder)


def test_weights_on_the_disk_load(folder, tmp_path):
    pytest.importorskip("accelerate")
    places = {"model.encoder": "cpu", "model.decoder": "disk", "lm_head": "cpu"}
    assert load_model(folder, device_map=places, offload_folder=tmp_path / "disk").lm_head.out_features == 20


def test_a_model_loads_from_tensors_in_memory(folder, tiny_model):
    loaded = load_model(None, config=tiny_model.config, state_dict=tiny_model.state_dict())
    assert torch.equal(loaded.lm_head.weight, tiny_model.lm_head.weight)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (lambda c: c.pop("resnet.embedder.embedder.convolution.weight"), "lack 1 that the model needs"),
        (lambda c: c["resnet.embedder.embedder.convolution.weight"].fill_(float("nan")), "NaN, infinite or huge"),
    ],
)
def test_a_damaged_cnn_is_refused_and_a_classifiers_head_is_not(tiny_encoder_config, tmp_path, fault, sentence):
    ResNetForImageClassification(tiny_encoder_config).save_pretrained(tmp_path)
    load = CnnRnnForConditionalGeneration.from_encoder_pretrained
    assert load(tmp_path).lm_head.out_features == 10000
    edit_weights(tmp_path, fault)
    assert sentence in sentence_of(load, tmp_path)
    load(tmp_path, encoder_kwargs={"check_weights": False})
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in sentence_of(load, tmp_path)


FILES = ["config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"]


def load_all(folder: Path):
    return load_model(folder), load_processor(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b'{"a": 1', "is not JSON"),
        (b"\xff{}", "is not JSON"),
        (b"[1]", "holds no JSON object"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git-LFS"),
    ],
)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", [load_all, lambda folder: modeling_cnnrnn.pipeline("image-to-text", model=str(folder))])
def test_a_damaged_file_is_named(folder, way, name, content, sentence):
    (folder / name).write_bytes(content)
    text = sentence_of(way, folder)
    assert f"{name}' {sentence}" in text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda whole: b"", "is empty"),
        (lambda whole: whole[: len(whole) // 2], "is cut short or damaged"),
        (lambda whole: whole[:4], "is cut short or damaged"),
        (lambda whole: whole + b"abc", "is cut short or damaged"),
        (lambda whole: struct.pack("<Q", 2**62) + whole[8:], "is cut short or damaged"),
        (lambda whole: b"<html>404</html>", "is cut short or damaged"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git-LFS"),
    ],
)
def test_damaged_weights_are_named(folder, content, sentence):
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    assert f"model.safetensors' {sentence}" in sentence_of(load_model, folder)
    assert sentence in sentence_of(AutoModelForImageTextToText.from_pretrained, folder)


def test_a_folder_without_weights_is_told(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in sentence_of(load_model, folder)


def test_a_folder_without_a_configuration_is_told(folder):
    (folder / "config.json").unlink()
    assert "there is no config.json" in sentence_of(load_model, folder)


def test_another_model_is_told(tiny_encoder_config, tmp_path):
    ResNetForImageClassification(tiny_encoder_config).save_pretrained(tmp_path)
    assert "'resnet'" in sentence_of(load_model, tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config.json", "rnn_type", "transformer"),
        ("config.json", "hidden_size", "big"),
        ("config.json", "dropout", 2.0),
        ("config.json", "dtype", True),
        ("config.json", "eos_token_id", 20),
        ("config.json", "pad_token_id", -1),
        ("config.json", "vocab_size", 10**13),
        ("config.json", "hidden_size", 10**6),
        ("config.json", "num_hidden_layers", 10**6),
        ("config.json", "encoder", 3),
        ("config.json", "encoder.hidden_act", "nothing"),
        ("config.json", "encoder.depths", [2**31, 1]),
        ("config.json", "encoder.num_channels", 10**9),
        ("config.json", "encoder.out_features", 0),
        ("generation_config.json", "eos_token_id", 20),
        ("generation_config.json", "eos_token_id", "end"),
        ("generation_config.json", "suppress_tokens", [0, -1]),
        ("generation_config.json", "suppress_tokens", 3),
        ("generation_config.json", "decoder_start_token_id", []),
        ("generation_config.json", "max_length", 2**31),
        ("generation_config.json", "max_length", True),
        ("generation_config.json", "num_beams", 0),
        ("generation_config.json", "temperature", "hot"),
        ("processor_config.json", "image_processor.size", {"shortest_edge": 2**31}),
        ("processor_config.json", "image_processor.crop_size", {"height": 10**13, "width": 32}),
        ("processor_config.json", "image_processor.crop_size", {"height": 0, "width": 0}),
        ("processor_config.json", "image_processor.image_mean", [1, 2]),
        ("processor_config.json", "image_processor.image_std", [0.0, 0.0, 0.0]),
        ("processor_config.json", "image_processor.resample", -1),
        ("processor_config.json", "image_processor.auto_map", 3),
        ("tokenizer_config.json", "eos_token", True),
        ("tokenizer_config.json", "tokenizer_class", {}),
        ("tokenizer_config.json", "padding_side", "up"),
        ("tokenizer.json", "decoder", 0.5),
        ("tokenizer.json", "normalizer.normalizers", [{"type": "Emoji"}]),
        ("tokenizer.json", "truncation", "yes"),
    ],
)
def test_a_field_at_fault_is_named(folder, name, field, value):
    edit(folder / name, **{field.replace(".", "__"): value})
    text = sentence_of(load_all, folder)
    assert f"{name}' does not load with `{field}" in text


def test_a_value_is_never_shown_at_length_nor_obeyed_by_a_terminal(folder):
    edit(folder / "config.json", rnn_type="\x1b[31m" + "a" * 10**6)
    assert len(sentence_of(load_model, folder)) < 900


@pytest.mark.parametrize("token", ["pad_token", "bos_token", "eos_token"])
def test_a_tokenizer_without_a_special_token_is_told(folder, token):
    edit(folder / "tokenizer_config.json", **{token: None})
    assert "three different tokens" in sentence_of(load_processor, folder)


def test_a_tokenizer_of_another_captioner_is_refused(folder):
    edit(folder / "config.json", vocab_size=19)
    assert "has the token 19 and config.json a `vocab_size` of 19" in sentence_of(load_processor, folder)


def test_special_tokens_that_the_model_has_elsewhere_are_refused(folder):
    edit(folder / "config.json", eos_token_id=7)
    assert "`eos_token_id` is 7 in config.json" in sentence_of(load_processor, folder)


def test_sentences_without_an_end_are_refused(folder):
    edit(folder / "generation_config.json", eos_token_id=None)
    assert "`eos_token_id` of generation_config.json is missing" in sentence_of(load_model, folder)


def test_auto_classes_and_the_configuration_say_the_same(folder):
    edit(folder / "config.json", hidden_size="big")
    for load in (AutoConfig.from_pretrained, CnnRnnConfig.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        with pytest.raises(ValueError, match=r"^.*config.json.*'hidden_size' expected int, got str.*$") as stop:
            load(folder)
        assert str(folder) in str(stop.value)


def test_nobody_is_asked_whether_code_may_run(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    edit(folder / "config.json", model_type="unheard-of")
    edit(
        folder / "processor_config.json",
        auto_map={"AutoProcessor": "a.B"},
        image_processor__auto_map={"AutoImageProcessor": "a.B"},
        image_processor__image_processor_type="Unheard",
    )
    sentence_of(load_processor, folder)
    with pytest.raises((OSError, ValueError)):
        modeling_cnnrnn.pipeline("image-to-text", model=str(folder))


def test_what_only_a_pipeline_reads_is_told_too(folder):
    edit(folder / "config.json", architectures=[3])
    load_model(folder)
    assert "attribute name must be string" in sentence_of(modeling_cnnrnn.pipeline, "image-to-text", model=str(folder))


def test_an_argument_that_is_wrong_is_not_blamed_on_a_file(folder):
    text = sentence_of(load_model, folder, colour="red")
    assert "'colour'" in text
    assert "check the arguments" in text


def test_what_is_asked_of_a_failed_folder_does_not_change_it(folder):
    edit(folder / "tokenizer.json", decoder=0.5)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sentence_of(load_processor, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_processor_alone_loads(folder, tmp_path):
    load_processor(folder).save_pretrained(tmp_path / "alone")
    assert type(load_processor(tmp_path / "alone")) is CnnRnnProcessor
    assert type(AutoProcessor.from_pretrained(folder)) is CnnRnnProcessor


def test_a_model_in_float64_and_frozen_buffers_is_checked_as_it_is(make_model, tmp_path):
    model = make_model().double()
    model.model.encoder.register_buffer("places", torch.zeros(0))
    nn.init.constant_(model.lm_head.bias, 1e11)
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype=torch.float64).lm_head.bias[0] == 1e11


def test_a_model_larger_than_any_memory_is_refused_before_it_is_allocated(folder):
    edit(folder / "config.json", encoder__hidden_sizes=[10**6, 8])
    text = sentence_of(load_model, folder, check_weights=False, ignore_mismatched_sizes=True)
    assert "`encoder.hidden_sizes" in text
    assert "larger than any memory" in text


@pytest.mark.parametrize("error", [ImportError("install timm"), CnnRnnLoadingError("said already")], ids=str)
def test_what_says_more_than_a_file_could_stays_as_it_is(folder, error):
    edit(folder / "tokenizer.json", decoder=0.5)
    with pytest.raises(type(error)) as stop, explain_errors(folder, PROCESSOR_PARTS):
        raise error
    assert stop.value is error


def test_a_model_of_another_kind_is_said(tmp_path):
    ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(CnnRnnLoadingError, match="is a model of the kind 'resnet': pass one of the kind 'cnnrnn'"):
        CnnRnnConfig.from_pretrained(tmp_path)
