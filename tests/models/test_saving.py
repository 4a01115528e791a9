"""Saving and loading: weights, tied weights, vocabulary, precision, trained CNNs."""

import pytest
import torch
from safetensors import safe_open
from support import hub_user
from support.local_hub import LocalHub
from support.repositories import fork_jobs
from support.tiny_models import changed, snapshot
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    ResNetForImageClassification,
    ResNetModel,
)

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnModel, ImageToTextPipeline


@torch.no_grad()
def test_saved_model_loads_bit_equal(any_model, pixel_values, labels, tmp_path):
    expected = any_model(pixel_values, labels=labels)
    any_model.save_pretrained(tmp_path)
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(pixel_values, labels=labels).logits, expected.logits)
    assert changed(snapshot(any_model), loaded) == set()
    assert loaded.generation_config.to_dict() == any_model.generation_config.to_dict()


def test_auto_classes_load_the_model(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is CnnRnnForConditionalGeneration
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is CnnRnnModel
    assert changed(snapshot(tiny_model.model), base) == set()


def test_tied_weights_are_one_tensor_and_saved_once(make_model, pixel_values, labels, tmp_path):
    model = make_model(tie_word_embeddings=True, hidden_size=12)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "model.decoder.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    for tied in (model, loaded):
        assert tied.lm_head.weight is tied.model.decoder.embed_tokens.weight
    assert torch.equal(loaded(pixel_values, labels=labels).logits, model(pixel_values, labels=labels).logits)


def test_untied_weights_are_two_tensors(tiny_model):
    assert tiny_model.lm_head.weight is not tiny_model.get_input_embeddings().weight


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("size", [25, 15])
def test_resized_vocabulary_keeps_what_it_knew(make_model, pixel_values, tied, size):
    model = make_model(tie_word_embeddings=tied, hidden_size=12)
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    expected = model(pixel_values, decoder_input_ids=words).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    logits = model(pixel_values, decoder_input_ids=words).logits
    assert logits.shape == (3, 4, size)
    assert_close(logits[..., :15], expected[..., :15])
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model(pixel_values, labels=torch.full((3, 2), size - 1)).loss.isfinite()
    assert model.generate(pixel_values, max_new_tokens=3).shape[0] == 3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_half_precision_loads_computes_and_writes(make_model, pixel_values, labels, tmp_path, attention_type, dtype):
    model = make_model(attention_type=attention_type, initializer_range=0.1)
    model.save_pretrained(tmp_path)
    half = CnnRnnForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    expected, outputs = model(pixel_values, labels=labels), half(pixel_values, labels=labels)
    assert outputs.loss.dtype == torch.float32
    assert_close(outputs.logits.float(), expected.logits, rtol=0.05, atol=0.05)
    assert half.generate(pixel_values, max_new_tokens=4, num_beams=2).shape[0] == 3


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map_loads_the_model(tiny_model, pixel_values, labels, tmp_path, device_map):
    pytest.importorskip("accelerate")
    tiny_model.save_pretrained(tmp_path)
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
    loss = loaded(pixel_values.to(loaded.device), labels=labels.to(loaded.device)).loss
    assert_close(loss.cpu(), tiny_model(pixel_values, labels=labels).loss)


@pytest.mark.parametrize("head", [ResNetModel, ResNetForImageClassification])
def test_from_encoder_pretrained_takes_the_weights_of_the_cnn(
    tiny_encoder_config, tiny_tokenizer, pixel_values, labels, tmp_path, head
):
    checkpoint = head(tiny_encoder_config)
    for module in checkpoint.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # statistics are weights too
    checkpoint.save_pretrained(tmp_path)
    model = CnnRnnForConditionalGeneration.from_encoder_pretrained(
        str(tmp_path), tokenizer=tiny_tokenizer, rnn_type="gru", hidden_size=14, embedding_size=12
    )
    assert changed(snapshot(getattr(checkpoint, "resnet", checkpoint)), model.get_encoder().cnn) == set()
    assert model.config.vocab_size == len(tiny_tokenizer)
    assert model.config.rnn_type == "gru"
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert not model.training
    assert model(pixel_values, labels=labels).loss.isfinite()
    model.save_pretrained(tmp_path / "captioner")
    assert str(tmp_path) not in (tmp_path / "captioner" / "config.json").read_text()
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    assert changed(snapshot(model), loaded) == set()


def test_from_encoder_pretrained_lets_options_win_over_the_tokenizer(tiny_encoder_config, tiny_tokenizer, tmp_path):
    ResNetModel(tiny_encoder_config).save_pretrained(tmp_path)
    model = CnnRnnForConditionalGeneration.from_encoder_pretrained(tmp_path, tokenizer=tiny_tokenizer, vocab_size=64)
    assert model.lm_head.out_features == 64


def test_a_saved_captioner_is_a_whole_repository(tiny_model, tiny_processor, tmp_path):
    captioner = tmp_path / "captioner"
    tiny_model.save_pretrained(captioner)
    tiny_processor.save_pretrained(captioner)
    options = {"repository": str(captioner), "trust_remote_code": True}
    jobs = {
        "auto": ["auto_classes", options],
        "task": ["piped", {"task": "image-to-text", **options}],
        "no task": ["piped", {"task": None, **options}],
    }
    with LocalHub(tmp_path / "hub") as hub:  # for a process of its own, without this package
        answers = fork_jobs(hub, tmp_path, jobs)
    picture = hub_user.picture()
    records = ImageToTextPipeline(tiny_model, processor=tiny_processor, device="cpu")(picture)
    assert answers["task"] == answers["no task"] == ["transformers_modules", records]
    assert answers["auto"]["sentence"] == records[0]["generated_text"]
    assert answers["auto"]["classes"] == [
        "CnnRnnConfig",
        "CnnRnnProcessor",
        "CnnRnnForConditionalGeneration",
        "CnnRnnModel",
    ]
    assert set(answers["auto"]["modules"]) == {"transformers_modules"}
